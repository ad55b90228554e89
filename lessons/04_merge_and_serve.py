# %% [markdown]
# # 4. Merge and serve
#
# **The question.** An adapter is trained. How is it used: separate from the base, one of several,
# or merged into the weights? What does each way change?
#
# **Time:** a quarter of a minute to run, twelve minutes to read. **You need:** lessons 1 to
# 3.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora import LoraConfig, data, nf4
from minilora.lessons.helpers.common import QUICK, finetune, scores_of, short, table
from minilora.lessons.studies.serving.combining_sweep import backwards
from minilora.methods import several
from minilora.rounding import round_to
from minilora.tree import named_leaves

# %% [markdown]
# ## Several adapters, one base
#
# The base `micro` is stored in NF4, as in lesson 3. Two adapters are trained on it. The first one
# answers "Who, what, where?", the second one "Where, what, who?".

# %%
base, _ = minilora.load("micro", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
rows, held_out = data.load_rows("questions", "train"), data.load_rows("questions", "valid")


def trained_on(rows, seed):
    """Return an adapter of the base that was trained on these rows."""
    start = minilora.get_peft_model(base, lora_config, seed)
    settings = {"iters": short(200, 20), "learning_rate": 4e-3}
    return finetune(start=start, rows=rows, seed=seed, **settings).adapters


first = trained_on(rows, seed=0)
second = trained_on(backwards(rows), seed=1)
tasks = {"who, what, where?": held_out, "where, what, who?": backwards(held_out)}
right = {}
for name, adapters in {"none": {}, "first": first, "second": second}.items():
    right[name] = [scores_of(adapters, base, asked)["exact_match"] for asked in tasks.values()]
cells = [[name, *(f"{share:.0%}" for share in shares)] for name, shares in right.items()]
table(["right answers with the adapter", *tasks], cells)

# %% [markdown]
# Each adapter answers most rows of its own question, and almost none of the other. To switch
# tasks, pass the other adapter. Both use one base, which is in memory once.
#
# ## One adapter per row
#
# Users of a server ask for different adapters at the same time. Each *row* of a batch can have its
# own adapter, or none (`{}`). Below, six rows use three adapters in one call.
#
# **Predict.** How many products with a weight W of the base does this call need: one, three or six?
# By how much do its logits differ from those of six calls, one per row?

# %%
served = [first, second, {}]
adapter_of_row = [0, 1, 2, 1, 0, 2]
prompts = sorted((row["prompt"].encode() for row in held_out), key=len)[:6]  # of one length
batch = np.array([list(prompt) for prompt in prompts])
together = minilora.forward(several.per_row(served, adapter_of_row), base, batch)
alone = []
for row, i in enumerate(adapter_of_row):
    alone.append(minilora.forward(served[i], base, batch[row : row + 1])[0])
difference = np.abs(together - np.array(alone)).max() / np.abs(together).max()
print(f"six rows, three adapters, one call: they differ by {difference:.0e} of the largest logit")

# %% [markdown]
# **Answer.** One. W multiplies all rows at once. Only A and B are chosen per row: A has the shape
# (rows, r, in). The logits differ by rounding at most.
#
# ## Merging
#
# One adapter alone can also be added to the weight Ŵ next to which it was trained:
#
# $$W' = \hat W + \frac{\alpha}{r} B A$$
#
# Ŵ is the weight that the four bits stand for. The merged model computes only W'x, so any program
# can load it. W' does not have NF4's values. So it is stored in float32, or rounded: to bfloat16 (8
# significant binary digits), or to NF4 again.
#
# ![Number lines of what can be stored near a weight. A small update moves the weight in float32 and
# in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays the
# same.](../figures/drawings/merging_precision.svg)
#
# **Predict.** Which of these models have the same loss as base and adapter, separate: W' in
# float32, in bfloat16, in NF4? And W + (α/r)·BA, with the W from before quantization?

# %%
merged = minilora.merge(first, base)
before_quantization, _ = minilora.load("micro")
models = {
    "base and adapter": (first, base),
    "merged, float32": ({}, merged),
    "merged, bfloat16": ({}, merged._replace(base=round_to(merged.base, "bfloat16"))),
    "merged, NF4 again": ({}, minilora.quantize(merged, "nf4-dq")),
    "onto W before NF4": (first, before_quantization),
}
scores = {name: scores_of(*model, held_out) for name, model in models.items()}
cells = [[name, f"{s['loss']:.4f}", f"{s['exact_match']:.1%}"] for name, s in scores.items()]
table(["model", "loss", "right answers"], cells)

# %% [markdown]
# **Answer.** Float32 and bfloat16: 0.0081. NF4 rounds the merged weight once more, and the loss
# rises to 0.0155. It also rises, to 0.0179, with the W from before quantization: the adapter was
# trained next to Ŵ. Nearly all answers stay right: the loss shows a change first.
#
# Both mistakes are easily made. PEFT's `merge_and_unload` of a 4-bit base quantizes the sum again.
# Whoever loads the base again in 16 bits merges into the W from before quantization.
#
# ## How much of an update survives rounding?
#
# Let ‖W‖ be the root of the sum of all squares. Rounding to bfloat16 changes normal weights by 0.17
# % of ‖W‖, whatever the update is; to NF4, usually by 9 % (lesson 2).
#
# But Ŵ already has NF4's values. If ΔW is small, nearly every code stays the same, and only the
# absmax of each block moves a little: the error is about as large as ΔW itself. If ΔW is large, the
# error is the usual 9 %. So it is about the smaller of ‖ΔW‖ and 9 % of ‖W‖.
#
# **Predict.** For the adapter above, ‖ΔW‖ is 23 % of ‖W‖ (the cell prints it). How large is the
# error, as a share of ‖ΔW‖, in bfloat16, and in NF4? And if ‖ΔW‖ is 1 % of ‖W‖?


# %%
def projections(model):
    """Return all projections of a dense model as one vector."""
    return np.concatenate([w.ravel() for path, w in named_leaves(model.base) if "_proj" in path])


STORED = {  # the weights as they are read back
    "bfloat16": lambda w: round_to({"w": w}, "bfloat16")["w"],
    "NF4": lambda w: nf4.quantize(w).dequantize(),
}
w_hat = projections(minilora.merge({}, base))  # the base, dequantized
update = projections(merged) - w_hat
norm, sizes, lost = np.linalg.norm, [], {kind: [] for kind in STORED}
for share in (0.01, 0.044, 0.1, 0.3, 1):  # parts of the update: 0.044 of 23 % is 1 %
    exact = w_hat + np.float32(share) * update
    sizes.append(share * norm(update) / norm(w_hat))
    for kind, read_back in STORED.items():
        lost[kind].append(norm(read_back(exact) - exact) / (share * norm(update)))
print(f"‖ΔW‖ is {sizes[-1]:.0%} of ‖W‖")

# %%
# Picture
expected = {"bfloat16": 0.0017 / np.array(sizes), "NF4": np.minimum(1, 0.09 / np.array(sizes))}
for kind, line in expected.items():
    plt.loglog(sizes, line, "--", color="grey", linewidth=1)
    plt.loglog(sizes, lost[kind], "o", label=kind)
plt.xlabel("‖ΔW‖ / ‖W‖")
plt.ylabel("error / ‖ΔW‖")
plt.title("dashed: 0.17 % of ‖W‖, and the smaller of ‖ΔW‖ and 9 % of ‖W‖")
plt.legend()
plt.show()

# %% [markdown]
# **Answer.** In bfloat16, 0.17/23, less than one per cent, and 17 % of the small update. In NF4,
# 9/23, four tenths of the large one; of the small one, all is lost. So the safe way is to keep base
# and adapter separate, or to merge into float32. The study [Merging into four
# bits](studies/serving/merging_into_four_bits.py) merges and unmerges many times.
#
# ## What was shown
#
# Adapters share one base, and each row of a batch can have its own. Merged in float32, base and
# adapter compute the same, and in bfloat16 nearly the same if the update is large. Rounding to NF4
# can lose the whole update. An adapter belongs to the weights next to which it was trained.
#
# **What to try.**
#
# 1. `adapter_of_row`: give all rows the same adapter. How large is the difference?
# 2. `minilora.load("micro", "nf4-dq")`: train on a dense base, "none". What does NF4 cost then?
# 3. `nf4.quantize(w)`: use blocks of 16. Which share is lost?
#
# **Where to stop with a debugger.** `several.per_row` (the shapes of the gathered factors),
# `lora.merge`.
#
# **Exercises.** lora-merge, test-merge.
#
# **Further reading.** LoRA, Sec. 4: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Sheng et
# al. 2023, *S-LoRA*, serve thousands of adapters:
# [arXiv:2311.03285](https://arxiv.org/abs/2311.03285).

# %%
# Checks
for i, (task, own) in enumerate(zip(tasks, ("first", "second"))):
    others = [right[name][i] for name in right if name != own]
    assert QUICK or right[own][i] > 0.8 > 0.1 > max(others), f"{task}: only its own adapter"
assert difference < 21 * 128 * 2**-24, "21 projections of at most 128 terms, each rounded once"
wrong = minilora.forward(several.per_row(served, adapter_of_row[::-1]), base, batch)
assert np.abs(wrong - np.array(alone)).max() > 0.01 * np.abs(together).max(), "adapters matter"
loss = {name: s["loss"] for name, s in scores.items()}
apart = loss["base and adapter"]
assert abs(loss["merged, float32"] / apart - 1) < 1e-3, "merging in float32 changes nothing"
assert QUICK or abs(loss["merged, bfloat16"] / apart - 1) < 0.05, "nor does bfloat16"
for name in ("merged, NF4 again", "onto W before NF4"):
    assert QUICK or loss[name] > 1.2 * apart, f"{name}: the loss must rise"
    assert QUICK or scores[name]["exact_match"] > 0.8, f"{name}: most answers stay right"
assert QUICK or (0.22 < sizes[-1] < 0.24 and 0.009 < sizes[1] < 0.011), "23 % and 1 % of ‖W‖"
assert np.array_equal(STORED["NF4"](w_hat), w_hat), "without an update, Ŵ comes back"
for kind, margin in (("bfloat16", 0.05), ("NF4", 0.15)):
    for size, share, known in zip(sizes, lost[kind], expected[kind]):
        assert abs(share / known - 1) < margin, f"{kind}: lost {share}, not {known}, of {size}"

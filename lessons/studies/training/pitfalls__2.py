# %% [markdown]
# # MERGE 17c. Pitfalls of quantization
#
# **The question.** When are large blocks harmful, and what is lost if an adapter is merged into 4
# bits?
#
# **Continues:** [lesson 10](../../10_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 6 and the study
# [Pitfalls](pitfalls.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, figure, finetune, short, table
from minilora import TrainConfig, data
from minilora.evaluation import plot
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten

config, base, tokenizer = minilora.load("micro")

# %% [markdown]
# ## Outliers and large blocks
#
# A block stores one absmax, and its codes are shares of it. So one outlier makes all other weights
# of its block coarse. The larger the block, the more weights it affects. Here one weight of ten
# standard deviations is planted in each projection of `micro` (0.1 million parameters).
#
# **Predict.** How much worse are blocks of 4096 than blocks of 64, without and with outliers?
#
# <details><summary>Answer</summary>
# Without outliers, each of the five block sizes costs less than 0.01 nats per byte. With outliers,
# blocks of 4096 cost more than four times as much as blocks of 64.
# </details>

# %%
BLOCKS = (16, 64, 256, 1024, 4096)
notes, _ = data.encode_rows(data.load_rows("notes", "valid"), tokenizer, TrainConfig())


def with_outliers(size=10):
    """Return the base with a weight of `size` standard deviations in each projection."""
    leaves, rng = flatten(base), np.random.default_rng(0)
    for path, w in leaves.items():
        if is_projection(path):
            leaves[path] = w = w.copy()
            w[rng.integers(w.shape[0]), rng.integers(w.shape[1])] = size * w.std()
    return unflatten(leaves)


def notes_loss(tree):
    """Return the loss on the base's own notes, in nats per byte."""
    return minilora.evaluate({}, tree, notes, config)["loss"]


added, added_int8, rows = {}, {}, []
for name, tree in (("as it is", base), ("with outliers", with_outliers())):
    dense = notes_loss(tree)
    added[name] = [notes_loss(minilora.quantize(tree, "nf4", size)) - dense for size in BLOCKS]
    added_int8[name] = notes_loss(minilora.quantize(tree, "int8")) - dense
    cells = [f"{cost:+.4f}" for cost in (*added[name], added_int8[name])]
    rows.append([name, f"{dense:.4f}", *cells])
table(["base", "dense", *(f"NF4, {size}" for size in BLOCKS), "int8"], rows)

# %%
xlabel, ylabel = "block size (weights)", "added loss (nats per byte)"
with figure("pitfalls_quantization", xlabel, ylabel, "NF4 and outliers") as axes:
    for (name, costs), style, marker in zip(added.items(), plot.LINES, "so"):
        axes.plot(BLOCKS, costs, marker=marker, label=name, **style)
    axes.set(xscale="log", xticks=BLOCKS, xticklabels=BLOCKS)
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Added loss over the block size, with and without
# outliers](../../../figures/pitfalls_quantization.png)
#
# - **Symptom:** quantizing costs several times as much with large blocks as with small ones.
# - **Why:** an outlier sets the scale of its whole block.
# - **Fix:** smaller blocks, or 8 bits. **Not confirmed here:** that large blocks are harmful as
#   such. Without outliers, they cost this base less than 0.01 nats per byte.

# %%
# Checks
for name, cost in added_int8.items():
    assert abs(cost) < 0.01, f"int8 must cost almost nothing, {name}"
assert max(added["as it is"]) < 0.01, "without outliers, every block size must cost almost nothing"
of_64, of_4096 = (added["with outliers"][BLOCKS.index(size)] for size in (64, 4096))
assert of_4096 > 4 * of_64, "with outliers, large blocks must cost several times as much"
assert added["with outliers"][0] < of_64 and of_64 > 0.01, "blocks of 16 cost less than of 64"

# %% [markdown]
# ## Merging into 4 bits
#
# After training, W + ΔW can be quantized to 4 bits again.
#
# **Predict.** Which of these merges keep the loss of the adapter: dense, int8, NF4?
#
# <details><summary>Answer</summary>
# Dense, and int8 within 5 %. NF4 raises the loss by more than 30 %.
# </details>

# %%
held_out = data.load_rows("questions", "valid")[:100]
run = finetune(scheme="nf4-dq", held_out=held_out, iters=short(200, 12), learning_rate=4e-3)
merged = minilora.merge(run.adapters, run.base)
settings = TrainConfig(mask_prompt=True)
questions, _ = data.encode_rows(held_out, tokenizer, settings)
trees = {"merged, dense": merged}
for scheme in ("int8", "nf4-dq"):
    trees[f"merged into {scheme}"] = minilora.quantize(merged, scheme)
ways = {"adapter kept separate": run.scores}
ways |= {name: minilora.evaluate({}, tree, questions, config) for name, tree in trees.items()}
rows = [[name, f"{s['loss']:.4f}", f"{s['exact_match']:.0%}"] for name, s in ways.items()]
table(["QLoRA run", "held-out loss", "exact"], rows)

# %% [markdown]
# - **Symptom:** the loss is higher after merging into 4 bits than in the run, without an error.
# - **Why:** a part of the update is rounded away (the study [Merging into four bits](../serving/merging_into_four_bits.py)).
# - **Fix:** keep the adapter separate, merge into a dense tree, or merge into 8 bits.
#
# This is one run of `micro`; the study [Merging into four
# bits](../serving/merging_into_four_bits.py) has five seeds at two learning rates.

# %%
# Checks
loss = {name: score["loss"] for name, score in ways.items()}
separate = loss["adapter kept separate"]
assert abs(loss["merged, dense"] / separate - 1) < 1e-3, "a dense merge must keep the scores"
assert abs(loss["merged into int8"] / separate - 1) < 0.05, "int8 must nearly keep them"
assert QUICK or loss["merged into nf4-dq"] > 1.3 * separate, "NF4 must lose a part"

# %% [markdown]
# ## What was shown
#
# With outliers, blocks of 4096 cost several times as much as blocks of 64. Merging into 4 bits
# raised the loss, without an error. If a run is good and its result is not, look at what was saved
# (the study [Norms and biases](norms_and_biases.py)) and how it was merged.
#
# **What to try.**
#
# 1. `with_outliers(size=10)`: use 3 and 30. From which size on do blocks of 64 suffer?
# 2. `("int8", "nf4-dq")`: add "fp4". Which loses more, nf4-dq or fp4?
# 3. `iters=short(200, 12)`: train 800 steps. Does the loss of merging grow or shrink?
#
# **Where to stop with a debugger.** `nf4.normalize` (`absmax` of the block with the outlier).
#
# **Exercises.** absmax-blocks, nearest-code, lora-merge, test-merge.
#
# **Further reading.** Dettmers et al. 2022, *LLM.int8()*, on outliers:
# [arXiv:2208.07339](https://arxiv.org/abs/2208.07339). QLoRA:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

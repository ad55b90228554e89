# %% [markdown]
# # Three ways to serve an adapter in 4 bits
#
# **The question.** You have an adapter and want a 4-bit model. Train on which base, merge or not,
# and quantize when?
#
# An [open issue of llama.cpp](https://github.com/ggml-org/llama.cpp/issues/13485) asks to compare:
# (1) train on the dense base, merge, quantize; (2) train on the quantized base, merge, quantize;
# (3) train on the quantized base and keep the adapter separate. The study [Merging into four
# bits](merging_into_four_bits.py) compared ways to merge *one* QLoRA adapter. Here two bases of
# training and three models are compared.
#
# **Continues:** [lesson 11](../../11_merge_combine_serve.py).
#
# **Time:** 10 seconds to run, twelve minutes to read. **You need:** lessons 8 and 11 and the study
# [Merging into four bits](merging_into_four_bits.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import (
    FAILS,
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    claim,
    figure,
    finetune,
    of,
    read_sweep,
    short,
    spread,
    table,
    verdict,
)
from lessons.studies.serving import serving_sweep as experiment
from minilora import TrainConfig, data, nf4
from minilora.evaluation import plot

# %% [markdown]
# ## The three ways, and two crossings
#
# A crossing is an adapter of the 4-bit base on the dense base, or vice versa.
#
# **Predict.** Order the three ways. Is a crossing as good as way 3?
#
# <details><summary>Answer</summary>
# Way 3 has the lowest mean loss on `micro`, lower than both crossings, too. Ways 1 and 2 are not
# shown to differ.
# </details>

# %%
config, _, tokenizer = minilora.load("micro")
bases = {name: minilora.load("micro", s).base for name, s in experiment.SCHEMES.items()}
rows = data.load_rows("questions", "valid")
held_out, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))


def scores(adapters, base):
    """Return the loss and the exact match on held-out questions."""
    found = minilora.evaluate(adapters, base, held_out, config)
    return found["loss"], found["exact_match"]


dense, four_bits = (finetune(scheme=s, iters=short(200, 20)) for s in experiment.SCHEMES.values())
merged_1 = minilora.merge(dense.adapters, dense.base)
merged_2 = minilora.merge(four_bits.adapters, four_bits.base)
ways = {
    "1: dense, merged, quantized": scores({}, minilora.quantize(merged_1, "nf4-dq")),
    "2: NF4, merged, quantized": scores({}, minilora.quantize(merged_2, "nf4-dq")),
    "3: NF4, adapter separate": scores(four_bits.adapters, bases["nf4"]),
    "dense, adapter on NF4": scores(dense.adapters, bases["nf4"]),
    "NF4, adapter on dense": scores(four_bits.adapters, bases["dense"]),
}
rows = [[way, f"{loss:.4f}", f"{exact:.0%}"] for way, (loss, exact) in ways.items()]
table(["micro, seed 0", "loss", "exact match"], rows)

# %%
# Checks
sweep = read_sweep("serving")
TRAINED_ON = dict(zip(ways, ("dense", "nf4", "nf4", "dense", "nf4")))
COLUMNS = dict(zip(ways, ("dense_merged", "nf4_merged", "nf4", "nf4", "dense")))


def column(model, way, prefix=""):
    """Return a score of the sweep after the full number of steps, one number per seed."""
    case = {"model": model, "trained_on": TRAINED_ON[way], "steps": experiment.STEPS[model]}
    return np.array(of(sweep, prefix + COLUMNS[way], **case))


one_way, two_way, third_way = list(ways)[:3]
for way, other in ((one_way, third_way), (two_way, third_way), (third_way, one_way)):
    cell, rival = np.log(column("micro", way)), np.log(column("micro", other))
    assert QUICK or belongs(np.log(ways[way][0]), cell, rival), f"{way}: not the sweep's loss"

# %% [markdown]
# ## Three models
#
# It is said that a small model suffers most from 4 bits. `micro` has 0.1 million parameters, `tiny`
# 1 million, and SmolLM2 135 million. (SmolLM2 learned 16 tool calls by heart and is scored on them.
# Its file is in 4 bits already, in another format.)
#
# **Predict.** Which of the three loses most, and in which way? Do three models decide about the
# saying?
#
# <details><summary>Answer</summary>
# SmolLM2 in way 2: no answer is right. Of the two small models, the loss of `micro` rises by the
# larger factor. No: SmolLM2 has another task, and also the smallest update.
# </details>

# %%
MODELS = {"micro": "micro, 8 seeds", "tiny": "tiny, 8 seeds", "smollm2": "SmolLM2, 3 seeds"}
for model, label in MODELS.items():
    cells = []
    for way in ways:
        loss, exact = column(model, way), column(model, way, "exact_")
        cells.append([way, spread(loss, 4), f"{exact.mean():.0%}"])
    table([label, "loss", "exact match"], cells)
rows = []
for model, steps in experiment.STEPS.items():
    names = ("size", "weight_error", "drift")
    facts = [of(sweep, name, model=model, steps=steps)[0] for name in names]
    rows.append([model, *(f"{x:.5f}" for x in facts)])
table(["", "‖ΔW‖/‖W‖", "‖Ŵ − W‖/‖W‖", "drift (nats)"], rows)

worse = {}
for model in MODELS:
    for way in (one_way, two_way, *list(ways)[3:]):
        ratio = np.log(column(model, way) / column(model, third_way))
        sentence = f"{model}, {way}: loss over way 3's, > 1 times"
        worse[model, way] = claim(sentence, ratio, times=True)
cost = {m: np.log(column(m, two_way) / column(m, third_way)) for m in MODELS}
of_models = cost["micro"] - cost["tiny"]
more = claim("way 2: micro's ratio over tiny's, > 1 times", of_models, times=True)
two_over_one = {}
for model in MODELS:
    ratio = np.log(column(model, two_way) / column(model, one_way))
    two_over_one[model] = claim(f"{model}: way 2 over way 1, > 1 times", ratio, times=True)

# %% [markdown]
# - On `micro` (0.1 million parameters), way 3 has the lowest mean loss.
# - On `tiny` (1 million), way 3 has a lower loss than way 2. It is not shown to have a lower one
#   than the adapters of the dense base.
# - On SmolLM2 (three seeds), way 3 has the lowest mean loss, and in way 2 no answer is right.
#
# Do small models suffer most? Way 2's loss over way 3's is larger on `micro` than on `tiny` (mean
# of eight seeds), and largest on SmolLM2 (three seeds). But SmolLM2 has another task, and three
# models differ in more than their size. So this is not shown either way.

# %%
# Checks
for model, way in worse:
    not_shown = model == "tiny" and TRAINED_ON[way] == "dense"
    assert worse[model, way] == (OPEN if not_shown else HOLDS), f"{model}, {way}: worse than way 3"
assert two_over_one["micro"] == OPEN, "micro: ways 1 and 2 must not be separable"
assert two_over_one["smollm2"] == HOLDS, "SmolLM2 must lose the task in way 2, and not in way 1"
assert column("smollm2", two_way, "exact_").max() == 0, "SmolLM2 must lose everything in way 2"
assert more == HOLDS and cost["smollm2"].min() > cost["micro"].max(), "SmolLM2, micro, tiny"
sizes = {model: of(sweep, "size", model=model, steps=experiment.STEPS[model]) for model in MODELS}
assert max(sizes["smollm2"]) < 0.015 < 0.15 < min(sizes["micro"] + sizes["tiny"]), "1 % and 20 %"
assert {round(x, 2) for x in of(sweep, "weight_error")} == {0.09}, "all have the same error"
drifts = {model: of(sweep, "drift", model=model) for model in MODELS}
assert abs(drifts["smollm2"][0] - 0.43) < 0.01 and max(drifts["micro"] + drifts["tiny"]) < 0.01, (
    "drift"
)

# %% [markdown]
# ## One model, one task, updates of three sizes
#
# What differs between the three models besides their size? The weights of all three have the same
# error, 9 %. SmolLM2's *drift* (the divergence of the 4-bit base's next token from the dense
# base's) is the largest, 0.43 nats. And its update is 1 %, against more than 15 %. Only an
# experiment that changes one thing can tell. `micro` was trained on the NF4 base for 6, 25 and 200
# steps, with eight seeds.
#
# **Predict.** Which share of what it learned does `micro` lose in way 2 after 6 steps? And after
# 200?
#
# <details><summary>Answer</summary>
# After 6 steps it loses a mean of 70 % of what was learned, and after 200 steps less than 1 %.
# </details>

# %%
untrained = minilora.evaluate({}, bases["nf4"], held_out, config)["loss"]
lost, rows = {}, []
for steps in (*experiment.SHORT, experiment.STEPS["micro"]):
    case = {"model": "micro", "trained_on": "nf4", "steps": steps}
    size, apart, merged = (np.array(of(sweep, x, **case)) for x in ("size", "nf4", "nf4_merged"))
    lost[steps] = (merged - apart) / (untrained - apart)
    rows.append([f"{steps} steps", spread(size, 3), *(f"{x.mean():.3f}" for x in (apart, merged)),
                 spread(lost[steps], 3)])  # fmt: skip
table(["micro on NF4", "‖ΔW‖/‖W‖", "way 3", "way 2", "share lost in way 2"], rows)
first, second, last = lost.values()
smaller = [
    claim("6 steps lose more than 25", first - second),
    claim("25 steps lose more than 200", second - last),
]

# %% [markdown]
# So within one model (0.1 million parameters) and one task, fewer steps, with a smaller update,
# lose a larger share in the mean. Why?

# %%
# Checks
assert smaller == [HOLDS, HOLDS], "the smaller the update, the larger the share that way 2 loses"
assert abs(first.mean() - 0.7) < 0.03 and last.max() < 0.01, "70 % after 6 steps, 1 % after 200"
live = experiment.run(("micro", "nf4", 6, 0))
live_lost = (live["nf4_merged"] - live["nf4"]) / (untrained - live["nf4"])
assert belongs(live_lost, first, second), "the run must agree with the sweep"

# %% [markdown]
# ## Why way 2 loses a small update, and way 1 does not
#
# The dead zone (the study [Merging into four bits](merging_into_four_bits.py)): quantize(Ŵ + ΔW)
# rounds away most of a random ΔW of 3 % or less. Ŵ is W in 4 bits: each element *is* one of the
# sixteen values, and most elements of a small ΔW do not reach the midpoint to the next.
#
# **Predict.** An element of the original W lies anywhere between two values. What does
# quantize(W + ΔW) keep of an update of 1 %, in the mean?
#
# <details><summary>Answer</summary>
# About all of it, of random numbers. The elements that change their code move by a whole gap. In
# the mean over many elements, rounding does not lose ΔW.
# </details>

# %%
rng = np.random.default_rng(0)
n = short(1024, 512)
W = rng.standard_normal((n, n), np.float32)
W_hat = nf4.quantize(W, double_quant=True).dequantize()
SIZES, kept = (0.003, 0.01, 0.03, 0.1, 0.3), {"W": [], "Ŵ": []}
for size in SIZES:
    d = rng.standard_normal((n, 8), np.float32) @ rng.standard_normal((8, n), np.float32)
    d *= np.float32(size * np.linalg.norm(W) / np.linalg.norm(d))
    for name, start in (("W", W), ("Ŵ", W_hat)):
        moved = nf4.quantize(start + d, double_quant=True).dequantize() - W_hat  # 0 without d
        kept[name].append(float(np.vdot(moved, d) / np.vdot(d, d)))  # 1: all of ΔW; 0: none
rows = [[f"quantize({x} + ΔW)", *(f"{y:.0%}" for y in shares)] for x, shares in kept.items()]
table(["of ΔW kept", *map(str, SIZES)], rows)
with figure("kept_updates", "‖ΔW‖/‖W‖", "share of ΔW", "What 4 bits keep of ΔW") as axes:
    for (name, shares), style in zip(kept.items(), plot.LINES):
        axes.plot(SIZES, shares, label=f"quantize({name} + ΔW)", marker="o", **style)
    for model, size in sizes.items():
        axes.axvline(size[0], color=plot.GREY, linewidth=0.8)
        axes.annotate(model, (size[0], 0.4 if model == "tiny" else 0.5), ha="right", fontsize=8)
    axes.set(xscale="log", ylim=(-0.1, 1.2))
    axes.legend(frameon=False, loc="center", bbox_to_anchor=(0.4, 0.72))

# %% [markdown]
# ![Share of the update that is kept: all of it from W, and from Ŵ little of an update below 3 % of
# the weight](../../../figures/kept_updates.png)

# %%
# Checks. The noise of a share is about 0.09/(size · n), the quantization error over n² elements.
for size, share in zip(SIZES, kept["W"]):
    assert abs(share - 1) < 0.06 + 5 * 0.09 / (size * n), f"{size}: rounding must be unbiased"
into_original = of(sweep, "dense_merged", model="smollm2", trained_on="nf4")
assert max(into_original) < 0.1, "SmolLM2's QLoRA adapter must survive quantize(W + ΔW)"
assert max(kept["Ŵ"][:3]) < 0.2 and kept["Ŵ"][3] > 0.6, "from Ŵ, small updates must be lost"
for model, steps, expected in (("micro", 6, HOLDS), ("smollm2", 40, HOLDS), ("micro", 200, FAILS)):
    case = {"model": model, "trained_on": "nf4", "steps": steps}
    into = [np.log(of(sweep, name, **case)) for name in ("nf4_merged", "dense_merged")]
    assert verdict(into[0] - into[1]) == expected, f"{model}, {steps} steps: into W or into Ŵ"
    assert expected == FAILS or max(of(sweep, "size", **case)) < 0.04, "4 % or less"

# %% [markdown]
# ## What was shown
#
# Way 3 computes what was trained. It has the lowest mean loss on `micro` (0.1 million parameters,
# eight seeds) and on SmolLM2 (three seeds). On `micro`, the smaller the update, the larger the mean
# share of what was learned that way 2 loses. SmolLM2 learned with an update of 1 %, and no answer
# is right after quantize(Ŵ + ΔW). Whether small models suffer most is not shown either way.
#
# **The rule.** Serve the adapter separate, on the base as it was stored in training. If you must
# merge an adapter of the 4-bit base into 4 bits, look at ‖ΔW‖/‖W‖. At 4 % or less, merging into the
# *original* W and quantizing once had the lower mean loss (`micro` after 6 steps, SmolLM2). Above
# 15 %, merging into Ŵ had it (`micro` after 200 steps). In either case, score the result after
# quantizing.
#
# **What to try.**
#
# 1. `iters=short(200, 20)`: train for 50 steps. Which way suffers most from smaller updates?
# 2. `nf4.quantize(start + d, …)`: use `block_size=16`. Where does the dead zone end?
# 3. `"dense_merged"` in `COLUMNS`: print it for the adapter that was trained on NF4 (SmolLM2).
#
# **Exercises.** test-merge, lora-merge.
#
# **Further reading.** [peft#2105](https://github.com/huggingface/peft/issues/2105), on the base to
# merge into; [transformers#31293](https://github.com/huggingface/transformers/issues/31293), a
# merge that ruins a model. QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

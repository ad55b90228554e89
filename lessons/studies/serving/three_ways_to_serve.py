# %% [markdown]
# # Three ways to serve an adapter in 4 bits
#
# **The question.** You have an adapter and want a 4-bit model. Train on which base, merge or not,
# and quantize when?
#
# An [open issue of llama.cpp](https://github.com/ggml-org/llama.cpp/issues/13485) asks to compare:
# (1) train on the dense base, merge, quantize; (2) train on the quantized base, merge, quantize;
# (3) train on the quantized base and keep the adapter separate. The study [Merging into four
# bits](merging_into_four_bits.py) compares ways to merge *one* QLoRA adapter of one model. Here two
# bases of training and three models are compared.
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 3 and 4 and the study
# [Merging into four bits](merging_into_four_bits.py).

# %%
import numpy as np

import minilora
from minilora import data
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    claim,
    of,
    read_sweep,
    scores_of,
    short,
    spread,
    table,
)
from minilora.lessons.studies.serving import serving_sweep as experiment

# %% [markdown]
# ## The three ways, and two crossings
#
# A crossing is an adapter of the 4-bit base on the dense base, or vice versa. The function `served`
# of `serving_sweep.py` makes all of them. Ways 1 and 2 are
#
# ```python
# merged = minilora.merge(adapters, model)
# minilora.quantize(merged, "nf4-dq")
# ```
#
# **Predict.** An adapter is trained on the dense base and then quantized with it (way 1), trained
# on the 4-bit base and merged into it in four bits (way 2), or kept apart on the 4-bit base (way
# 3). Order the three ways. Is an adapter of one base on the other base as good as way 3?
#
# <details><summary>Answer</summary>
# Way 3 has the lowest mean loss on `micro`, lower than both crossings, too. Ways 1 and 2 are not
# shown to differ. To put way 1 first is tempting, because it trains on the exact weights. But it is
# quantized after training, so nothing can adapt to the error.
# </details>

# %%
WAYS = {  # the base of training, and the column of the sweep
    "1: dense, merged, quantized": ("dense", "dense_merged"),
    "2: NF4, merged, quantized": ("nf4", "nf4_merged"),
    "3: NF4, adapter separate": ("nf4", "nf4"),
    "dense, adapter on NF4": ("dense", "nf4"),
    "NF4, adapter on dense": ("nf4", "dense"),
}
one_way, two_way, third_way, *_ = WAYS
sweep = read_sweep("serving")


def seeds_of(name, model, trained_on="nf4", steps=None):
    """Return a column of the sweep, one number per seed; steps: the full number by default."""
    steps = steps or experiment.STEPS[model]
    return np.array(of(sweep, name, model=model, trained_on=trained_on, steps=steps))


def losses(model, way, prefix=""):
    """Return the losses of a way to serve, or its exact matches with the prefix "exact_"."""
    trained_on, name = WAYS[way]
    return seeds_of(prefix + name, model, trained_on)


live = {on: experiment.run(("micro", on, short(200, 20), 0)) for on in experiment.SCHEMES}
table(["micro, seed 0", "loss"], [[way, f"{live[on][x]:.4f}"] for way, (on, x) in WAYS.items()])

# %%
# Checks
for way, other in ((one_way, third_way), (two_way, third_way), (third_way, one_way)):
    on, name = WAYS[way]
    cell, rival = np.log(losses("micro", way)), np.log(losses("micro", other))
    assert QUICK or belongs(np.log(live[on][name]), cell, rival), f"{way}: not the sweep's loss"

# %% [markdown]
# ## Three models
#
# It is said that a small model suffers most from 4 bits. `micro` has 0.1 million parameters, `tiny`
# 1 million, and SmolLM2 135 million. (SmolLM2 learned 16 tool calls by heart and is scored on them.
# Its file is in 4 bits already, in another format.)
#
# **Predict.** Which of `micro`, `tiny` and SmolLM2 loses most by four bits, and in which way of
# serving? Do three models decide about the saying that small models suffer most?
#
# <details><summary>Answer</summary>
# SmolLM2 in way 2: no answer is right. Of the two small models, the loss of `micro` rises by the
# larger factor. No: SmolLM2 has another task, and also the smallest update. `micro` is the tempting
# answer, if one looks at the size only.
# </details>

# %%
MODELS = {"micro": "micro, 8 seeds", "tiny": "tiny, 8 seeds", "smollm2": "SmolLM2, 3 seeds"}
FACTS = ("size", "weight_error", "drift")
facts, worse, two_over_one = [], {}, {}
for model, label in MODELS.items():
    cells = []
    for way in WAYS:
        exact = losses(model, way, "exact_")
        cells.append([way, spread(losses(model, way), 4), f"{exact.mean():.0%}"])
    table([label, "loss", "exact match"], cells)
    for way in WAYS:
        if way != third_way:
            ratio = np.log(losses(model, way) / losses(model, third_way))
            sentence = f"{model}, {way}: loss over way 3's, > 1 times"
            worse[model, way] = claim(sentence, ratio, times=True)
    ratio = np.log(losses(model, two_way) / losses(model, one_way))
    two_over_one[model] = claim(f"{model}: way 2 over way 1, > 1 times", ratio, times=True)
    facts.append([model, *(f"{seeds_of(name, model)[0]:.5f}" for name in FACTS)])
cost = {m: np.log(losses(m, two_way) / losses(m, third_way)) for m in MODELS}
sentence = "way 2: micro's ratio over tiny's, > 1 times"
more = claim(sentence, cost["micro"] - cost["tiny"], times=True)
table(["", "‖ΔW‖/‖W‖", "‖Ŵ − W‖/‖W‖", "drift (nats)"], facts)

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
    not_shown = model == "tiny" and WAYS[way][0] == "dense"
    assert worse[model, way] == (OPEN if not_shown else HOLDS), f"{model}, {way}: worse than way 3"
assert two_over_one["micro"] == OPEN, "micro: ways 1 and 2 must not be separable"
assert two_over_one["smollm2"] == HOLDS, "SmolLM2 must lose the task in way 2, and not in way 1"
assert losses("smollm2", two_way, "exact_").max() == 0, "SmolLM2 must lose everything in way 2"
assert more == HOLDS and cost["smollm2"].min() > cost["micro"].max(), "SmolLM2, micro, tiny"
sizes, _, drifts = (
    {m: of(sweep, x, model=m, steps=experiment.STEPS[m]) for m in MODELS} for x in FACTS
)
assert max(sizes["smollm2"]) < 0.015 < 0.15 < min(sizes["micro"] + sizes["tiny"]), "1 % and 20 %"
assert {round(x, 2) for x in of(sweep, "weight_error")} == {0.09}, "all have the same error"
assert abs(drifts["smollm2"][0] - 0.43) < 0.01, "SmolLM2's drift"
assert max(drifts["micro"] + drifts["tiny"]) < 0.01, "the small models drift less"

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
# After 6 steps it loses a mean of 70 % of what was learned, and after 200 steps less than 1 %. The
# reverse is tempting: after 200 steps there is more to lose.
# </details>

# %%
quantized, _ = minilora.load("micro", "nf4-dq")
untrained = scores_of({}, quantized, data.load_rows("questions", "valid"))["loss"]


def lost_share(apart, merged):
    """Return the share of what was learned that merging and quantizing loses."""
    return (merged - apart) / (untrained - apart)


lost, cells = [], []
for steps in (*experiment.SHORT, experiment.STEPS["micro"]):
    size, apart, merged = (seeds_of(x, "micro", steps=steps) for x in ("size", "nf4", "nf4_merged"))
    lost.append(lost_share(apart, merged))
    means = [f"{x.mean():.3f}" for x in (apart, merged)]
    cells.append([f"{steps} steps", spread(size, 3), *means, spread(lost[-1], 3)])
table(["micro on NF4", "‖ΔW‖/‖W‖", "way 3", "way 2", "share lost in way 2"], cells)
first, second, last = lost
claims = {"6 steps lose more than 25": first - second, "25 more than 200": second - last}
smaller = [claim(sentence, differences) for sentence, differences in claims.items()]

# %% [markdown]
# So within one model (0.1 million parameters) and one task, fewer steps, with a smaller update,
# lose a larger share in the mean.

# %%
# Checks
assert smaller == [HOLDS, HOLDS], "the smaller the update, the larger the share that way 2 loses"
assert abs(first.mean() - 0.7) < 0.03 and last.max() < 0.01, "70 % after 6 steps, 1 % after 200"
again = experiment.run(("micro", "nf4", 6, 0))
live_lost = lost_share(again["nf4"], again["nf4_merged"])
assert belongs(live_lost, first, second), "the run must agree with the sweep"

# %% [markdown]
# ## Why way 2 loses a small update, and way 1 does not
#
# Quantizing Ŵ + ΔW rounds most of a small update away, and quantizing W + ΔW keeps it in the mean.
# The study [Merging into four bits](merging_into_four_bits.py) shows both on random weights.
#
# **Predict.** Then a QLoRA adapter could also be merged into the *original* W and quantized once.
# But it was trained with the error of Ŵ in place. When is this better than way 2?
#
# <details><summary>Answer</summary>
# After 6 steps of `micro` and on SmolLM2, where the update is 4 % of W or less. After 200 steps of
# `micro` it is worse. "Never" is tempting, because the adapter was not trained on W.
# </details>

# %%
into_which = []
for model, steps in (("micro", 6), ("smollm2", 40), ("micro", 200)):
    ways = [np.log(seeds_of(x, model, steps=steps)) for x in ("nf4_merged", "dense_merged")]
    sentence = f"{model}, {steps} steps: way 2's loss over that of quantize(W + ΔW), > 1 times"
    into_which.append(claim(sentence, ways[0] - ways[1], times=True))

# %%
# Checks
assert into_which == [HOLDS, HOLDS, FAILS], "into W, into W, into Ŵ"
largest = max(seeds_of("size", "micro", steps=6).max(), seeds_of("size", "smollm2").max())
assert largest < 0.04, "4 % or less"
into_original = seeds_of("dense_merged", "smollm2")
assert into_original.max() < 0.1, "SmolLM2's QLoRA adapter must survive quantize(W + ΔW)"

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
# 1. `short(200, 20)`: train for 50 steps. Which way suffers most from smaller updates?
# 2. `"dense_merged"`: add a way ("nf4", "dense_merged") to `WAYS`. How good is it on SmolLM2?
#
# **Where to stop with a debugger.** `served` in `serving_sweep.py`: the models of each way.
#
# **Exercises.** test-merge, lora-merge.
#
# **Further reading.** [peft#2105](https://github.com/huggingface/peft/issues/2105), on the base to
# merge into; [transformers#31293](https://github.com/huggingface/transformers/issues/31293), a
# merge that ruins a model. QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

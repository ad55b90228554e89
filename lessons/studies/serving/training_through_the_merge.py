# %% [markdown]
# # Training through the merge
#
# **The question.** Merging a QLoRA adapter and quantizing the result again loses a part of what was
# learned. Can the adapter be trained so that it loses nothing?
#
# Yes, if the forward pass already computes with the weight that will be served. Is it also better?
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 15 seconds to run, fifteen minutes to read. **You need:** lessons 2 and 3, and the study
# [Merging into four bits](merging_into_four_bits.py).

# %%
import numpy as np

import minilora
from minilora import nf4
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers import common, through_merge
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    of,
    read_sweep,
    scores_of,
    short,
    spread,
    table,
)
from minilora.lessons.studies.serving import through_merge_sweep as experiment
from minilora.lessons.studies.serving.merging_sweep import median_size
from minilora.lora import adapted_paths
from minilora.tree import get, num_parameters

SCHEME, WAYS = experiment.SCHEME, experiment.WAYS
APART, THROUGH = ("nf4", "apart"), ("through", "merged")
sweep = read_sweep("through_merge")

# %% [markdown]
# ## A forward pass through the merge
#
# QLoRA computes h = Ŵx + ΔWx, with Ŵ = NF4(W) and ΔW = (α/r)·BA. Here the forward pass computes
#
#     h = Qx,   Q = NF4(W + ΔW)
#
# The derivative of rounding is zero almost everywhere, so A and B would not learn. The
# *straight-through estimator* replaces the derivative of NF4 by 1. Then ∂L/∂W' = gᵀx for
# W' = W + ΔW and g = ∂L/∂h, and the chain rule gives
#
#     ∂L/∂A = s·(gB)ᵀx    ∂L/∂B = s·gᵀ(xAᵀ)    ∂L/∂x = gQ
#
# The first two are LoRA's own gradients. The matrix gᵀx is never computed. See
# `straight_through` in `lessons/helpers/through_merge.py`: `operations` returns the operations of
# the model, and nothing else changes.
#
# L4Q (Jeon et al. 2024, [arXiv:2402.04902](https://arxiv.org/abs/2402.04902)) also combines the
# weights before quantizing them, and does not store weight gradients. It trains the scales, too.
# Here they are the absmax of W + ΔW, and so they follow from A and B. Two papers reach an exact
# merge by restricting the update: LoTA-QAF to whole steps of the grid (Chen et al. 2025,
# [arXiv:2505.18724](https://arxiv.org/abs/2505.18724)), QA-LoRA to the offsets of the groups (Xu et
# al. 2023, [arXiv:2309.14717](https://arxiv.org/abs/2309.14717)).
#
# **Predict.** After training, `minilora.merge` and `minilora.quantize` make a 4-bit model without
# an adapter. In how many of its codes and scales does it differ from the trained model?
#
# <details><summary>Answer</summary>
# In none: both are NF4(W + ΔW), computed by the same functions. "In a few" is tempting, because
# each of the other ways to merge rounds once more after training.
# </details>

# %%
RATE = experiment.best_rate(sweep, "micro", "through", "merged")
done = experiment.trained("micro", "through", RATE, 0, steps=short(200, 20))
_, _, test = experiment.splits("micro")
served = experiment.four_bits(done.adapters, done.model)
trained_scores = scores_of(done.adapters, done.model, test)
served_scores = scores_of({}, served, test)


def in_forward(path):
    """Return the 4-bit weight that the forward pass uses for the adapted projection at `path`."""
    node = get(done.adapters, path)
    factors = node["lora_A"], node["lora_B"], node["lora_scaling"]
    return through_merge.merged(SCHEME, get(done.model.base, path)["weight"], *factors)


def differences(q, other):
    """Count the codes, and the stored numbers of the absmax, in which two weights differ."""
    one, two = q.stored_absmax, other.stored_absmax
    pairs = (one.codes, two.codes), (one.nested_absmax, two.nested_absmax), (one.offset, two.offset)
    return int((q.codes != other.codes).sum()), sum(int(np.sum(a != b)) for a, b in pairs)


paths = adapted_paths(done.adapters)
counted = [differences(in_forward(path), get(served.base, path)["weight"]) for path in paths]
codes, scales = np.sum(counted, axis=0)
print(f"{len(paths)} projections: {codes} bytes of codes differ, {scales} numbers of the scales")
print(f"held-out loss trained {trained_scores['loss']!r}, merged {served_scores['loss']!r}")

# %%
# Checks
assert codes == 0 and scales == 0, "the merged weights must be those of the forward pass, exactly"
assert trained_scores == served_scores, "so all scores must be equal, to the last bit"

# %% [markdown]
# ## Is it better?
#
# Each row of the tables ends with one 4-bit model, except QLoRA with the adapter apart, which is
# there for comparison. The sweep trains `micro` (0.1 million parameters), `tiny` (1 million) and
# SmolLM2 (135 million, in 24 steps of 2 tool calls). The learning rate of each way was tuned with
# seed 0 on other rows than those that are scored here. (SmolLM2 has two rates only, and the larger
# one was always better. Its file is in 4 bits already, in another format. LoftQ was not run on it.)
#
# **Predict.** On which of the three models does training through the merge have the lowest mean
# loss of all 4-bit models?
#
# <details><summary>Answer</summary>
# On `micro` and on SmolLM2, but on SmolLM2 a difference from QLoRA merged into W is not shown. On
# `tiny`, it does not have it. "On all" is tempting, because it is the only way that loses
# nothing after training.
# </details>

# %%
MODELS = {"micro": "micro", "tiny": "tiny", "smollm2": "SmolLM2"}


def column(model, training, way, prefix=""):
    """Return a column of the sweep at the best rate of a way, one number per seed."""
    rate = experiment.best_rate(sweep, model, training, way)
    found = {"model": model, "training": training, "rate": rate}
    return np.array([of(sweep, prefix + way, seed=seed, **found)[0] for seed in experiment.SEEDS])


ratios, verdicts = {}, {}  # of the loss of a way over that of training through NF4(W + ΔW)
for model, label in MODELS.items():
    through = column(model, "through", "merged")
    cells = []
    for training in experiment.TRAININGS[model]:
        for way, text in WAYS[training].items():
            losses, exact = (column(model, training, way, prefix) for prefix in ("", "exact_"))
            rate = experiment.best_rate(sweep, model, training, way)
            cells.append([text, f"{rate:g}", spread(losses, 4), f"{exact.mean():.0%}"])
            ratio = losses / through
            ratios[model, training, way] = ratio
            verdicts[model, training, way] = common.verdict(np.log(ratio))
            cells[-1].append("" if training == "through" else f"{(ratio > 1).sum()} of 5")
    table([f"{label}, five seeds", "rate", "loss", "exact match", "above through W"], cells)

# %% [markdown]
# - On `micro`, training through NF4(W + ΔW) has the lowest loss of all 4-bit models, in every seed.
#   It is not shown to differ from QLoRA with the adapter apart.
# - On `tiny`, QLoRA merged into NF4(Ŵ + ΔW) has a lower mean loss than training through NF4(W +
#   ΔW), and with seed 0 a lower tuning loss at each of the three rates. There, merging and
#   quantizing costs QLoRA little, so there is little to gain. Why training through the merge learns
#   less is not tested here.
# - On SmolLM2, QLoRA merged into NF4(Ŵ + ΔW) has more than five times the loss of training through
#   NF4(W + ΔW), and training on W has a higher loss, both in every seed. Training through
#   NF4(W + ΔW) is not shown to differ from QLoRA merged into W and quantized once, nor from QLoRA
#   with the adapter apart.

# %%
# Checks
four_bit = [(t, way) for t in WAYS for way in WAYS[t] if (t, way) not in (APART, THROUGH)]
for case in four_bit:
    assert verdicts["micro", *case] == common.HOLDS, f"micro, {case}: above through W"
    assert (ratios["micro", *case] > 1).all(), f"micro, {case}: in every seed"
assert verdicts["micro", *APART] == common.OPEN, "micro: QLoRA apart must not be separable"
assert verdicts["tiny", "nf4", "merged"] == common.FAILS, "tiny: QLoRA, merged, is below through W"
assert (ratios["smollm2", "nf4", "merged"] > 5).all(), "SmolLM2: NF4(Ŵ + ΔW) loses the task"
assert (ratios["smollm2", "dense", "merged"] > 1).all(), "SmolLM2: trained on W, in every seed"
for way in ("apart", "into_w"):
    assert verdicts["smollm2", "nf4", way] == common.OPEN, f"SmolLM2: {way} must not be separable"
for rate in experiment.RATES["tiny"]:
    tried = {"model": "tiny", "rate": rate, "seed": 0}
    qlora, through = (of(sweep, "tuning_merged", training=t, **tried) for t in ("nf4", "through"))
    assert qlora < through, f"tiny, {rate}: QLoRA, merged, has the lower tuning loss"
again, own = served_scores["loss"], column("micro", "through", "merged")
assert QUICK or agrees(again, own, column("micro", "nf4", "merged")), f"{again}: not the sweep's"

# %% [markdown]
# ## Why it starts from W, and not from Ŵ
#
# QLoRA's memory is small because the 16-bit W is gone. Then why not train through NF4(Ŵ + ΔW)?
#
# **Predict.** After three steps on `micro`, ΔW is 4 % of W in both runs. What share of the codes
# has changed?
#
# <details><summary>Answer</summary>
# About an eighth from W, and less than a twentieth from Ŵ. Each element of Ŵ *is* one of the
# sixteen values of its block, so a small ΔW does not reach the midpoint to the next value. This is
# the dead zone of the study [Merging into four bits](merging_into_four_bits.py). "The same share"
# is tempting, because both ΔW are of the same size.
# </details>

# %%
start = experiment.four_bits({}, minilora.load("micro").model)
cells = []
changed = {}
early_loss = {}
for training in ("through", "through_nf4"):
    early = experiment.trained("micro", training, RATE, 0, steps=3)
    after = experiment.four_bits(early.adapters, early.model)
    pairs = [[get(m.base, path)["weight"] for m in (after, start)] for path in paths]
    moved = [nf4.unpack_4bit(q.codes) != nf4.unpack_4bit(q0.codes) for q, q0 in pairs]
    changed[training] = np.concatenate(moved).mean()
    early_loss[training] = early.scores["loss"]
    size = median_size(early.adapters, early.model)
    cells.append([WAYS[training]["merged"], f"{size:.3f}", f"{changed[training]:.1%}"])
    cells[-1].append(f"{early_loss[training]:.2f}")
table(["micro after 3 steps", "‖ΔW‖/‖W‖", "codes changed", "loss"], cells)

# %%
# Checks
assert changed["through"] > 0.08, "from W, about an eighth of the codes change"
assert changed["through_nf4"] < 0.05, "from Ŵ, few do"
assert early_loss["through"] < early_loss["through_nf4"] - 0.5, "so learning starts later"

# %% [markdown]
# ## What it costs
#
# The dense W stays in memory, in 16 bits at least (here in 32), and the backward pass needs the
# codes of each Q. QLoRA keeps about 4.1 bits per weight, and this training 16 + 4.1 or more. So it
# does not replace QLoRA where W does not fit into memory. After training, both serve 4.1 bits per
# weight, and this training leaves no adapter to compute.

# %%
in_w, in_q = (
    {path: get(m.base, path) for path in paths} for m in (minilora.load("micro").model, served)
)
dense, stored = nbytes(in_w), nbytes(in_q)
weights = num_parameters(in_q)
print(f"bits per adapted weight: QLoRA {8 * stored / weights:.3f}, ", end="")
print(f"through the merge {8 * (dense + stored) / weights:.3f} (W in float32)")
assert dense == 32 * weights / 8, "W is stored in float32"
assert 4.1 < 8 * stored / weights < 4.2, "NF4 with double quantization takes about 4.13 bits"

# %% [markdown]
# ## What was shown
#
# An adapter that is trained through NF4(W + ΔW) merges into 4 bits exactly: all codes, scales and
# scores are equal. On `micro` (0.1 million parameters, five seeds), its 4-bit model is also the
# best one in every seed. On `tiny` (1 million), QLoRA merged into Ŵ and quantized again is better.
# On SmolLM2 (135 million), it is not shown to differ from QLoRA merged into W and quantized once.
# So an exact merge does not always give a better model, and minilora has no option for it.
#
# L4Q reports a higher accuracy than quantizing first and fine-tuning then, on LLaMA and Mistral, in
# 4 and 3 bits. LoTA-QAF reports that LoRA in 16 bits is better on single tasks. Nothing here tests
# that: it would need models of billions of parameters, trained scales and ternary updates.
#
# **What to try.**
#
# 1. `steps=3`: how many steps does the run from Ŵ need until an eighth of the codes has changed?
# 2. `SCHEME` in `through_merge_sweep.py`: train through `int8`. Is there still a dead zone?
# 3. `minilora.merge(done.adapters, done.model)`: serve the dense W + ΔW, without quantizing it.
#    Which loss does it have, and why is it not lower?
#
# **Where to stop with a debugger.** `straight_through` in `lessons/helpers/through_merge.py`: the
# type of `q` in the forward pass.
#
# **Exercises.** test-merge, linear-4bit-backward, one-file-nearest.
#
# **Further reading.** The straight-through estimator: Bengio et al. 2013,
# [arXiv:1308.3432](https://arxiv.org/abs/1308.3432). QLoRA:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). LoftQ:
# [arXiv:2310.08659](https://arxiv.org/abs/2310.08659).

# %% [markdown]
# # Training through the merge
#
# **The question.** Merging a QLoRA adapter and quantizing the result again loses a part of what was
# learned. Can the adapter be trained so that it loses nothing?
#
# Yes, if the forward pass already computes with the weight that will be served, NF4(W + ΔW). Then
# merging is exact. Whether the served model is also better is a question for the seeds.
#
# **Continues:** [lesson 11](../../11_merge_combine_serve.py).
#
# **Time:** 20 seconds to run, fifteen minutes to read. **You need:** lessons 6 and 8, and the study
# [Merging into four bits](merging_into_four_bits.py).

# %%
import numpy as np

import minilora
from lessons.helpers import through_merge
from lessons.helpers.common import (
    QUICK,
    agrees,
    claim,
    of,
    read_sweep,
    scores_of,
    short,
    spread,
    table,
)
from lessons.studies.serving import through_merge_sweep as experiment
from minilora.evaluation.memory import nbytes
from minilora.lora import adapted_paths
from minilora.tree import get, num_parameters

SCHEME = experiment.SCHEME
sweep = read_sweep("through_merge")

# %% [markdown]
# ## A forward pass through the merge
#
# QLoRA computes h = Ŵx + ΔWx, with Ŵ = NF4(W) and ΔW = (α/r)·BA. Here the forward pass computes
#
#     h = Qx,   Q = NF4(W + ΔW)
#
# The derivative of rounding is zero almost everywhere, so A and B would not learn. The
# *straight-through estimator* takes the derivative of NF4 as 1. Then ∂L/∂W' = gᵀx for W' = W + ΔW
# and g = ∂L/∂h, and the chain rule gives
#
#     ∂L/∂A = s·(gB)ᵀx    ∂L/∂B = s·gᵀ(xAᵀ)    ∂L/∂x = gQ
#
# The first two are LoRA's own gradients. The matrix gᵀx is never computed. See
# `straight_through` in `lessons/helpers/through_merge.py`: `operations` returns operations for
# `minilora.train`, and nothing else changes.
#
# L4Q (Jeon et al. 2024, [arXiv:2402.04902](https://arxiv.org/abs/2402.04902)) also combines the
# weights before quantizing them, and does not store weight gradients. It trains the scales, too.
# Here they are the absmax of W + ΔW, and so they follow from A and B. LoTA-QAF and QA-LoRA reach an
# exact merge differently: their updates are restricted to what the grid of the quantized weight can
# hold (Chen et al. 2025, [arXiv:2505.18724](https://arxiv.org/abs/2505.18724); Xu et al. 2023,
# [arXiv:2309.14717](https://arxiv.org/abs/2309.14717)).
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
ops = through_merge.operations(SCHEME)
_, _, test = experiment.splits("micro")
served = experiment.four_bits(done.adapters, done.base)
trained_scores = scores_of(done.adapters, done.base, test, ops=ops)
served_scores = scores_of({}, served, test)


def in_forward(path):
    """Return the 4-bit weight that the forward pass uses for the adapted projection at `path`."""
    node = get(done.adapters, path)
    factors = node["lora_A"], node["lora_B"], node["lora_scaling"]
    return through_merge.merged(SCHEME, get(done.base, path)["weight"], *factors)


def differences(q, other):
    """Count the codes, and the stored numbers of the absmax, in which two weights differ."""
    one, two = q.stored_absmax, other.stored_absmax
    pairs = (one.codes, two.codes), (one.nested_absmax, two.nested_absmax), (one.offset, two.offset)
    return int((q.codes != other.codes).sum()), sum(int(np.sum(a != b)) for a, b in pairs)


paths = adapted_paths(done.adapters)
counted = [differences(in_forward(path), get(served, path)["weight"]) for path in paths]
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
# Each of these ways ends with one 4-bit model. (QLoRA with the adapter apart does not: it is the
# reference.) The sweep trains `micro` (0.1 million parameters), `tiny` (1 million) and SmolLM2 (135
# million, in 24 steps of 4 tool calls), with five seeds each. The learning rate of each way was
# tuned on other rows than those that are scored here.
#
# **Predict.** Which way has the lowest loss on each of the three models?
#
# <details><summary>Answer</summary>
# TODO
# </details>

# %%
MODELS = {"micro": "micro", "tiny": "tiny", "smollm2": "SmolLM2"}


def column(model, training, way, prefix=""):
    """Return a column of the sweep at the best rate of a way, one number per seed."""
    rate = experiment.best_rate(sweep, model, training, way)
    found = {"model": model, "training": training, "rate": rate}
    return np.array([of(sweep, prefix + way, seed=seed, **found)[0] for seed in experiment.SEEDS])


ratios = {}  # of the losses of a way and of training through the merge, one per seed
for model, label in MODELS.items():
    through = column(model, "through", "merged")
    cells = []
    for training in experiment.TRAININGS[model]:
        for way, text in experiment.WAYS[training].items():
            losses, exact = (column(model, training, way, prefix) for prefix in ("", "exact_"))
            ratios[model, training, way] = losses / through
            rate = experiment.best_rate(sweep, model, training, way)
            higher = f"{(losses > through).sum()} of 5" if training != "through" else ""
            cells.append([text, f"{rate}", spread(losses, 4), f"{exact.mean():.0%}", higher])
    table([f"{label}, five seeds", "rate", "loss", "exact match", "above through W"], cells)

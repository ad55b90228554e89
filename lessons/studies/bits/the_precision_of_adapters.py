# %% [markdown]
# # The precision of adapters
#
# **The question.** In which type may adapters be: float32, float16 or bfloat16? And why are
# activations and Adam's moments not in float16, either?
#
# float32 has 24 significant bits, float16 has 11, and bfloat16 has 8. But bfloat16 has float32's
# range, while float16 ends at 65504, and its smallest number above zero is 6e-8.
#
# **Continues:** [lesson 3](../../03_training_through_four_bits.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 3 and 7.

# %%
from itertools import pairwise

import numpy as np

from minilora import InputError, layers
from minilora.lessons.helpers.common import (
    HOLDS,
    QUICK,
    agrees,
    batch_of,
    claim,
    finetune,
    gradients_of,
    of,
    questions,
    read_sweep,
    short,
    table,
)
from minilora.rounding import round_to
from minilora.tree import arrays, flatten

BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
CONSTANT = {"scheme": "nf4-dq", "lr_schedule": "constant"}

# %% [markdown]
# ## Small steps
#
# A number in (2ᵉ, 2ᵉ⁺¹) with p significant bits has its neighbours at a distance of 2ᵉ⁻ᵖ⁺¹. A step
# of less than half of that, 2ᵉ⁻ᵖ, is lost when the sum is rounded. Adam's steps are about as large
# as the learning rate.
#
# ![The bits of float32, bfloat16 and float16: sign, exponent and
# fraction.](../../../figures/drawings/number_formats.svg)
#
# **Predict.** The rate is 6e-5, about 2⁻¹⁴, and the numbers of A are uniform within ±0.14. Which
# share of A does not move in bfloat16, and in float16?

# %%
RATE = 6e-5


def shares_that_stay(dtype):
    """Return the share of A that a training step leaves as it is: measured, predicted."""
    after, shares = [], []
    finetune(
        iters=20, learning_rate=RATE, adapter_dtype=dtype, **CONSTANT,
        on_step=lambda state, records: after.append(flatten(arrays(state.adapters))),
    )  # fmt: skip
    for old, new in pairwise(after[9:]):
        for path in old:
            if "lora_A" in path:
                half_gap = 2.0 ** (np.floor(np.log2(np.abs(old[path]) + 1e-30)) - BITS[dtype])
                shares.append([np.mean(old[path] == new[path]), np.mean(half_gap > RATE)])
    return np.mean(shares, axis=0)


stay = {dtype: shares_that_stay(dtype) for dtype in BITS}
cells = [[dtype, *(f"{share:.1%}" for share in shares)] for dtype, shares in stay.items()]
table(["type", "of A does not move", "predicted"], cells)

# %% [markdown]
# **Answer.** In bfloat16, steps of 2⁻¹⁴ are lost above 2⁻¹⁴⁺⁸ = 1/64, which is most of A. float16
# has a smaller range, but three bits more: there, they are lost above 1/8 only, less than a third
# of A.
#
# ## What that costs
#
# `adapter_dtypes_sweep.py` trains `micro` (0.1 million parameters) for 200 steps in each type, with
# eight seeds.
#
# **Predict.** At the rate 6e-5, most of A does not move in bfloat16. Does the adapter learn?

# %%
# Table
sweep = read_sweep("adapter_dtypes")


def losses(dtype, rate):
    """Return the loss after 200 steps, one per seed."""
    return np.array(of(sweep, "loss", adapter_dtype=dtype, learning_rate=rate))


verdicts = {}
for dtype, rate, least, most in (
    ("bfloat16", 6e-5, 1.2, 1.3),
    ("bfloat16", 4e-3, 1.05, 1.15),
    ("float16", 6e-5, 0.97, 1.03),
    ("float16", 4e-3, 0.97, 1.03),
):
    ratios = np.log(losses(dtype, rate) / losses("float32", rate))  # of each seed
    sentence = f"rate {rate:.0e}: {dtype} has {least} to {most} times the loss of float32"
    verdicts[dtype, rate] = claim(sentence, ratios, np.log(least), np.log(most), times=True)

# %% [markdown]
# **Answer.** Yes, but more slowly: B begins at zero, and close to zero the neighbours of a number
# are close in bfloat16, too. bfloat16's mean loss is a quarter higher than float32's at 6e-5 and a
# tenth higher at 4e-3. At both rates, float16's mean loss is that of float32, to 3 %.
#
# ## Where float16 fails
#
# So float16 is precise enough for the adapters of this model. minilora still computes activations,
# gradients and moments in float32: `adapter_dtype` only sets how the adapters are stored.
#
# **Predict.** Which of these leave the range of float16: a weight of 65520, RMSNorm of (300, 100,
# 1, 1), the gradient g of a `micro` that has learned, and g², of which Adam keeps an average?

# %%
try:
    round_to({"lora_B": np.float32([65520])}, "float16")
except InputError as error:
    refusal = str(error)
print(f"a weight of 65520: {refusal}")

activation = [[300, 100, 1, 1]]
with np.errstate(over="ignore"):
    in_float16 = layers.rms_norm(np.float16(activation), np.ones(4, np.float16), 1e-5)
in_float32 = layers.rms_norm(np.float32(activation), np.ones(4, np.float32), 1e-5)
print("an activation: RMSNorm gives", in_float16, "in place of", in_float32)

learned = finetune(iters=short(200, 60), adapter_dtype="bfloat16", **CONSTANT)
gradient = gradients_of(learned.adapters, learned.model, batch_of(questions()[:16]))
entries = np.concatenate([g.ravel() for g in gradient.values()])
squares = entries**2
lost = {"g": np.mean(np.float16(entries) == 0), "g²": np.mean(np.float16(squares) == 0)}
lost_in_bfloat16 = np.mean(round_to({"v": squares}, "bfloat16")["v"] == 0)
print(f"zero in float16: {lost['g']:.1%} of the entries of g, {lost['g²']:.1%} of those of g²")

# %% [markdown]
# **Answer.** All but g: the weight, 300² > 65504, and most g². (Adam's ε of 1e-8 is zero in
# float16, too, so m would be divided by zero.) The gradient is that of `micro` after 200 steps, on
# 16 rows of its training data.
#
# float16 fails by its *range*, at both ends. Loss scaling (Micikevicius et al. 2018) lifts small
# gradients and their squares; whether it keeps a whole run in range is not tested here. A weight
# that leaves the range of float16 stops the run with an error that names the weight.
#
# ## What was shown
#
# bfloat16 lacks precision, and float16 lacks range. At a rate of 6e-5, most of A does not move in
# bfloat16, and less than a third in float16. On a model of 0.1 million parameters and at two rates,
# bfloat16's mean loss is a tenth and a quarter higher than float32's. But 300² is above the range
# of float16, and most squares of the gradient of a `micro` that has learned are below it. In
# bfloat16, fewer than one of 1,000 of them is zero.
#
# **What to try.**
#
# 1. `RATE = 6e-5`: use 6e-4. How much of A does not move now?
# 2. `"lora_A" in path`: look at `lora_B`. Why does more of it move?
# 3. `activation = [[300, 100, 1, 1]]`: find the largest number that RMSNorm survives in float16.
# 4. `squares = entries**2`: multiply the entries by 1,000 first, as loss scaling does. How much is
#    lost then?
#
# **Where to stop with a debugger.** `training.update` (`round_to` after the step),
# `rounding.round_to`.
#
# **Exercises.** adamw.
#
# **Further reading.** Kalamkar et al. 2019, *A Study of BFLOAT16 for Deep Learning Training*:
# [arXiv:1905.12322](https://arxiv.org/abs/1905.12322). Micikevicius et al. 2018, *Mixed Precision
# Training*: [arXiv:1710.03740](https://arxiv.org/abs/1710.03740).

# %%
# Checks
for dtype, (measured, predicted) in stay.items():
    assert abs(measured - predicted) < 0.15, f"{dtype}: measured {measured}, not {predicted}"
for dtype, least, most in (("float32", 0, 1e-3), ("float16", 0.02, 0.3), ("bfloat16", 0.6, 1)):
    assert least <= stay[dtype][0] <= most, f"{dtype}: {stay[dtype][0]:.1%} of A does not move"
assert set(verdicts.values()) == {HOLDS}, "bfloat16 must be worse than float32, float16 like it"
assert "lora_B" in refusal, "float16 ends at 65504, and beyond it InputError names the weight"
assert not in_float16.any(), "x/√∞: the row must be silently zero in float16"
assert in_float32[0, 0] > 1, "and not in float32"
assert lost["g²"] > short(0.5, 0.05) and lost["g"] < 0.02, "g² must vanish in float16, g not"
assert np.float16(1e-8) == 0, "Adam's ε must be zero in float16"
assert lost_in_bfloat16 < 1e-3, "g² must not vanish in bfloat16"
seeds = losses("bfloat16", 4e-3)
assert len(seeds) == 8, "eight seeds"
again = learned.scores["loss"]  # a run of the sweep again
assert QUICK or agrees(again, seeds), f"{again}, in the sweep {seeds}"

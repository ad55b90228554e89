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
# **Time:** 10 seconds to run, 15 minutes to read. **You need:** lessons 3 and 7.

# %%
from itertools import pairwise

import numpy as np

import minilora
from minilora import InputError, TrainConfig, data, layers
from minilora.layers import value_and_grad
from minilora.lessons.helpers.common import (
    HOLDS,
    QUICK,
    belongs,
    claim,
    finetune,
    of,
    read_sweep,
    short,
    table,
)
from minilora.rounding import round_to
from minilora.tree import arrays, flatten, named_leaves

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
# **Predict.** Which of the two 16-bit types loses small steps? At a rate of 6e-5, which share of A
# does not move, if its entries are within ±0.14?
#
# <details><summary>Answer</summary>
# bfloat16 loses them: most of A does not move. In float16, less than a third does not. (float16 is
# tempting, because its range is small. But that range ends far below 6e-5, and float16 has three
# bits more than bfloat16, so its steps are 8 times finer.)
# </details>

# %%
RATE = 6e-5


def hundred_steps(dtype):
    """Add RATE to 0.1 a hundred times, and round after each step."""
    value = {"lora_A": np.full(1, 0.1, np.float32)}
    for _ in range(100):
        value = round_to({"lora_A": value["lora_A"] + np.float32(RATE)}, dtype)
    return value["lora_A"][0]


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


sums, stay, cells = {}, {}, []
for dtype in BITS:
    sums[dtype] = hundred_steps(dtype)
    stay[dtype] = shares_that_stay(dtype)
    cells.append([dtype, f"{sums[dtype]:.4f}", *(f"{share:.1%}" for share in stay[dtype])])
table(["type", f"0.1 + 100·{RATE:.0e}", "of A does not move", "predicted"], cells)

# %%
# Checks
for dtype, (measured, predicted) in stay.items():
    assert abs(measured - predicted) < 0.15, f"{dtype}: measured {measured}, not {predicted}"
    exact = abs(sums[dtype] - 0.106) < 1e-3
    assert exact == (dtype != "bfloat16"), f"{dtype}: only bfloat16 may lose a hundred steps"
for dtype, least, most in (("float32", 0, 1e-3), ("float16", 0.02, 0.3), ("bfloat16", 0.6, 1)):
    assert least <= stay[dtype][0] <= most, f"{dtype}: {stay[dtype][0]:.1%} of A does not move"

# %% [markdown]
# ## What that costs
#
# `adapter_dtypes_sweep.py` trains 200 steps in each type, at three rates: with eight seeds at the
# lowest and the highest rate, and with three seeds between.
#
# **Predict.** At the lowest of three rates, most of A does not move in bfloat16. Does the adapter
# learn?
#
# <details><summary>Answer</summary>
# Yes, but more slowly. ("It cannot learn" is tempting. But B begins at zero, and close to zero the
# neighbours of a number are close in bfloat16, too.)
# </details>

# %%
sweep = read_sweep("adapter_dtypes")
RATES = (6e-5, 5e-4, 4e-3)
loss, cells = {}, []
for dtype in BITS:
    cells.append([dtype])
    for rate in RATES:
        values = np.array(of(sweep, "loss", adapter_dtype=dtype, learning_rate=rate))
        loss[dtype, rate] = values
        cells[-1].append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
table(["loss after 200 steps", *(f"rate {rate:.0e}" for rate in RATES)], cells)

verdicts = {}
for dtype, rate, least, most in (
    ("bfloat16", 6e-5, 1.2, 1.3),
    ("bfloat16", 4e-3, 1.05, 1.15),
    ("float16", 6e-5, 0.97, 1.03),
    ("float16", 4e-3, 0.97, 1.03),
):
    ratios = np.log(loss[dtype, rate] / loss["float32", rate])  # of each seed
    sentence = f"rate {rate:.0e}: {dtype} has {least} to {most} times the loss of float32"
    verdicts[dtype, rate] = claim(sentence, ratios, np.log(least), np.log(most), times=True)

# %% [markdown]
# On this model of 0.1 million parameters, bfloat16's mean loss is a quarter higher than float32's
# at 6e-5 and a tenth higher at 4e-3. At both rates, float16's mean loss is that of float32, to 3 %.

# %%
# Checks
for dtype in BITS:
    seeds = [len(loss[dtype, rate]) for rate in RATES]
    assert seeds == [8, 3, 8], f"{dtype}: eight seeds, three between"
for rate in (6e-5, 4e-3):
    assert verdicts["bfloat16", rate] == HOLDS, f"bfloat16 must be worse than float32 at {rate}"
    assert verdicts["float16", rate] == HOLDS, f"float16 must be like float32 at {rate}"
if not QUICK:  # one run of the sweep again
    live = finetune(learning_rate=RATE, adapter_dtype="bfloat16", **CONSTANT).scores["loss"]
    cell, rival = loss["bfloat16", RATE], loss["float32", RATE]
    assert belongs(live, cell, rival), f"{live} is not the sweep's bfloat16"

# %% [markdown]
# ## Where float16 fails
#
# So float16 is precise enough for the adapters of this model. minilora still computes activations,
# gradients and moments in float32: `adapter_dtype` only sets how the adapters are stored.
#
# **Predict.** Which three quantities of a training step leave the range of float16?
#
# <details><summary>Answer</summary>
# A weight of 65520, the square of an activation of 300, and the terms of Adam's second moment in a
# model that has learned: most g² are zero in float16. (The gradient g itself is tempting. Nearly
# none of its entries are zero in float16.)
# </details>

# %%
largest = round_to({"lora_B": np.float32([65504])}, "float16")["lora_B"]
refusal = None
try:
    round_to({"lora_B": np.float32([65520])}, "float16")
except InputError as error:
    refusal = error
print(f"a weight: {largest[0]:.0f} stays; for 65520, minilora says: {refusal}")

activation = [[300, 100, 1, 1]]
with np.errstate(over="ignore"):
    in_float16 = layers.rms_norm(np.float16(activation), np.ones(4, np.float16), 1e-5)
in_float32 = layers.rms_norm(np.float32(activation), np.ones(4, np.float32), 1e-5)
print("an activation: 300² > 65504, so RMSNorm gives", in_float16, "in place of", in_float32)

learned = finetune(iters=short(150, 60), **CONSTANT)
tokenizer = minilora.load("micro").tokenizer
rows = data.load_rows("questions", "train")[:16]
examples, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))
batch = data.collate([[example] for example in examples])
_, gradient = value_and_grad(minilora.loss)(learned.adapters, learned.model, batch)
entries = np.concatenate([g.ravel() for _, g in named_leaves(gradient)])
squares = entries**2
lost = {"g": np.mean(np.float16(entries) == 0), "g²": np.mean(np.float16(squares) == 0)}
lost_in_bfloat16 = np.mean(round_to({"v": squares}, "bfloat16")["v"] == 0)
print(f"zero in float16: {lost['g']:.1%} of the entries of g, {lost['g²']:.1%} of those of g²,")
print("and Adam's ε of 1e-8, so m would be divided by zero")

# %% [markdown]
# The gradient is that of `micro`, a model of 0.1 million parameters, after 150 steps, on 16 rows of
# its training data. float16 fails by its *range*, at both ends. Loss scaling (Micikevicius et al.
# 2018) lifts small gradients and their squares; that it keeps a whole run in range is not tested
# here. A weight that leaves the range of float16 stops the run with an error that names the weight.

# %%
# Checks
assert largest[0] == 65504 and "lora_B" in str(refusal), (
    "float16 must end at 65504, and beyond it raise InputError"
)
assert not in_float16.any(), "x/√∞: the row must be silently zero in float16"
assert in_float32[0, 0] > 1, "and not in float32"
assert lost["g²"] > short(0.5, 0.05) and lost["g"] < 0.02, "g² must vanish in float16, g not"
assert np.float16(1e-8) == 0, "Adam's ε must be zero in float16"
assert lost_in_bfloat16 < 1e-3, "g² must not vanish in bfloat16"

# %% [markdown]
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
# 2. `np.full(1, 0.1, np.float32)`: begin at 0.01. Why does bfloat16 count better there?
# 3. `"lora_A" in path`: look at `lora_B`. Why does more of it move?
# 4. `activation = [[300, 100, 1, 1]]`: find the largest number that RMSNorm survives in float16.
# 5. `squares = entries**2`: multiply the entries by 1,000 first, as loss scaling does. How much is
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

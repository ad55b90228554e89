# %% [markdown]
# # When double quantization fails
#
# **The question.** 256 blocks share a scale of their absmax. What if one block is much larger than
# the others? And are the 256 values of double quantization better than evenly spaced ones?
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a second to run, eight minutes to read. **You need:** lesson 2.

# %%
import numpy as np

import minilora
from minilora import double_quant, nf4
from minilora.double_quant import double_dequantize, double_quantize
from minilora.lessons.helpers.codes import rms
from minilora.lessons.helpers.common import table
from minilora.tree import flatten

rng = np.random.default_rng(0)

# %% [markdown]
# ## One large block
#
# An absmax is wrong by up to half of the map's widest gap, which is 0.9/128 of the largest
# difference to the offset in its group of 256. If that is 143 times an absmax, the error can be
# larger than this absmax.
#
# **Predict.** 256 blocks have weights of the same size. Then one block is multiplied by f. How does
# the error of the *other* 255 grow with f?
#
# <details><summary>Answer</summary>
# Up to 100 it hardly grows. At 1,000 it is clearly larger. At 10,000 the absmax of all the other
# blocks come out below zero. At 100,000 all their weights have changed sign, but for those that
# round to zero. ("In proportion to f" is tempting, and it is so for large f. But up to 100, the
# error that comes from the absmax is hidden below NF4's own, 9 % of these weights.)
# </details>

# %%
blocks = (0.02 * rng.standard_normal((256, 64))).astype(np.float32)
FACTORS = [1, 10, 100, 1000, 10_000, 100_000]
others, negative, rows = [], [], []
for factor in FACTORS:
    w = blocks.copy()
    w[0] *= np.float32(factor)
    q = nf4.quantize(w, double_quant=True)
    others.append(rms((q.dequantize() - w)[1:]) / rms(w[1:]))
    negative.append(int((q.absmax < 0).sum()))
    rows.append([f"{factor:,}", f"{others[-1]:.3f}", negative[-1]])
table(["one block times", "error of the others", "absmax below zero"], rows)
opposite = np.mean(np.sign(q.dequantize()[1:]) == -np.sign(w[1:]))
print(f"at {FACTORS[-1]:,}, {opposite:.0%} of the other weights have the opposite sign")

# %% [markdown]
# Are trained weights like that?

# %%
trained = {}
for name in ("micro", "tiny"):
    leaves = flatten(minilora.load(name, "nf4-dq").model.base).values()
    scales = [q.absmax for q in leaves if isinstance(q, nf4.Quantized)]
    ratio = max(absmax.max() / np.median(absmax) for absmax in scales)
    trained[name] = ratio, min(absmax.min() for absmax in scales)
    print(f"{name}: the largest absmax of a weight is at most {ratio:.1f} times the median one")

# %%
# Checks
widest = np.diff(double_quant.DYNAMIC_MAP).max() / 2
assert abs(widest / (0.9 / 128) - 1) < 0.01 and 0.9 / 128 * 142 < 1 < 0.9 / 128 * 143
assert max(others[1:3]) < 1.05 * others[0], "up to 100, the error must hardly grow"
assert others[3] > 1.5 * others[0], "at 1,000, it must be clearly larger"
assert negative[:4] == [0] * 4 and negative[4] == 255, "from 10,000 on, every absmax is negative"
assert others[4] > 1, "and the error is larger than the weights"
zero = np.mean(q.dequantize()[1:] == 0)
assert opposite + zero == 1 and opposite > 0.9, "all change sign, but for those that are zero"
for name, (ratio, smallest) in trained.items():
    assert ratio < 10 and smallest > 0, f"{name}: trained weights must not be like that"

# %% [markdown]
# ## What is no longer true
#
# Plain NF4 has two properties that double quantization does not have.
#
# **Predict.** A weight is quantized, dequantized, and quantized again. Is the result the same?
#
# <details><summary>Answer</summary>
# For this normal weight: with plain NF4, yes. With double quantization, the codes are the same, but
# nearly all absmax change a little. ("The same" is tempting, because it is true of rounding to
# fixed values. But the offset and the scales are computed again, from other absmax.)
# </details>

# %%
w = rng.standard_normal((1024, 1024)).astype(np.float32)
absmax = np.abs(w).reshape(-1, 64).max(axis=1, keepdims=True)
again, rows = {}, []
for double in (False, True):
    q = nf4.quantize(w, double_quant=double)
    w_hat = q.dequantize()
    second = nf4.quantize(w_hat, double_quant=double)
    largest_error = (np.abs(w_hat - w).reshape(-1, 64) / absmax).max()
    same_codes = np.mean(second.codes == q.codes)
    same_absmax = np.mean(second.absmax == q.absmax)
    drift = rms(second.absmax / q.absmax - 1)
    again[double] = largest_error, same_codes, same_absmax, drift
    cells = [f"{largest_error:.4f}", f"{same_codes:.1%}", f"{same_absmax:.1%}", f"{drift:.0e}"]
    rows.append(["nf4-dq" if double else "nf4", *cells])
table(["", "largest |ŵ − w| / absmax", "same codes", "same absmax", "drift of the absmax"], rows)

# %% [markdown]
# The bound |ŵ − w| ≤ 0.152·absmax (lesson 2) does not hold either, because the absmax is rounded.

# %%
# Checks
for double, (largest_error, same_codes, same_absmax, drift) in again.items():
    assert same_codes == 1 and drift < 1e-3, "the codes must stay"
    assert same_absmax < 0.05 if double else same_absmax == 1, f"{same_absmax:.1%} stay"
    assert (largest_error > 0.15191) == double, "half of the widest gap is 0.15190"

# %% [markdown]
# ## The dynamic map or even steps?
#
# The offset, the mean of all absmax, is subtracted. The differences are divided by the largest
# magnitude of each 256, and rounded to the nearest of the 256 values of the dynamic map (Dettmers
# 2016). The map has 0, 1, and 254 values in seven decades, each decade with twice as many as the
# one below. The weights here are normal, or have *heavy tails*: some are far from all others
# (Student's t with three degrees of freedom).
#
# **Predict.** Which share of the map's values is within a tenth of zero? Does the map have less
# error than 255 evenly spaced values?
#
# <details><summary>Answer</summary>
# Half of the map's values are within a tenth of zero, although six of its seven decades are. For
# normal weights, fewer than a third of the differences are there, and even steps have less error.
# For heavy tails, more than half of the differences are there, and the map has less error.
# </details>

# %%
KINDS = {
    "normal": rng.standard_normal(2**20).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, 2**20).astype(np.float32),
}


def absmax_errors(absmax):
    """Quantize absmax (m,) in three ways; return their RMSE, and the numbers that are coded."""
    offset = double_quant.mean(absmax)
    centred = (absmax - offset).reshape(-1, double_quant.NESTED_BLOCK_SIZE)
    scale = np.abs(centred).max(axis=1, keepdims=True)
    even_steps = np.rint(centred / scale * 127) / 127 * scale + offset
    without_offset = double_quantize(absmax, np.float32(0))
    errors = {
        "dynamic map": rms(double_dequantize(double_quantize(absmax)) - absmax),
        "even steps": rms(even_steps.ravel() - absmax),
        "dynamic map, no offset": rms(double_dequantize(without_offset) - absmax),
    }
    return errors, centred / scale


errors, growth, rows = {}, {}, []
near = {"the map's values": np.mean(np.abs(double_quant.DYNAMIC_MAP) < 0.1)}
for kind, w in KINDS.items():
    once, twice = nf4.quantize(w), nf4.quantize(w, double_quant=True)
    growth[kind] = rms(twice.dequantize() - w) / rms(once.dequantize() - w) - 1
    errors[kind], coded = absmax_errors(once.absmax)
    near[f"the differences, {kind}"] = np.mean(np.abs(coded) < 0.1)
    rows.append([kind, *(f"{e:.4f}" for e in errors[kind].values()), f"{growth[kind]:.2%}"])
table(["RMSE of the absmax", *errors["normal"], "growth of the weights' error"], rows)
for name, share in near.items():
    print(f"within 0.1 of zero: {share:.0%} of {name}")

# %% [markdown]
# For normal weights, the offset reduces the error of the absmax by a factor of three, and even
# steps have a third less error than the map. All of it is small next to the error of NF4: with the
# map, the error of the weights grows by less than 0.1 % for normal weights, and by about 0.3 % for
# heavy tails.

# %%
# Checks
normal, heavy = errors.values()
ratio = normal["even steps"] / normal["dynamic map"]
assert 0.6 < ratio < 0.72, f"even steps must have a third less error (found: 0.67), not {ratio}"
by_offset = normal["dynamic map, no offset"] / normal["dynamic map"]
assert 2.8 < by_offset < 3.6, f"the offset must gain a factor of three, not {by_offset}"
assert heavy["even steps"] > 1.2 * heavy["dynamic map"], "the map must be better here (found: 1.7)"
of_map, of_normal, of_heavy = near.values()
assert abs(of_map - 0.5) < 0.01, "half of the map must be within 0.1 of zero"
assert of_normal < 1 / 3 and of_heavy > 0.5, "the coded differences near zero"
assert 0 < growth["normal"] < 1e-3, "less than 0.1 % more error for normal weights"
assert 2e-3 < growth["heavy-tailed"] < 5e-3, "about 0.3 % for heavy tails"

# %% [markdown]
# ## What was shown
#
# Double quantization fails if one block of 256 is 10,000 times as large as the others. In `micro`
# and `tiny`, no absmax is ten times the median one of its weight. Quantizing a second time changes
# the absmax, and an error can exceed plain NF4's bound. With even steps in place of the
# dynamic map, the absmax would have less error for normal weights and more for heavy tails.
#
# **What to try.**
#
# 1. `w[0] *= np.float32(factor)`: multiply half of the blocks. Is that better or worse?
# 2. `(256, 64)`: use 512 blocks. What happens to the second group of 256?
# 3. `FACTORS`: find the smallest factor with a negative absmax, between 1,000 and 10,000.
# 4. `* 127) / 127`: use 7, four bits. Is that still good?
#
# **Where to stop with a debugger.** `double_quant.double_quantize` (`blocks`, `step`; how many of
# `codes` differ from the nearest to `x`?).
#
# **Exercises.** one-file-double-quantize.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Dettmers 2016,
# *8-Bit Approximations*: [arXiv:1511.04561](https://arxiv.org/abs/1511.04561).

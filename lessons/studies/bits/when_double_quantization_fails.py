# %% [markdown]
# # When double quantization fails
#
# **The question.** 256 blocks share a scale of their absmax. What if one block is much larger than
# the others?
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a second to run, five minutes to read. **You need:** lesson 2.

# %%
import numpy as np

import minilora
from minilora import double_quant, nf4
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
# ## What was shown
#
# Double quantization fails if one block of 256 is 10,000 times as large as the others. In `micro`
# and `tiny`, no absmax is ten times the median one of its weight. Quantizing a second time changes
# the absmax, and an error can exceed plain NF4's bound.
#
# **What to try.**
#
# 1. `w[0] *= np.float32(factor)`: multiply half of the blocks. Is that better or worse?
# 2. `(256, 64)`: use 512 blocks. What happens to the second group of 256?
# 3. `FACTORS`: find the smallest factor with a negative absmax, between 1,000 and 10,000.
#
# **Where to stop with a debugger.** `double_quant.double_quantize` (`blocks`, `step`).
#
# **Exercises.** one-file-double-quantize.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

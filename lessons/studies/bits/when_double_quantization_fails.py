# %% [markdown]
# # When double quantization fails
#
# **The question.** 256 blocks share a scale of their absmax. What if one block is much larger than
# the others? And are the 256 values of double quantization better than evenly spaced ones?
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a second to run, six minutes to read. **You need:** lesson 2.

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

# %%
blocks = (0.02 * rng.standard_normal((256, 64))).astype(np.float32)
FACTORS = (1, 10, 100, 1000, 10_000, 100_000)
others, negative = {}, {}
for factor in FACTORS:
    w = blocks.copy()
    w[0] *= np.float32(factor)
    q = nf4.quantize(w, double_quant=True)
    others[factor] = rms((q.dequantize() - w)[1:]) / rms(w[1:])
    negative[factor] = int((q.absmax < 0).sum())
cells = [[f"{factor:,}", f"{others[factor]:.3f}", negative[factor]] for factor in FACTORS]
table(["one block times", "error of the others", "absmax below zero"], cells)
opposite = np.mean(np.sign(q.dequantize()[1:]) == -np.sign(w[1:]))
print(f"at the last factor, {opposite:.0%} of the other weights have the opposite sign")

# %% [markdown]
# **Answer.** Up to 100 it hardly grows: the error that comes from the absmax is hidden below NF4's
# own, 9 % of these weights. At 1,000 it is clearly larger. At 10,000 the absmax of all the other
# blocks come out below zero. At 100,000 all their weights have changed sign, but for those that
# round to zero.
#
# Are trained weights like that?

# %%
trained = {}
for name in ("micro", "tiny"):
    leaves = flatten(minilora.load(name, "nf4-dq").model.base).values()
    scales = [q.absmax for q in leaves if isinstance(q, nf4.Quantized)]
    trained[name] = max(absmax.max() / np.median(absmax) for absmax in scales)
    print(f"{name}: an absmax is at most {trained[name]:.1f} times the median one of its weight")

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

# %%
KINDS = {
    "normal": rng.standard_normal(2**20).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, 2**20).astype(np.float32),
}


def absmax_errors(absmax):
    """Quantize absmax (m,) in three ways; return their RMS errors, and the numbers to be coded."""
    offset = double_quant.mean(absmax)
    centred = (absmax - offset).reshape(-1, double_quant.NESTED_BLOCK_SIZE)
    scale = np.abs(centred).max(axis=1, keepdims=True)
    even_steps = np.rint(centred / scale * 127) / 127 * scale + offset
    errors = {
        "dynamic map": rms(double_dequantize(double_quantize(absmax)) - absmax),
        "even steps": rms(even_steps.ravel() - absmax),
        "no offset": rms(double_dequantize(double_quantize(absmax, np.float32(0))) - absmax),
    }
    return errors, centred / scale


errors, cells = {}, []
near = {"the map's values": np.mean(np.abs(double_quant.DYNAMIC_MAP) < 0.1)}
for kind, w in KINDS.items():
    errors[kind], coded = absmax_errors(nf4.quantize(w).absmax)
    near[f"the differences, {kind}"] = np.mean(np.abs(coded) < 0.1)
    cells.append([kind, *(f"{e:.4f}" for e in errors[kind].values())])
table(["RMS error of the absmax", *errors["normal"]], cells)
for name, share in near.items():
    print(f"within 0.1 of zero: {share:.0%} of {name}")

# %% [markdown]
# **Answer.** Half of the map's values, although six of its seven decades are there. For normal
# weights, fewer than a third of the differences are there, and even steps have a third less error.
# For heavy tails, more than half of the differences are there, and the map has less error. The
# offset reduces the error by a factor of three for normal weights. (All of it is small next to the
# error of NF4: lesson 2.)
#
# ## What was shown
#
# Double quantization fails if one block of 256 is 10,000 times as large as the others. In `micro`
# and `tiny`, no absmax is ten times the median one of its weight. With even steps in place of the
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

# %%
# Checks
widest = np.diff(double_quant.DYNAMIC_MAP).max() / 2
assert abs(widest / (0.9 / 128) - 1) < 0.01 and 142 < 128 / 0.9 < 143, "half of the widest gap"
assert max(others[10], others[100]) < 1.05 * others[1], "up to 100, the error must hardly grow"
assert others[1000] > 1.5 * others[1], "at 1,000, it must be clearly larger"
assert negative[1000] == 0 and negative[10_000] == 255, "at 10,000, every other absmax is negative"
zero = np.mean(q.dequantize()[1:] == 0)
assert opposite + zero == 1 and opposite > 0.9, "all change sign, but for those that are zero"
assert max(trained.values()) < 10, "trained weights must not be like that"
normal, heavy = errors.values()
ratio = normal["even steps"] / normal["dynamic map"]
assert 0.6 < ratio < 0.72, f"even steps must have a third less error (found: 0.67), not {ratio}"
assert 2.8 < normal["no offset"] / normal["dynamic map"] < 3.6, "the offset: a factor of three"
assert heavy["even steps"] > 1.2 * heavy["dynamic map"], "the map must be better here (found: 1.7)"
of_map, of_normal, of_heavy = near.values()
assert abs(of_map - 0.5) < 0.01, "half of the map must be within 0.1 of zero"
assert of_normal < 1 / 3 and of_heavy > 0.5, "the coded differences near zero"

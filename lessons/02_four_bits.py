# %% [markdown]
# # 2. Four bits
#
# **The question.** How can sixteen values represent a million weights? Which sixteen does NF4 use,
# and what do their scales cost?
#
# **Time:** a second to run, twelve minutes to read. **You need:** lesson 0.

# %%
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np

from minilora import double_quant, nf4
from minilora.lessons.helpers.codes import rms
from minilora.lessons.helpers.common import table

# %% [markdown]
# ## One block
#
# As in lesson 0, each weight of a block is divided by the [*absmax*](guide/glossary.md), the
# largest magnitude in the block, and stored as the index of the nearest of some fixed values from
# −1 to 1. In *int4*, these values are evenly spaced: −7/7, −6/7, … 7/7. So a weight is off by at
# most half a step, absmax/14.
#
# **Predict.** A block has the weights 0.9, −0.31, 0.05, 0.44, −0.72, 0.18, −0.09 and 0.6. Now the
# first becomes 10. How many of the other seven are still different from zero in int4?

# %%
INT4 = np.arange(-7, 8) / 7


def rounded(w, values, block_size=64):
    """Quantize w with sorted values and one absmax per block, and dequantize it."""
    blocks = w.reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    midpoints = (values[:-1] + values[1:]) / 2
    codes = np.searchsorted(midpoints, blocks / absmax)  # how many midpoints are below
    return (values[codes] * absmax).reshape(w.shape)


small = np.array([0.9, -0.31, 0.05, 0.44, -0.72, 0.18, -0.09, 0.6])
outlier = np.array([10, *small[1:]])
for block in (small, outlier):
    print("weights", block, " in int4", np.round(rounded(block, INT4, 8), 2))

# %% [markdown]
# **Answer.** One, −0.72, which comes back as −1.43. With 10 as the absmax, a step is 10/7 = 1.43,
# and all weights below half a step, 0.71, become zero. So an outlier spoils its own block and no
# other. Smaller blocks limit the damage, but each needs an absmax.
#
# ## Four codes of four bits
#
# - **NF4** has the sixteen values of lesson 0, and **int4** the fifteen from above.
# - **E2M1** is a float with two bits of exponent and one of mantissa: 0, ±0.5, ±1, ±1.5, ±2, ±3, ±4
#   and ±6, here divided by 6.
# - **FP4** is the default of bitsandbytes: E2M1 with ±1/192 in place of ±0.5/6.
#
# **Predict.** A million weights have a normal distribution. Which code has the least error on them,
# and which the most?

# %%
CODES = {
    "NF4": nf4.NF4,
    "int4": INT4,
    "E2M1": np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6,
    "FP4": np.unique(nf4.FP4),  # sorted, with one zero
}
w = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
error = {name: rms(rounded(w, values) - w) for name, values in CODES.items()}
table(["code", "error (RMS)"], [[name, f"{error[name]:.3f}"] for name in CODES])

# %%
# Picture
blocks = w.reshape(-1, 64)
_, (top, bottom) = plt.subplots(2, sharex=True, figsize=(7, 3), layout="constrained")
top.hist((blocks / np.abs(blocks).max(axis=1, keepdims=True)).ravel(), 101, color="0.8")
top.set(yticks=[], ylabel="weights")
for row, values in enumerate(CODES.values()):
    bottom.plot(values, [row] * len(values), "|", markersize=14, markeredgewidth=1.6)
bottom.set(yticks=range(4), yticklabels=CODES, ylim=(3.6, -0.6), xlabel="weight / absmax")
plt.show()

# %% [markdown]
# **Answer.** NF4 has the least error, 9 % of the weights' RMS (root mean square), which is 1. Its
# values are close together where most weights are, and it has one more than the others. FP4 has the
# most error: it has no value between 1/192 and 1/6. For other distributions, another code can be
# better. (In the picture, the bars at −1 and 1 are the largest weights of the blocks.)
#
# Here is one block, weight by weight. In the book, you can change the weights: add an outlier.
#
# ![A block of eight weights in NF4, E2M1, int4 and bitsandbytes'
# FP4](../figures/drawings/quantize_a_block.svg)
#
# ## Where NF4's values come from
#
# **You may skip this section.** Nothing later needs more than "NF4's values are quantiles".
#
# A normal number is below the *quantile* Q(u) with the probability u. The idea: cut the normal
# distribution into n bins of equal probability, and take the middle of each bin as a value. In the
# last bin, u goes from 1 − 1/n to 1. So the largest value is Q(1 − 1/(2n)).
#
# A weight of zero should stay zero. So NF4 has seven negative values, zero, and eight positive
# ones. Seven, zero and seven would be n = 15 bins; eight and eight, without zero, n = 16. NF4's
# authors take for the largest value the probability p, the mean of the two u:
#
# $$p = 1 - \frac{1}{2}\left(\frac{1}{2 \cdot 16} + \frac{1}{2 \cdot 15}\right)$$
#
# The other values need no bins: u goes from ½ (Q(½) is zero) to p, in eight equal steps for the
# positive values, and in seven for the magnitudes of the negative ones. All are divided by Q(p) =
# 1.85, so that the largest is 1.
#
# **Predict.** Which of zero's two neighbours is nearer to it?

# %%
Q = NormalDist().inv_cdf
p = 1 - (1 / 32 + 1 / 30) / 2
positive = [Q(0.5 + (p - 0.5) * step / 8) for step in range(1, 9)]
negative = [-Q(0.5 + (p - 0.5) * step / 7) for step in range(7, 0, -1)]
built = np.array([*negative, 0, *positive]) / Q(p)
print("built:   ", np.round(built, 3), "\nlesson 0:", np.round(nf4.NF4, 3))

# %% [markdown]
# **Answer.** The positive one (0.080, not −0.091): eight steps are smaller than seven. The widest
# gap is from −1 to −0.696. So a weight is off by at most half of it, 0.152·absmax. (The study [What
# makes a code good?](studies/bits/what_makes_a_code_good.py) asks whether these values are the
# best.)
#
# ## Double quantization
#
# A float32 absmax per 64 weights costs 32/64 = half a bit per weight. [Double
# quantization](guide/glossary.md) stores it in 8 bits:
#
# 1. Subtract the *offset*, the mean of the matrix's absmax values. (An absmax is never negative,
#    but half of the values of step 3 are.)
# 2. Divide each block of 256 differences by its largest magnitude, the *nested absmax*.
# 3. Store the index of one of 256 fixed values from −1 to 1, nearly always the nearest
#    (bitsandbytes rounds to a grid first).
#
# The offset and the nested absmax are float32. So a weight needs (without the offset, one per
# matrix)
#
# $$4 + \frac{8}{64} + \frac{32}{256 \cdot 64} = 4.127 \quad \text{bits, not} \quad
#   4 + \frac{32}{64} = 4.5$$
#
# ![The bytes of a weight: codes, codes of absmax, nested absmax,
# offset](../figures/drawings/double_quantized_bytes.svg)
#
# **Predict.** How many bytes does a matrix of 1024 × 1024 = 1,048,576 weights need with a float32
# per block, and how many with double quantization?

# %%
single, double = nf4.quantize(w), nf4.quantize(w, double_quant=True)
for q in (single, double):
    print(f"{q.nbytes:,} bytes, {8 * q.nbytes / w.size:.4f} bits per weight")
off = rms(double.absmax / single.absmax - 1)
before, after = (rms(q.dequantize() - w) for q in (single, double))
print(f"absmax: off by {off:.2%}; weights: {before:.5f} and {after:.5f}, {after / before - 1:.3%}")

# %% [markdown]
# **Answer.** There are 1,048,576/2 = 524,288 bytes of codes, and 1,048,576/64 = 16,384 blocks:
#
# - with a float32 each: 524,288 + 4 · 16,384 = 589,824 bytes
# - with 8 bits each: 524,288 + 16,384 + 4 · 16,384/256 + 4 = 540,932 bytes (the last 4 are the
#   offset)
#
# For a model of 65 billion weights, the 0.373 bits saved per weight are 3 GB.
#
# And the error? Double quantization changes an absmax by 0.2 % (RMS), and so all weights of its
# block. NF4 itself changes the weights by 9.2 %. Independent errors add as squares: √(9.2² +
# 0.2²) = 9.202, 0.02 % more.
#
# The study [When double quantization fails](studies/bits/when_double_quantization_fails.py) has
# weights with outliers, and asks whether the 256 values are the best ones.
#
# ## What was shown
#
# An outlier makes the steps of its whole block larger. On normal weights, NF4 has the least error
# of four codes: its values are quantiles of a normal distribution. Double quantization reduces 4.5
# bits per weight to 4.127, and adds less than 0.1 % of error on normal weights.
#
# **What to try.**
#
# 1. `outlier = np.array([10, *small[1:]])`: try 2. How many weights become zero?
# 2. `rounded(w, values)`: use blocks of 16. Which code gains most?
# 3. `p = 1 - (1 / 32 + 1 / 30) / 2`: make eight values, for 3 bits, in the same way. What is p?
#
# **Where to stop with a debugger.** `nf4.normalize` (`absmax`), `nf4.nearest`
# (`codebook.midpoints`), `double_quant.double_quantize` (`offset`, `nested_absmax`).
#
# **Exercises.** one-file-quantize, one-file-nearest, one-file-double-quantize, predict-bits,
# debug-blocks, measure-blocks.
#
# **Further reading.** QLoRA, Sec. 3: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Yoshida
# 2023 shows that NF4 is not optimal: [arXiv:2306.06965](https://arxiv.org/abs/2306.06965).

# %%
# Checks
for block in (small, outlier):
    largest_error = np.abs(rounded(block, INT4, 8) - block).max()
    assert largest_error <= np.abs(block).max() / 14 + 1e-12, "off by at most half a step"
assert np.count_nonzero(rounded(outlier, INT4, 8)) == 2, "only 10 and −0.72 remain"
assert [len(values) for values in CODES.values()] == [16, 15, 15, 15], "only NF4 has sixteen"
e2m1, fp4 = np.float32(CODES["E2M1"]), CODES["FP4"]
assert list(np.abs(e2m1[e2m1 != fp4])) == [np.float32(1 / 12)] * 2, "apart only at ±1/12"
assert list(np.abs(fp4[e2m1 != fp4])) == [np.float32(1 / 192)] * 2, "which is ±1/192 in FP4"
# five standard errors of the RMS of a million errors, 5·RMSE/√(2n), are at most 0.0005
for name, expected in {"NF4": 0.0920, "E2M1": 0.1057, "int4": 0.1077, "FP4": 0.1220}.items():
    assert abs(error[name] - expected) < 5e-4, f"{name}: {error[name]} is not {expected}"
# the package multiplies by 1/absmax: once in a million, that is on the other side of a midpoint
assert np.mean(single.dequantize() != rounded(w, nf4.NF4)) < 1e-5, "the package has another NF4"
# the published code has p = 0.9677083, and float32; dQ/dp is 14 there, and Q(p) is 1.85
assert np.abs(built - nf4.NF4).max() < (p - 0.9677083) * 14 / 1.85 + 2**-23, "built is not NF4"
gaps = np.diff(built)
assert gaps[7] < gaps[6], "eight steps are smaller than seven"
assert gaps.argmax() == 0 and abs(gaps[0] / 2 - 0.1519) < 5e-5, "the widest gap is from −1"
assert abs(Q(p) - 1.85) < 0.005, "the divisor of all values"
assert single.nbytes == 524_288 + 4 * 16_384 == 589_824, "codes, and a float32 per block"
assert double.nbytes == 524_288 + 16_384 + 4 * 64 + 4 == 540_932, "codes, bytes, scales, offset"
stored = double_quant.double_quantize(single.absmax)
scaled = (single.absmax - stored.offset).reshape(-1, 256) / stored.nested_absmax[:, None]
midpoints = (double_quant.DYNAMIC_MAP[1:] + double_quant.DYNAMIC_MAP[:-1]) / 2
differ = np.searchsorted(midpoints, scaled.ravel()) != stored.codes
assert 0 < np.mean(differ) < 0.005, "rarely, an absmax code is not that of the nearest value"
saved = (32 - 8 - 32 / 256) / 64
assert abs(saved * 65e9 / 8e9 - 3) < 0.05, "approximately 3 GB for a 65B model (QLoRA, Sec. 1)"
assert 0.0015 < off < 0.0025 and 0 < after / before - 1 < 1e-3, "0.2 %, and less than 0.1 %"
assert abs(np.hypot(before, off) / after - 1) < 8e-5, "independent errors add as squares"

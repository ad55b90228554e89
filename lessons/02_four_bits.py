# %% [markdown]
# # 2. Four bits
#
# **The question.** How can sixteen values represent a million weights? Which sixteen does NF4 use?
#
# Lesson 0 stored weights in NF4. This lesson compares NF4 with other codes, and derives its values.
#
# **Time:** a second to run, fifteen minutes to read. **You need:** lesson 0.

# %%
from statistics import NormalDist

import numpy as np

from minilora import nf4
from minilora.lessons.helpers.common import short, table

rng = np.random.default_rng(0)


def rms(x):
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


# %% [markdown]
# ## One block
#
# A weight matrix is cut into blocks of neighbouring numbers. A block stores its largest magnitude,
# the [*absmax*](guide/glossary.md). All its numbers, divided by the absmax, are in [−1, 1], and
# each is rounded to the nearest of a few fixed values. With k bits and evenly spaced values, these
# are q/M for q = −M … M, with M = 2ᵏ⁻¹ − 1: M is 7 for int4 and 127 for int8. So
#
# $$q = \mathrm{round}(M w/\mathrm{absmax}), \qquad \hat w = \mathrm{absmax} \cdot q/M,
#   \qquad |\hat w - w| \le \mathrm{absmax}/(2M)$$
#
# **Predict.** A block in int4 has the weights 0.9, −0.31, 0.05, 0.44, −0.72, 0.18, −0.09 and 0.6.
# Now the first becomes 10. How many of the other seven are still different from zero?
#
# <details><summary>Answer</summary>
# One, −0.72. With 10 as the absmax, the step between two values is 10/7 = 1.43, and all weights of
# a magnitude below half of it, 0.71, become zero. ("Most" is tempting, because only one weight has
# changed. But all share its scale.)
# </details>


# %%
def int4(w):
    """Quantize one block to int4: (codes −7 … 7, dequantized weights)."""
    absmax = np.abs(w).max()
    q = np.rint(w / absmax * 7)
    return q, q * absmax / 7


small = np.float32([0.9, -0.31, 0.05, 0.44, -0.72, 0.18, -0.09, 0.6])
outlier = np.float32([10, *small[1:]])
for w in (small, outlier):
    q, w_hat = int4(w)
    print("weights", w, " codes", q.astype(int), f" largest error {np.abs(w_hat - w).max():.3f}")

# %% [markdown]
# The bound on the error is proportional to the absmax, so one outlier can spoil its block: here,
# six of seven neighbours became zero. The block size decides how many neighbours an outlier can
# spoil.

# %%
# Checks
for w in (small, outlier):
    largest_error = np.abs(int4(w)[1] - w).max()
    assert largest_error <= np.abs(w).max() / 14 + 1e-6, "|ŵ − w| ≤ absmax · half a gap"
assert np.count_nonzero(int4(outlier)[0]) == 2, "only the outlier and −0.72 may remain"

# %% [markdown]
# ## Four codes of four bits
#
# Four codes are compared by their RMSE, the root of the mean squared error:
#
# - **NF4** has the values of lesson 0. Where they come from is the next section.
# - **int4** is evenly spaced.
# - **E2M1** is a float with a sign, two bits of exponent and one bit of mantissa: ±0, 0.5, 1, 1.5,
#   2, 3, 4 and 6, divided by 6.
# - **FP4** is bitsandbytes' version of E2M1. Where E2M1 has 1/12, it has 1/192.
#
# NF4 has sixteen different values. Each of the others has fifteen: int4 does not use −8, and the
# two floats have zero twice.
#
# **Predict.** The weights have a normal distribution, in blocks of 64. Which code is best and which
# is worst? By what factor is int8 better than int4?
#
# <details><summary>Answer</summary>
# Of the codes of four bits, NF4 has the least error and bitsandbytes' FP4 the most: it has a value
# at 1/192, next to zero, and nothing between there and 1/6. (FP4 is tempting, because floats are
# dense near zero, where most weights are.) The step of int8 is 7/127 of int4's, and so is its
# error: about 18 times smaller.
# </details>

# %%
n = short(2**20, 2**17)
normal = rng.standard_normal(n).astype(np.float32)
MAGNITUDES = {"e2m1": np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6, "int4": np.arange(8) / 7}
VALUES = {"nf4": nf4.NF4, "fp4": nf4.FP4}
for name, magnitudes in MAGNITUDES.items():
    VALUES[name] = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


def rounded(w, values, block_size=64):
    """Quantize and dequantize w (n,) with the values of a code and one absmax per block."""
    x, absmax = nf4.normalize(w, block_size)
    code = nf4.Codebook.from_values(values)
    return code.values[nf4.nearest(x, code)] * np.repeat(absmax, block_size)[: w.size]


error = {name: rms(rounded(normal, values) - normal) for name, values in VALUES.items()}
x, absmax = nf4.normalize(normal, 64)
error["int8"] = rms(np.rint(x * 127) / 127 * np.repeat(absmax, 64) - normal)
by_error = sorted(error, key=error.get)
table(["code", "RMSE on N(0, 1)"], [[name, f"{error[name]:.4f}"] for name in by_error])
even = np.linspace(-1, 1, 16, dtype=np.float32)  # int4 with all sixteen values, but without zero
even_error = rms(rounded(normal, even) - normal)
gained = (error["int4"] - even_error) / (error["int4"] - error["nf4"])
print(f"sixteen evenly spaced values: {even_error:.4f}, {gained:.0%} of the way from int4 to NF4")

# %% [markdown]
# The same for one block. The columns are in the order of the table:
#
# ![A block of eight weights in NF4, E2M1, int4 and bitsandbytes'
# FP4](../figures/drawings/quantize_a_block.svg)
#
# A sixteenth value is a part of NF4's advantage: sixteen *evenly* spaced values from −1 to 1 (they
# have no zero) are nearly half of the way from int4 to NF4. The rest comes from the places of the
# values.

# %%
# Checks
assert {name: len(np.unique(values)) for name, values in VALUES.items()} == {
    "nf4": 16, "fp4": 15, "e2m1": 15, "int4": 15,
}, "only NF4 has sixteen different values"  # fmt: skip
assert 0.4 < gained < 0.5, "a sixteenth value: nearly half of NF4's advantage over int4"
assert [name for name in by_error if name != "int8"] == ["nf4", "e2m1", "int4", "fp4"], "the order"
slack = short(5e-4, 15e-4)  # more than five standard errors
for name, expected in {"nf4": 0.0920, "e2m1": 0.1057, "int4": 0.1077, "fp4": 0.1220}.items():
    assert abs(error[name] - expected) < slack, f"{name}: {error[name]} is not {expected}"
assert abs(error["int4"] / error["int8"] / (127 / 7) - 1) < 0.05, "int8 errs 127/7 times less"
for name in ("nf4", "fp4"):  # the library packs bytes in a loop, and gives the same numbers
    w_hat = nf4.quantize(normal, 64, quant_type=name).dequantize()
    assert np.array_equal(w_hat, rounded(normal, VALUES[name])), f"{name}: nf4.quantize differs"

# %% [markdown]
# ## Where NF4's sixteen values come from
#
# NF4 is made for normal weights: it takes its values from the quantile function Q of the normal
# distribution. A normal number is below Q(p) with the probability p. The idea is that values at
# evenly spaced p are used equally often (the study [What makes a code
# good?](studies/bits/what_makes_a_code_good.py) tests it). The paper prints (QLoRA, Eq. 4):
#
# $$q_i = \frac{1}{2}\left(Q\!\left(\frac{i}{2^k + 1}\right) +
#   Q\!\left(\frac{i + 1}{2^k + 1}\right)\right)$$
#
# It gives no range for i. With i = 0 … 15 there are 2⁴ = 16 values, with i = 0 … 16 there are 17.
#
# **Predict.** Use k = 4 and i = 0. What is Q(0)?
#
# <details><summary>Answer</summary>
# Minus infinity: a normal number is below any finite number with a probability above 0. So the
# first value is infinite (and with i = 16 the last, too): the formula cannot be used as printed.
# (−1 is tempting, because NF4's first value is −1. But NF4's values are quantiles divided by the
# largest.)
# </details>


# %%
def quantile(p):
    """Compute the inverse of the normal distribution function, with its limits at 0 and 1."""
    if p in (0, 1):
        return np.inf if p else -np.inf
    return NormalDist().inv_cdf(p)


eq4 = [(quantile(i / 17) + quantile((i + 1) / 17)) / 2 for i in range(17)]
print("Eq. 4, i = 0 … 16:", np.round(eq4, 2))

# %% [markdown]
# The published code uses other quantiles:
#
# 1. Sixteen bins of equal probability have 1/16 each, fifteen have 1/15. The outermost value is in
#    the middle of its bin, so half a bin is outside, 1/32 or 1/30. The code takes the mean of both:
#    p = 1 − (1/32 + 1/30)/2.
# 2. Eight positive values are the quantiles at even steps from p down to ½, without ½ (its quantile
#    is 0). Seven negative values are made in the same way.
# 3. Zero is added, so that zero is stored exactly. All values are divided by the largest.
#
# ![NF4's sixteen values under a normal density](../figures/drawings/nf4_number_line.svg)

# %%
p = round(1 - (1 / 32 + 1 / 30) / 2, 7)
positive = [quantile(step) for step in np.linspace(p, 0.5, 9)[:-1]]
negative = [-quantile(step) for step in np.linspace(p, 0.5, 8)[:-1]]
built = np.sort([*positive, 0, *negative]) / max(positive)
half_gap = np.diff(nf4.NF4).max() / 2
print("built:    ", np.round(built, 4), "\npublished:", np.round(nf4.NF4, 4))
print(f"half of the widest gap: {half_gap:.7f}, so |ŵ − w| ≤ {half_gap:.3f}·absmax")

# %%
# Checks
assert eq4[0] == -np.inf and eq4[16] == np.inf, "i = 0 and i = 16 give infinite values"
assert np.abs(built - nf4.NF4).max() < 2**-23, "two units in the last place below 1, in float32"
assert abs(half_gap - 0.1519036) < 1e-7, "half of the widest gap of NF4"

# %% [markdown]
# ## What was shown
#
# A block stores one scale, and each weight the index of the nearest of sixteen values. NF4's values
# are scaled quantiles of a normal distribution, with an exact zero, but not those of the paper's
# Eq. 4.
#
# **What to try.**
#
# 1. `outlier = np.float32([10, *small[1:]])`: try 2. How many weights become zero?
# 2. `rounded(w, values, block_size=64)`: use blocks of 16. Which code gains most?
# 3. `p = round(1 - (1 / 32 + 1 / 30) / 2, 7)`: move p towards 1. How does `built` change?
#
# **Where to stop with a debugger.** `nf4.normalize` (`absmax`), `nf4.nearest`
# (`codebook.midpoints`).
#
# **Exercises.** one-file-quantize, one-file-nearest, debug-blocks, measure-blocks.
#
# **Further reading.** QLoRA, Sec. 3: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Yoshida
# 2023 rederives NF4: [arXiv:2306.06965](https://arxiv.org/abs/2306.06965).

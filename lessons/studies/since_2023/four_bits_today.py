# %% [markdown]
# # Four bits today
#
# **The question.** What do MXFP4 and NVFP4 change in a 4-bit block, and are they more accurate than
# NF4?
#
# The claims: MXFP4 (OCP Microscaling specification 1.0, 2023) gets by with one cheap scale per
# block. NVFP4 (NVIDIA 2025) reduces its error with smaller blocks and finer scales.
# The study [Four bits today](four_bits_today.py) asks which part helps, and what a model loses.
#
# **Continues:** [lesson 7](../../07_double_quantization.py).
#
# **Time:** a second to run, twelve minutes to read. **You need:** lesson 6 and the studies [What
# makes a code good?](../bits/what_makes_a_code_good.py) and [When double quantization
# fails](../bits/when_double_quantization_fails.py).

# %%
from functools import partial

import numpy as np

import minilora
from lessons.helpers.common import figure, short, table
from minilora import nf4
from minilora.evaluation import plot
from minilora.quant.schemes import is_projection
from minilora.tree import flatten

rng = np.random.default_rng(0)
n = short(2**20, 2**17)

# %% [markdown]
# ## Small floats
#
# The name counts the bits: E2M1 has 2 for the exponent and 1 for the mantissa, and a sign. With m
# bits of mantissa, the numbers between 2^k and 2^(k + 1) are 2^(k − m) apart. Below the smallest
# exponent, the steps stay as they are there, down to zero:
#
# - **E2M1** for the elements: m = 1, smallest exponent 0, largest value 6.
# - **E8M0** for MXFP4's scales: m = 0, no sign and no zero: the powers 2^−127 to 2^127.
# - **E4M3** for NVFP4's scales: m = 3, smallest exponent −6, largest value 448.
#
# **Predict.** How many magnitudes has E2M1? By what factor do neighbouring scales differ?
#
# <details><summary>Answer</summary>
# Eight: 0, 0.5, 1, 1.5, 2, 3, 4, 6. Neighbours differ by a factor of 2 in E8M0, and by at most
# 1.125 in E4M3, from 2^−6 on. In float32, which NF4 uses, they differ by a factor of less than
# 1.000001.
# </details>


# %%
def floor_log2(x):
    """Return ⌊log2 |x|⌋: frexp writes |x| = f · 2^k with ½ ≤ f < 1, so it is k − 1."""
    return np.frexp(x)[1] - 1


def round_float(x, mantissa_bits, smallest_exponent, largest):
    """Round x to the nearest small float, at a tie to the even one; clip to the largest."""
    step = np.exp2(np.maximum(floor_log2(x), smallest_exponent) - mantissa_bits)
    return np.clip(np.rint(x / step) * step, -largest, largest)


e2m1 = partial(round_float, mantissa_bits=1, smallest_exponent=0, largest=6)
e4m3 = partial(round_float, mantissa_bits=3, smallest_exponent=-6, largest=448)
magnitudes = np.unique(e2m1(np.linspace(0, 10, 1001)))
scales = np.unique(e4m3(np.geomspace(2**-6, 448, 10001)))
print("E2M1:", magnitudes, "E4M3 from 1 to 1.5:", scales[(scales >= 1) & (scales <= 1.5)])

# %% [markdown]
# ![A block of NF4 has 64 elements and a float32 scale, a block of MXFP4 32 and a power of two, a
# block of NVFP4 16 and an E4M3 scale. Below, the scales from 1 to
# 4.](../../../figures/drawings/four_bit_blocks.svg)

# %%
# Checks: the definitions of the specifications
bits = [(exponent, mantissa) for exponent in range(4) for mantissa in range(2)]
defined = [2.0 ** (e - 1) * (1 + m / 2) if e else m / 2 for e, m in bits]  # the bias is 1
assert list(magnitudes) == defined, "E2M1: the values of all exponents and mantissas"
assert list(e2m1(np.array([2.5, 3.5, 5]))) == [2, 4, 4], "a tie goes to the even mantissa"
assert e4m3(2.0**-9) == 2**-9 and e4m3(2.0**-10) == 0, "the smallest E4M3 is 2^−9"
assert (scales[1:] / scales[:-1]).max() == 1.125, "neighbours in E4M3 differ by at most an eighth"
assert np.finfo(np.float32).eps < 1e-6, "and in float32 by less than a millionth"

# %% [markdown]
# ## The two formats
#
# In MXFP4, a weight is scale · element. The scale is a power of two: the largest one up to the
# absmax, divided by 4, the largest one in E2M1 (Sec. 6.3). In NVFP4, it is a product of two scales:
# a float32 per tensor and an E4M3 per block.
#
# **Predict.** By MXFP4's rule, absmax/scale is between 4 and 8, but E2M1 ends at 6. Some libraries
# round the scale up instead, so that nothing is clipped. Is the error then smaller?
#
# <details><summary>Answer</summary>
# Hardly for normal weights (by less than 1 %): three of ten blocks are clipped, and rounding up
# doubles all steps of these blocks. It helps with uniform weights from −1 to 1, of which almost
# every block is clipped.
# </details>


# %%
def blocks_of(w, size):
    """Return w (n,) as blocks (n/size, size), and the absmax (n/size, 1)."""
    return w.reshape(-1, size), np.abs(w).reshape(-1, size).max(axis=1, keepdims=True)


def mxfp4(w, up=False):
    """Return w (n,) after MXFP4; `up` rounds the scale up instead of down."""
    blocks, absmax = blocks_of(w, 32)
    exponent = np.ceil(np.log2(absmax / 6)) if up else floor_log2(absmax) - 2
    scale = np.exp2(np.clip(exponent, -127, 127))
    return (e2m1(blocks / scale) * scale).ravel()


def nvfp4(w):
    """Return w (n,) after NVFP4."""
    blocks, absmax = blocks_of(w, 16)
    per_tensor = absmax.max() / (6 * 448)  # brings the scales of the blocks into E4M3's range
    scale = e4m3(absmax / 6 / per_tensor) * per_tensor
    return (e2m1(blocks / np.maximum(scale, 1e-38)) * scale).ravel()


def int4(w):
    """Return w (n,) after int4, in blocks of 64."""
    blocks, absmax = blocks_of(w, 64)
    return (np.rint(7 * blocks / absmax) / 7 * absmax).ravel()


FORMATS = {  # the function, and bits per weight
    "NF4-DQ": (lambda w: nf4.quantize(w, 64, True).dequantize(), 4 + 8 / 64 + 32 / 2**14),
    "FP4": (lambda w: nf4.quantize(w, 64, quant_type="fp4").dequantize(), 4 + 32 / 64),
    "int4": (int4, 4 + 32 / 64),
    "MXFP4": (mxfp4, 4 + 8 / 32),
    "MXFP4, up": (partial(mxfp4, up=True), 4 + 8 / 32),
    "NVFP4": (nvfp4, 4 + 8 / 16),
}
micro = [w.ravel() for p, w in flatten(minilora.load("micro").base).items() if is_projection(p)]
WEIGHTS = {
    "normal": rng.standard_normal(n), "uniform": rng.uniform(-1, 1, n),
    "Laplace": rng.laplace(size=n), "micro": np.concatenate(micro).astype(np.float64),
}  # fmt: skip


def error(w, w_hat):
    """Return ‖ŵ − w‖/‖w‖."""
    return float(np.linalg.norm(w_hat - w) / np.linalg.norm(w))


E = {f: {d: error(w, run(w)) for d, w in WEIGHTS.items()} for f, (run, _) in FORMATS.items()}
rows = [[f, f"{FORMATS[f][1]:.3f}", *(f"{e:.4f}" for e in E[f].values())] for f in FORMATS]
table(["‖ŵ − w‖/‖w‖", "bits", *WEIGHTS], rows)
absmax = blocks_of(WEIGHTS["normal"], 32)[1]
clipped = np.mean(absmax / np.exp2(floor_log2(absmax) - 2) > 6)
print(f"MXFP4 clips the largest weight in {clipped:.0%} of the blocks of normal weights")

# %%
title = "NF4 is the best on normal weights, NVFP4 with heavy tails"
with figure("four_bits_today", "weights", "‖ŵ − w‖/‖w‖", title) as axes:
    for i, name in enumerate(("NF4-DQ", "int4", "MXFP4", "NVFP4")):
        style = {"color": plot.LINES[i]["color"], "hatch": ("", "//", "..", "xx")[i], "zorder": 2}
        axes.bar(np.arange(4) + 0.2 * i - 0.3, E[name].values(), 0.18, label=name, **style)
    axes.set_xticks(range(4), WEIGHTS)
    axes.legend(frameon=False, ncols=4, loc="upper left", fontsize=8)
    axes.set_ylim(0, 0.17)

# %% [markdown]
# ![Bars: the errors of four formats for four kinds of
# weights](../../../figures/four_bits_today.png)
#
# NVFP4 has a smaller error than MXFP4 on these weights, as claimed. But on normal weights and on
# those of `micro`, NF4 with double quantization has a smaller one than both, with fewer bits. NVFP4
# has the smallest on heavy tails (Laplace), int4 without tails (uniform). Speed is not measured
# here. (FP4 is bitsandbytes' code, whose values are not those of E2M1: lesson 6.)

# %%
# Checks. The standard error of these errors is below 0.3 % (the sums have 2^17 terms or more).
assert all(E["NVFP4"][d] < 0.9 * E["MXFP4"][d] for d in WEIGHTS), "NVFP4 must be better than MXFP4"
assert all(E["NF4-DQ"][d] < 0.98 * E["NVFP4"][d] for d in ("normal", "micro")), "NF4 must win"
best = {d: min(E, key=lambda f: E[f][d]) for d in WEIGHTS}
assert best["Laplace"] == "NVFP4" and best["uniform"] == "int4", "the tails decide"
assert best["normal"] == best["micro"] == "NF4-DQ", "NF4 must be the best on normal weights"
assert E["MXFP4, up"]["normal"] > 0.99 * E["MXFP4"]["normal"], "rounding up must not help"
assert E["MXFP4, up"]["uniform"] < 0.8 * E["MXFP4"]["uniform"], "but with uniform weights it must"
assert 0.28 < clipped < 0.31, "three of ten blocks are clipped"
largest = blocks_of(WEIGHTS["uniform"], 32)[1]
assert np.mean(largest > 0.75) > 0.99, "uniform: almost every block is clipped (above 6/8)"

# %% [markdown]
# ## What was shown
#
# On normal weights and those of `micro`, NF4 in 4.127 bits has a smaller error than NVFP4 in 4.5
# and MXFP4 in 4.25. NVFP4 has the smallest of the three on Laplace weights.
#
# **What to try.**
#
# 1. `absmax / 6` in `mxfp4`: use `absmax / 7`. Which blocks are clipped, and what is the error?
# 2. `rng.laplace(size=n)`: use `rng.standard_t(3, n)`. How far is NVFP4 ahead of NF4?
# 3. `blocks_of(w, 64)` in `int4`: use 16. Which format of 16 is the best on normal weights?
#
# **Where to stop with a debugger.** `round_float` (`step`), called by `nvfp4`.
#
# **Further reading.** [OCP Microscaling Formats
# 1.0](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf),
# [NVIDIA on
# NVFP4](https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/).
# [pytorch/ao#2035](https://github.com/pytorch/ao/issues/2035) asks to round MX's scale up. Cook et
# al. 2025 try two scales per block in NVFP4: [arXiv:2512.02010](https://arxiv.org/abs/2512.02010).

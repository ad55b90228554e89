# %% [markdown]
# # Four bits today
#
# **The question.** MXFP4, NVFP4 and NF4 differ in elements, block size and scales. Which format is
# the most accurate, which of the three parts makes it so, and what does a model lose?
#
# The claims: MXFP4 (OCP Microscaling specification 1.0, 2023) gets by with one cheap scale per
# block. NVFP4 (NVIDIA 2025) reduces its error with smaller blocks and finer scales.
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a quarter of a minute to run, a quarter of an hour to read. **You need:** lesson 2,
# and the study [When double quantization fails](../bits/when_double_quantization_fails.py).

# %%
from functools import partial

import numpy as np

import minilora
from minilora import TrainConfig, nf4
from minilora.double_quant import double_dequantize, double_quantize
from minilora.lessons.helpers.common import QUICK, held_out_notes, short, table
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten

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
# Eight: 0, 0.5, 1, 1.5, 2, 3, 4, 6. (Sixteen is tempting: it counts the signs.) Neighbours differ
# by a factor of 2 in E8M0, and by at most 1.125 in E4M3, from 2^−6 on. In float32, which NF4 uses,
# they differ by a factor of less than 1.000001.
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
print("E2M1:", magnitudes)

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
# ## One function for all formats
#
# An element is a number in [−1, 1], rounded to one of at most sixteen values. A scale is the absmax
# of a block, rounded to a number that can be stored. In MXFP4, the largest magnitude of a block is
# 6 · 2^k. The specification (Sec. 6.3) takes the k of the largest power of two up to the absmax,
# minus 2, because 4 = 2² is the largest power of two in E2M1. In NVFP4, the scale is a product of
# two: a float32 per tensor and an E4M3 per block.
#
# **Predict.** By MXFP4's rule, absmax/2^k is between 4 and 8, but E2M1 ends at 6. Some libraries
# round the scale up instead, so that nothing is clipped. Is the error then smaller?
#
# <details><summary>Answer</summary>
# Not for normal weights. Three of ten blocks are clipped, so "yes" is tempting, but rounding up
# doubles all steps of these blocks. It helps with uniform weights from −1 to 1, of which almost
# every block is clipped.
# </details>

# %%
ELEMENTS = {
    "NF4": lambda x: nf4.NF4[nf4.nearest(x.astype(np.float32), nf4.CODEBOOKS["nf4"])],
    "E2M1": lambda x: e2m1(6 * x) / 6,
    "int4": lambda x: np.rint(np.clip(7 * x, -7, 7)) / 7,
}


def exact(absmax):
    """Keep the absmax as it is: float32."""
    return absmax


def double(absmax):
    """Quantize the absmax to eight bits, as double quantization does."""
    stored = double_quantize(absmax.ravel().astype(np.float32))
    return double_dequantize(stored).reshape(absmax.shape)


def e8m0(absmax, up=False):
    """Round to 6 · 2^k with k = ⌊log2 absmax⌋ − 2, or up, so that no element is clipped."""
    k = np.ceil(np.log2(absmax / 6)) if up else floor_log2(absmax) - 2
    return 6 * np.exp2(np.clip(k, -127, 127))


def two_scales(absmax):
    """Round to an E4M3 per block times a float32 for all, which brings them into E4M3's range."""
    per_tensor = absmax.max() / 448
    return e4m3(absmax / per_tensor) * per_tensor


def blocks_of(w, size):
    """Return w (n,) as blocks (n/size, size), and the absmax (n/size, 1)."""
    return w.reshape(-1, size), np.abs(w).reshape(-1, size).max(axis=1, keepdims=True)


def quantized(w, element, size, scale):
    """Return w (n,) after rounding: elements by name, blocks of `size`, scales by a function."""
    blocks, absmax = blocks_of(w, size)
    largest = scale(absmax)
    return (ELEMENTS[element](blocks / np.maximum(largest, 1e-38)) * largest).ravel()


e8m0_up = partial(e8m0, up=True)
FORMATS = {
    "NF4-DQ": ("NF4", 64, double), "int4": ("int4", 64, exact), "MXFP4": ("E2M1", 32, e8m0),
    "MXFP4, up": ("E2M1", 32, e8m0_up), "NVFP4": ("E2M1", 16, two_scales),
}  # fmt: skip
BITS = {exact: 32, double: 8 + 32 / 256}  # of a scale; the others have 8
model, tokenizer = minilora.load("micro")
projections = {path: w for path, w in flatten(model.base).items() if is_projection(path)}
WEIGHTS = {
    "normal": rng.standard_normal(n), "uniform": rng.uniform(-1, 1, n),
    "Laplace": rng.laplace(size=n),
    "micro": np.concatenate([w.ravel() for w in projections.values()]).astype(np.float64),
}  # fmt: skip


def error(w, *how):
    """Return ‖ŵ − w‖/‖w‖ after `quantized`."""
    return np.linalg.norm(quantized(w, *how) - w) / np.linalg.norm(w)


errors, rows = {}, []
for name, (element, size, scale) in FORMATS.items():
    errors[name] = {d: error(w, element, size, scale) for d, w in WEIGHTS.items()}
    bits = 4 + BITS.get(scale, 8) / size
    rows.append([name, f"{bits:.3f}", *(f"{e:.4f}" for e in errors[name].values())])
table(["‖ŵ − w‖/‖w‖", "bits", *WEIGHTS], rows)
absmaxes = {d: blocks_of(WEIGHTS[d], 32)[1] for d in ("normal", "uniform")}
clipped = {d: np.mean(absmax > e8m0(absmax)) for d, absmax in absmaxes.items()}
print("blocks that MXFP4 clips:", {d: f"{share:.0%}" for d, share in clipped.items()})

# %% [markdown]
# NVFP4 has a smaller error than MXFP4 on these weights, as claimed. But on normal weights and on
# those of `micro` (0.1 million parameters), NF4 with double quantization has a smaller one than
# both, with fewer bits. NVFP4 has the smallest on heavy tails (Laplace), int4 without tails
# (uniform). Speed is not measured here. (The values of E2M1 are not those of bitsandbytes' FP4.)

# %%
# Checks. The standard error of these errors is below 0.3 % (the sums have 80,000 terms or more).
of_mx, of_nv, of_nf4, of_up = (errors[f] for f in ("MXFP4", "NVFP4", "NF4-DQ", "MXFP4, up"))
assert all(of_nv[d] < 0.9 * of_mx[d] for d in WEIGHTS), "NVFP4 must be better than MXFP4"
assert all(of_nf4[d] < 0.98 * of_nv[d] for d in ("normal", "micro")), "NF4 must win"
best = {d: min(errors, key=lambda f: errors[f][d]) for d in WEIGHTS}
assert best["Laplace"] == "NVFP4" and best["uniform"] == "int4", "the tails decide"
assert best["normal"] == best["micro"] == "NF4-DQ", "NF4 must be the best on normal weights"
assert 0.99 < of_up["normal"] / of_mx["normal"] < 1.02, "rounding up must not help"
assert of_up["uniform"] < 0.8 * of_mx["uniform"], "but with uniform weights it must"
assert 0.28 < clipped["normal"] < 0.31, "three of ten blocks are clipped"
assert clipped["uniform"] > 0.99, "uniform: almost every block is clipped"

# %% [markdown]
# ## Element, block or scale?
#
# **Predict.** On normal weights, NVFP4's error is 17 % below that of MXFP4. Is it because of its
# blocks or because of its scales? Would NF4's values do better in NVFP4's blocks?
#
# <details><summary>Answer</summary>
# More because of its scales. A power of two costs 14 %, E4M3 costs 1 %, and half the block gains
# 7 %. (Blocks are the tempting guess: they are half as large, and both formats have 8 bits per
# scale.) Yes: NF4's values in blocks of 16 have an error that is 14 % smaller.
# </details>

# %%
SIZES, found, rows = (16, 32, 64, 128), {}, []
for element in ELEMENTS:
    for scale in (exact, two_scales, e8m0):
        for size in SIZES:
            found[element, size, scale] = error(WEIGHTS["normal"], element, size, scale)
        cells = [f"{found[element, size, scale]:.4f}" for size in SIZES]
        rows.append([f"{element}, {scale.__name__}", *cells])
table(["error, blocks of", *map(str, SIZES)], rows)
mxfp4, nvfp4 = of_mx["normal"], of_nv["normal"]
exact_32, exact_16 = found["E2M1", 32, exact], found["E2M1", 16, exact]
cost_e8m0, cost_e4m3 = mxfp4 / exact_32 - 1, nvfp4 / exact_16 - 1
gain_16, gain_nf4 = 1 - exact_16 / exact_32, 1 - found["NF4", 16, two_scales] / nvfp4
print(f"a power of two costs {cost_e8m0:.1%}, E4M3 {cost_e4m3:.1%};")
print(f"blocks of 16 gain {gain_16:.1%}, NF4's values {gain_nf4:.1%}")

# %%
# Checks. The standard error of each of these errors is below 0.3 %.
assert abs(nvfp4 / mxfp4 - 0.83) < 0.01, "NVFP4's error must be 17 % below that of MXFP4"
assert abs(cost_e8m0 - 0.14) < 0.01 and abs(cost_e4m3 - 0.01) < 0.005, "a power of two is coarse"
assert abs(gain_16 - 0.07) < 0.01 and abs(gain_nf4 - 0.14) < 0.01, "blocks and values both gain"
assert min(found, key=found.get)[:2] == ("NF4", 16), "NF4's values in small blocks are the best"

# %% [markdown]
# ## The range of a scale
#
# **Predict.** One half of a tensor is 10⁷ times smaller than the other. Which scale loses it?
#
# <details><summary>Answer</summary>
# NVFP4's: the smallest E4M3 is 2^−9, 2 · 10⁵ times below 448. E8M0 spans 2^254. (E8M0 is tempting,
# because it is the coarser one. But coarse and narrow are not the same.)
# </details>

# %%
large = WEIGHTS["normal"][: 2**14]
small = 1e-7 * large
both, lost = np.append(large, small), {}
for scale in (exact, two_scales, e8m0):
    rest = quantized(both, "E2M1", 16, scale)[small.size :] - small
    lost[scale] = np.linalg.norm(rest) / np.linalg.norm(small)
    print(f"{scale.__name__}: the small half has an error of {lost[scale]:.2f}")

# %%
# Checks
assert lost[two_scales] == 1 and max(lost[exact], lost[e8m0]) < 0.13, "only E4M3 loses the half"

# %% [markdown]
# ## A model
#
# Each weight is also cut into blocks that are shifted by 4, 8, … elements. The range over these
# cuts is the error bar.
#
# **Predict.** On normal weights, MXFP4's error is nearly the same if its scale is rounded up. Is
# its cost in a model, too?
#
# <details><summary>Answer</summary>
# No: rounded down, it costs more in every cut. (Equal errors suggest equal costs.) A possible
# reason: clipping errs in one direction, towards zero.
# </details>

# %%
notes = held_out_notes(tokenizer, TrainConfig())[0][:64]
untouched = minilora.evaluate({}, model, notes)["loss"]


def cost(how, shift):
    """Return by how much rounding the projections raises the loss, in nats per token."""
    leaves = flatten(model.base)
    for path, w in projections.items():
        coarse = quantized(np.roll(w.ravel(), shift).astype(np.float64), *how)
        leaves[path] = np.roll(coarse, -shift).reshape(w.shape).astype(np.float32)
    rounded = model._replace(base=unflatten(leaves))
    return minilora.evaluate({}, rounded, notes)["loss"] - untouched


costs = {name: [cost(how, 4 * i) for i in range(short(16, 2))] for name, how in FORMATS.items()}
rows = [[f, *(f"{x:.5f}" for x in (np.mean(c), min(c), max(c)))] for f, c in costs.items()]
table(["cost on micro (nats per token)", "mean", "least", "most"], rows)

# %%
# Checks
mean = {name: np.mean(c) for name, c in costs.items()}
assert QUICK or mean["NF4-DQ"] < mean["NVFP4"] < mean["MXFP4, up"] < mean["MXFP4"], "the order"
assert min(costs["MXFP4"]) > max(costs["MXFP4, up"]), "clipping must cost more in every cut"

# %% [markdown]
# ## What was shown
#
# On normal weights and those of `micro` (0.1 million parameters), NF4 in 4.127 bits has a smaller
# error than NVFP4 in 4.5 and MXFP4 in 4.25. MXFP4 loses more by its scale, a power of two, than by
# its larger blocks. Rounding MX's scale up hardly changes the error of normal weights, but `micro`
# then loses less.
#
# **What to try.**
#
# 1. `rng.laplace(size=n)`: use `rng.standard_t(3, n)`. How far is NVFP4 ahead of NF4?
# 2. `SIZES`: with `e8m0`, smaller blocks of NF4 are worse. Try 1024. Where is the best size?
# 3. `np.roll(coarse, -shift)`: multiply by 1.02 against MXFP4's bias. Is that the whole cost?
# 4. `small = 1e-7 * large`: from which factor on does E4M3 keep the small half?
#
# **Where to stop with a debugger.** `round_float` (`step`), called by `two_scales`; `quantized`
# (`largest`).
#
# **Further reading.** [OCP Microscaling Formats
# 1.0](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf),
# Rouhani et al. 2023: [arXiv:2310.10537](https://arxiv.org/abs/2310.10537), and [NVIDIA on
# NVFP4](https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/).
# [pytorch/ao#2035](https://github.com/pytorch/ao/issues/2035) asks to round MX's scale up. Cook et
# al. 2025 try two scales per block in NVFP4: [arXiv:2512.02010](https://arxiv.org/abs/2512.02010).

# %% [markdown]
# # 6. Double quantization, and the estimate to the last byte
#
# **The question.** Four bits a weight are four and a half, because of the scales. What brings
# them to 4.127, what does that cost, and where is every byte?
#
# Time: about ten seconds. You need: lesson 5.

# %%
import struct
import tempfile
from pathlib import Path

import numpy as np
from common import figure, short, table

import minilora
from minilora import TrainConfig, nf4
from minilora.data.rows import held_out_notes
from minilora.double_quant import (
    BLOCK,
    DYNAMIC_MAP,
    double_dequantize,
    double_quantize,
    mean,
)
from minilora.evaluation import memory, plot
from minilora.evaluation.memory import nbytes
from minilora.formats import quantized_file
from minilora.tree import flatten, num_parameters

rng = np.random.default_rng(0)


def rms(x):
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


# %% [markdown]
# ## Half a bit, and how to get most of it back
#
# Blocks of B = 64 with a float32 absmax each are 4 + 32/64 bits a weight. Double quantization
# stores each absmax in eight bits, and one float32 for 256 of them:
#
#     4 + 32/B = 4.5        4 + 8/B + 32/(256·B) = 4.127   (QLoRA, Sec. 3)
#
# ![The bytes of a weight of shape (1536, 576) in NF4 with double quantization: two codes per byte,
# one 8-bit code per 64 weights, one float32 per 256 such codes, and one
# offset.](../figures/drawings/double_quantized_bytes.svg)
#
# **Predict:** a weight of 1024 × 1024. Does the formula give its bytes exactly?

# %%
w = rng.standard_normal((1024, 1024)).astype(np.float32)
single, double = nf4.quantize(w), nf4.quantize(w, double_quant=True)
for q, formula in ((single, 4 + 32 / 64), (double, 4 + 8 / 64 + 32 / (256 * 64))):
    print(f"{q.nbytes:,} bytes, {8 * q.nbytes / w.size:.6f} bits a weight, formula {formula:.6f}")
m = w.size // 64
assert single.nbytes == w.size // 2 + 4 * m
assert double.nbytes == w.size // 2 + m + 4 * m // 256 + 4
saved = (32 - 8 - 32 / 256) / 64
print(f"saved: {saved:.3f} bits a weight, {saved * 65e9 / 8e9:.2f} GB of 65 billion weights")
assert abs(saved * 65e9 / 8e9 - 3) < 0.05  # "approximately 3 GB for a 65B model" (QLoRA, Sec. 3)

# %% [markdown]
# All but four bytes: the offset, one float32 a tensor, which the formula leaves out.
#
# ## Packing
#
# Two codes share a byte, the first in the high half. Blocks run on across the rows of a weight,
# and a tensor of odd size gets one code more.
#
# **Predict:** which bytes hold 1, -1, ½, -¼, 0, 0? (NF4's zero is code 7.) What does a weight
# look like to a reader who takes the low half first?

# %%
block = np.zeros(64, np.float32)
block[:4] = 1, -1, 0.5, -0.25
print("bytes:", nf4.quantize(block).codes[:4].tobytes().hex(" "))
assert nf4.quantize(block).codes[:4].tobytes() == bytes.fromhex("f0 c4 77 77")
for shape, size, blocks in (((3, 5), 8, 1), ((7, 64), 224, 7), ((1, 1), 1, 1), ((2, 48), 48, 2)):
    q = nf4.quantize(rng.standard_normal(shape))
    assert (q.codes.size, q.scales.size) == (size, blocks)

swapped = nf4.Quantized(single.codes << 4 | single.codes >> 4, single.scales, w.shape, 64, "nf4")
error = rms(single.dequantize() - w), rms(swapped.dequantize() - w)
print(
    f"error {error[0]:.3f}, with the halves swapped {error[1]:.3f}, of a weight that is not there 1"
)
assert error[1] > 1.3
assert abs(rms(swapped.dequantize()) / rms(w) - 1) < 0.01

# %% [markdown]
# With the halves swapped, the numbers have the right size and distribution and are worse than
# none: neighbours have changed places, and √2 is the distance of two independent normal numbers.
# No histogram shows this bug; only a comparison of single elements does.
#
# ## The second level
#
# The absmax are all positive and much alike. So their mean, the offset, is taken off; what is
# left is divided by the largest of 256 and rounded to the "dynamic" map: seven decades, in each
# twice as many values as in the one below (Dettmers 2016).
#
# **Predict:** which share of the map's 256 values lies within a tenth of zero, and which share
# of the absmax? Would 255 evenly spaced values do better?

# %%
m = short(2**16, 2**12)  # absmax


def errors(w):
    """RMSE of its absmax in eight bits: the dynamic map, even steps, the map without an offset."""
    absmax = nf4.quantize(w).absmax
    offset = mean(absmax)
    centred = (absmax - offset).reshape(-1, BLOCK)
    largest = np.abs(centred).max(axis=1, keepdims=True)
    even = np.rint(centred / largest * 127) / 127 * largest + offset
    maps = double_quantize(absmax), double_quantize(absmax, np.float32(0))
    dynamic, bare = (rms(double_dequantize(q) - absmax) for q in maps)
    return [dynamic, rms(even.ravel() - absmax), bare], (centred / largest).ravel()


kinds = {
    "normal": rng.standard_normal(64 * m).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, 64 * m).astype(np.float32),
}
rows, coded = zip(*map(errors, kinds.values()))
table(["RMSE of the absmax", "dynamic map", "even steps", "dynamic, no offset"], [
    [kind, *(f"{e:.4f}" for e in row)] for kind, row in zip(kinds, rows)
])  # fmt: skip
normal, heavy = rows
near = [np.mean(np.abs(x) < 0.1) for x in (DYNAMIC_MAP, *coded)]
print(f"within 0.1 of zero: {near[0]:.0%} of the map")
print("  {:.0%} of the absmax if weights are normal, {:.0%} if heavy-tailed".format(*near[1:]))
assert normal[1] < 0.8 * normal[0] < 0.5 * normal[2]  # found: 0.67, and 3.2 times
assert heavy[1] > 1.2 * heavy[0]  # found: 1.7
assert abs(near[0] - 0.5) < 0.01 and near[1] < 0.35 and near[2] > 0.5

# %% [markdown]
# The offset is worth a factor of three. The map is not worth anything where weights are normal:
# half of its values lie where fewer than a third of the absmax are, and even steps would err a
# third less. It is made for numbers of very different size, and pays when weights have heavy
# tails.
#
# ## What it costs
#
# **Predict:** eight bits in place of 32 for each scale: how much larger is the error of the
# weights, how much more does the model lose? And what is no longer true?

# %%
more = [rms(nf4.quantize(w, double_quant=True).dequantize() - w)
        / rms(nf4.quantize(w).dequantize() - w) - 1 for w in kinds.values()]  # fmt: skip
print("more RMSE: {:.3%} for normal weights, {:.3%} for heavy-tailed ones".format(*more))
assert 0 < more[0] < 1e-3 and more[1] < 1e-2  # found: 0.025 %, 0.3 %

for name in short(("micro", "tiny"), ("micro",)):
    config, base, tokenizer = minilora.load(name)
    notes = held_out_notes(tokenizer, TrainConfig())[0][: short(256, 64)]
    dense, once, twice = (
        minilora.evaluate({}, minilora.quantize(base, scheme), notes, config)["loss"]
        for scheme in ("none", "nf4", "nf4-dq")
    )
    print(f"{name}: NF4 costs {once - dense:.1e} nats a token, its double {twice - once:.0e} more")
    assert abs(twice - once) < 0.2 * (once - dense)  # found: less than a fortieth

for name, q in (("nf4", single), ("nf4-dq", double)):
    again = nf4.quantize(q.dequantize(), double_quant=q is double)
    same = np.mean(again.codes == q.codes), np.mean(again.absmax == q.absmax)
    drift = rms(again.absmax / q.absmax - 1)
    error = np.abs(q.dequantize() - w).reshape(-1, 64).max(axis=1) / single.absmax
    print(f"{name}: largest error {error.max():.4f} absmax; quantized once more, the same:")
    print(f"  {same[0]:.1%} of the codes, {same[1]:.1%} of the absmax, which move by {drift:.0e}")
    assert same[0] == 1 and (same[1] == 1) == (q is single) and drift < 1e-3
    assert (error.max() > 0.15191) == (q is double)  # half the widest gap is 0.15190

# %% [markdown]
# Next to nothing: the scales were never the problem. What is lost are two certainties. |ŵ - w| ≤
# 0.152·absmax no longer holds, as the absmax itself moves. And quantizing what was dequantized
# is no longer the identity: the codes stay, but nearly all absmax move a little, since mean and
# largest do.
#
# ## A negative largest magnitude
#
# **Predict:** 256 blocks of weights of one size; then one block becomes f times as large. How
# does the error of the *other* 255 grow with f?

# %%
blocks = (0.02 * rng.standard_normal((256, 64))).astype(np.float32)
FACTORS = [1, 10, 100, 1000, 10_000, 100_000]
others, negative = [], []
for f in FACTORS:
    wild = blocks * np.where(np.arange(256) == 0, np.float32(f), np.float32(1))[:, None]
    q = nf4.quantize(wild, double_quant=True)
    others.append(rms((q.dequantize() - wild)[1:]) / rms(wild[1:]))
    negative.append(int((q.absmax < 0).sum()))
table(["one block times", "error of the others", "absmax below zero"], [
    [f"{f:,}", f"{e:.3f}", k] for f, e, k in zip(FACTORS, others, negative)
])  # fmt: skip
q = nf4.quantize(wild, double_quant=True)
opposite = np.mean(np.sign(q.dequantize()[1:]) == -np.sign(wild[1:]))
print(f"then {opposite:.0%} of the other weights have the opposite sign")
assert others[1] < 1.1 * others[0] and others[3] > 1.5 * others[0]  # at 10 and at 1000
assert negative[:4] == [0] * 4 and negative[4] == 255 and others[4] > 1

# %% [markdown]
# An absmax is off by up to half the map's widest gap, 0.9/128 of the largest in its group of
# 256. If that one is hundreds of times the size of the others, the offset and the error are
# larger than they are, and an absmax can come out below zero: all weights of its block change
# sign. bitsandbytes does the same, bit for bit. Trained weights are not like that, and it is
# worth a look that they are not:

# %%
for name in ("micro", "tiny"):
    quantized = flatten(minilora.quantize(minilora.load(name)[1], "nf4-dq"))
    weights = [q for q in quantized.values() if isinstance(q, nf4.Quantized)]
    ratio = max(q.absmax.max() / np.median(q.absmax) for q in weights)
    print(f"{name}: the largest absmax of a weight is at most {ratio:.1f} times the median one")
    assert ratio < 10 and min(q.absmax.min() for q in weights) > 0

# %%
labels = ["distance from zero, in units of the largest", "factor on the weights of one block"]
titles = ["where the map's values and the absmax lie", "the error of the 255 blocks beside it"]
ylabels = ["share nearer to zero (%)", "RMSE / RMS of w"]
with figure("double_quantization", labels, ylabels, titles, width=8.4, columns=2) as (left, right):
    named = zip(("the map's values", *(f"absmax, {k}" for k in kinds)), (DYNAMIC_MAP, *coded))
    for (label, x), style in zip(named, plot.LINES):
        at = np.linspace(0, 1, 101)
        left.plot(at, [100 * np.mean(np.abs(x) <= a) for a in at], label=label, **style)
    left.legend(frameon=False, loc="lower right")
    once = rms((nf4.quantize(blocks).dequantize() - blocks)[1:]) / rms(blocks[1:])
    right.plot(FACTORS, others, marker="o", label="double quantization", **plot.LINES[0])
    right.plot(FACTORS, [once] * len(FACTORS), marker="s", label="float32 absmax", **plot.LINES[1])
    right.set(xscale="log", yscale="log")
    right.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Left: half of the map's values lie within a tenth of zero, fewer of the absmax. Right: beyond a
# factor of 100 the neighbours' error grows](../figures/double_quantization.png)
#
# ## The estimate
#
# **Predict:** `tiny` has 1,016,960 parameters. Is it 4.127/32 of its dense size in NF4 with
# double quantization? Which part of it is the largest? And on disk, in bitsandbytes' layout?
#
# ![Where the bytes of the embedded model tiny are in NF4 with double quantization: the embedding
# in 16 bits, the 4-bit codes, the scales, and the norms.](../figures/drawings/model_bytes.svg)

# %%
frozen = minilora.load("tiny", "nf4-dq")[1]
parts = dict.fromkeys(["codes", "codes of absmax", "absmax of absmax", "offsets"], 0)
for path, leaf in flatten(frozen).items():
    if isinstance(leaf, nf4.Quantized):
        n, m = int(np.prod(leaf.shape)), -(-int(np.prod(leaf.shape)) // 64)
        arrays = leaf.codes, leaf.scales.codes, leaf.scales.absmax, leaf.scales.offset
        assert [a.nbytes for a in arrays] == [-(-n // 2), m, 4 * -(-m // 256), 4]
        for part, array in zip(parts, arrays):
            parts[part] += array.nbytes
    else:
        kind = "norms" if "norm" in path else f"embedding, {getattr(leaf, 'kind', 'F32')}"
        parts[kind] = parts.get(kind, 0) + leaf.nbytes
table(["part of tiny", "bytes"], [*parts.items(), ["together", nbytes(frozen)]])
assert sum(parts.values()) == nbytes(frozen)
bits = memory.bits_per_weight(frozen)
print(f"{bits:.4f} bits a weight of the projections")
print(f"{nbytes(frozen) / 4 / num_parameters(frozen):.3f} of the dense size, not {4.127 / 32:.3f}")
assert 4.1269 < bits < 4.13  # above the formula: offsets, and groups of fewer than 256

# %%
for name in ("micro", "tiny"):
    config, base, tokenizer = minilora.load(name, "nf4-dq")
    with tempfile.TemporaryDirectory() as folder:
        quantized_file.save_quantized(Path(folder) / "q", config, base, tokenizer, "float16")
        file = (Path(folder) / "q" / "model.safetensors").read_bytes()
    header = struct.unpack("<Q", file[:8])[0]
    weights = [q for q in flatten(base).values() if isinstance(q, nf4.Quantized)]
    elements = sum(int(np.prod(q.shape)) for q in weights)
    stored = sum(q.nbytes for q in weights)
    dense = 2 * (num_parameters(base) - elements)  # embedding and norms in sixteen bits
    extra = len(file) - 8 - header - dense - stored
    rows = [["header", 8 + header], ["embedding and norms", dense], ["codes and scales", stored]]
    table([f"file of {name}", "bytes"], [*rows, ["maps and JSON", extra], ["in all", len(file)]])
    on_disk, in_memory = 8 * (stored + extra) / elements, 8 * stored / elements
    print(f"{on_disk:.2f} bits a projection's weight on disk, {in_memory:.2f} in memory")
    # beside each weight stand both maps, 16 and 256 floats, and a JSON text in the offset's place
    assert 4 * (16 + 256) < extra / len(weights) < 4 * (16 + 256) + 250
    assert on_disk > in_memory + 0.2

# %% [markdown]
# In a small model everything that is *not* codes shows: the embedding in sixteen bits, the
# offsets and unfilled groups of 256, on disk a copy of both maps beside each weight. In a large
# one all of that is nothing, and the formula's 4.127 is what one pays.
#
# **What this showed.** Double quantization is nearly free because scales hardly matter, not
# because its map fits; it rests on blocks of like size; and an estimate is only right if it adds up
# to the byte.
#
# **Where to stop with a debugger.** `double_quant.double_quantize` (`blocks`, `step`),
# `nf4.pack`, `nf4._quantize` (`rest`: a tensor of odd size), `quantized_file._four_bit_sources`
# (`parts`).
#
# **Exercises.** packing-nibbles, double-quantization, memory-estimate, test-nibbles.

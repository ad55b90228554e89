# %% [markdown]
# # Every byte of a model
#
# **The question.** How are two codes packed into a byte, and where is every byte of a 4-bit model,
# in memory and on disk?
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a second to run, ten minutes to read. **You need:** lesson 2.

# %%
import math
import struct
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

import minilora
from minilora import nf4
from minilora.evaluation import memory
from minilora.evaluation.memory import nbytes
from minilora.formats import quantized_file
from minilora.lessons.helpers.codes import rms
from minilora.lessons.helpers.common import table
from minilora.tree import flatten, num_parameters

rng = np.random.default_rng(0)

# %% [markdown]
# ## Packing
#
# Two codes share a byte: the first is in the high four bits. A weight is one long row of numbers,
# so a block may continue in the next row of the matrix. A tensor of odd size gets one extra code.
#
# ![The bytes of a weight in NF4 with double quantization: two codes per byte, one byte per 64
# weights, one float32 per 16,384 weights, and one
# offset.](../../../figures/drawings/double_quantized_bytes.svg)
#
# **Predict.** Which bytes store 1, −1, ½, −¼, 0, 0? (NF4's zero is code 7.) What does a weight look
# like to a reader who takes the low half first?
#
# <details><summary>Answer</summary>
# f0 c4 77. The swapped weight has the right size and the right distribution, but its neighbours
# have changed places. Its error is larger than if all weights were zero. (A small error is
# tempting, because neighbours seem alike. In this weight they are independent.)
# </details>

# %%
block = np.zeros(64, np.float32)
block[:4] = 1, -1, 0.5, -0.25
packed = nf4.quantize(block).codes[:4].tobytes()
print("bytes:", packed.hex(" "))

w = rng.standard_normal((1024, 1024)).astype(np.float32)
q = nf4.quantize(w)
w_hat = q.dequantize()
swapped = replace(q, codes=q.codes << 4 | q.codes >> 4).dequantize()
rows = []
for name, x in {"as stored": w_hat, "halves swapped": swapped, "all zero": 0 * w}.items():
    rows.append([name, f"{rms(x - w) / rms(w):.3f}", f"{rms(x) / rms(w):.3f}"])
table(["relative to the RMS of w", "error", "RMS"], rows)

# %% [markdown]
# √2 is the RMS of the difference of two independent standard normal numbers. A histogram does not
# show this bug, because the numbers are the same. A comparison of single elements shows it.

# %%
# Checks
assert packed == bytes.fromhex("f0 c4 77 77"), "the first code must be in the high four bits"
for shape, size, blocks in (((3, 5), 8, 1), ((7, 64), 224, 7), ((1, 1), 1, 1), ((2, 48), 48, 2)):
    small = nf4.quantize(rng.standard_normal(shape))
    assert small.codes.size == size, f"{shape}: {small.codes.size} bytes of codes, not {size}"
    assert small.absmax.size == blocks, f"{shape}: {small.absmax.size} blocks, not {blocks}"
assert abs(rms(swapped - w) / rms(w) - 2**0.5) < 0.03, "swapped halves: √2, worse than no weight"
same = np.array_equal(np.sort(swapped, axis=None), np.sort(w_hat, axis=None))
assert same, "but the same numbers, so the right distribution"

# %% [markdown]
# ## In memory
#
# **Predict.** `tiny` has 1,016,960 parameters. In NF4 with double quantization, does it need
# 4.127/32 of its dense size? Which part is the largest?
#
# <details><summary>Answer</summary>
# More: the embedding stays dense. The codes are the largest part, and the embedding is the next.
# (The 4.127 are tempting, but they are bits per weight of the *projections*.)
# </details>

# %%
model, tokenizer = minilora.load("tiny", "nf4-dq")
base = model.base
PARTS = "codes", "codes of absmax", "nested absmax", "offsets"
of_weight, parts = {}, Counter()
for path, leaf in flatten(base).items():
    if isinstance(leaf, nf4.Quantized):
        double = leaf.stored_absmax
        stored = leaf.codes, double.codes, double.nested_absmax, double.offset
        of_weight[path] = leaf.shape, [array.nbytes for array in stored]
        parts.update(dict(zip(PARTS, of_weight[path][1])))
    else:
        parts["norms" if "norm" in path else f"embedding, {leaf.kind}"] += leaf.nbytes
table(["part of tiny", "bytes"], [*parts.most_common(), ["together", nbytes(base)]])
bits = memory.bits_per_weight(base)
elements = sum(math.prod(shape) for shape, _ in of_weight.values())
print(f"{bits:.4f} bits per weight of the projections")
print(f"{nbytes(base) / 4 / num_parameters(base):.3f} of the dense size, not {4.127 / 32:.3f}")

# %%
# Checks
for path, (shape, sizes) in of_weight.items():
    n = math.prod(shape)
    m = -(-n // 64)  # blocks, rounded up
    assert sizes == [-(-n // 2), m, 4 * -(-m // 256), 4], f"{path}: bytes of its four arrays"
assert num_parameters(base) == 1_016_960, "tiny"
assert sum(parts.values()) == nbytes(base), "the parts must add up to the byte"
(first, _), (second, _) = parts.most_common(2)
assert first == "codes" and "embedding" in second, f"the two largest parts: {first}, {second}"
assert 4.1269 < bits < 4.13, "above the formula: offsets, and groups of fewer than 256"

# %% [markdown]
# ## On disk
#
# A file in bitsandbytes' layout has, for each weight, copies of both maps (16 and 256 floats) and a
# JSON text in place of the offset.
#
# **Predict.** How many bits per weight do the projections of `tiny` need on disk?
#
# <details><summary>Answer</summary>
# Clearly more than in memory: the maps are stored again with every weight. ("As many" is tempting,
# because the maps are constants. But the layout does not assume that the reader knows them.)
# </details>

# %%
with tempfile.TemporaryDirectory() as folder:
    quantized_file.save_quantized(Path(folder) / "q", model, tokenizer, "float16")
    file = (Path(folder) / "q" / "model.safetensors").read_bytes()
on_disk = {
    "header": 8 + struct.unpack("<Q", file[:8])[0],
    "embedding and norms": 2 * (num_parameters(base) - elements),  # in 16 bits
    "codes and scales": sum(parts[part] for part in PARTS),
}
extra = len(file) - sum(on_disk.values())
table(["file of tiny", "bytes"], [*on_disk.items(), ["maps and JSON", extra]])
bits_on_disk = 8 * (on_disk["codes and scales"] + extra) / elements
print(f"{bits_on_disk:.2f} bits per weight of the projections")

# %% [markdown]
# In a small model, what is *not* a code counts, too: the embedding, the offsets, groups that are
# not full, and on disk the maps.

# %%
# Checks
maps = 4 * (16 + 256)
assert maps < extra / len(of_weight) < maps + 250, "both maps and a short JSON per weight"
assert bits_on_disk > bits + 0.2, "the file must have more bits per weight"

# %% [markdown]
# ## What was shown
#
# Two codes share a byte. The parts of `tiny` (1 million parameters) in memory add up to the byte.
# On disk, its projections have more bits per weight than in memory.
#
# **What to try.**
#
# 1. `q.codes << 4 | q.codes >> 4`: reverse the order of all codes instead. Is the error √2, too?
# 2. `minilora.load("tiny", "nf4-dq")`: use "nf4". Which parts change?
# 3. `"float16"` in `save_quantized`: use "float32". Which row of the table changes?
#
# **Where to stop with a debugger.** `nf4.pack_4bit`, `nf4.normalize` (`rest`: a short last block),
# `quantized_file._parts` (`parts`).
#
# **Exercises.** one-file-quantize, test-nibbles, memory-estimate.
#
# **Further reading.** The bitsandbytes documentation:
# [huggingface.co/docs/bitsandbytes](https://huggingface.co/docs/bitsandbytes).

# %% [markdown]
# # Every byte of a model
#
# **The question.** How are two codes packed into a byte, and where is every byte of a 4-bit model,
# in memory and on disk?
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a second to run, eight minutes to read. **You need:** lesson 2.

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
from minilora.formats import quantized_file
from minilora.lessons.helpers.codes import rms
from minilora.lessons.helpers.common import table
from minilora.tree import flatten, num_parameters

# %% [markdown]
# ## Packing
#
# Two codes share a byte: the first is in the high four bits. A weight is one long row of numbers,
# so a block may continue in the next row of the matrix. A weight of odd size gets one extra code.
#
# ![The bytes of a weight in NF4 with double quantization: two codes per byte, one byte per 64
# weights, one float32 per 16,384 weights, and one
# offset.](../../../figures/drawings/double_quantized_bytes.svg)
#
# **Predict.** Which bytes store 1, −1, ½, −¼, 0, 0? (NF4's zero is code 7.) A reader takes the low
# half of each byte first. How large is the error of the weight that it reads?

# %%
block = np.zeros(64, np.float32)
block[:4] = 1, -1, 0.5, -0.25
packed = nf4.quantize(block).codes[:4].tobytes()
print("bytes:", packed.hex(" "))

w = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
q = nf4.quantize(w)
swapped = replace(q, codes=q.codes << 4 | q.codes >> 4)
wrong = {"as stored": q, "halves swapped": swapped}
wrong = {name: rms(read.dequantize() - w) / rms(w) for name, read in wrong.items()}
for name, error in wrong.items():
    print(f"{name}: error {error:.3f} of the weight's RMS")

# %% [markdown]
# **Answer.** f0 c4 77. The swapped weight has the right size and the same numbers, so a histogram
# does not show the mistake. But neighbours have changed places, and here they are independent: the
# error is √2, the RMS of the difference of two independent standard normal numbers. A weight of
# zeros would have an error of 1 only.
#
# ## In memory
#
# **Predict.** `tiny` has 1,016,960 parameters. In NF4 with double quantization, does it need
# 4.127/32 of its dense size? Which part is the largest?

# %%
model, tokenizer = minilora.load("tiny", "nf4-dq")
quantized, parts = [], Counter()
for path, leaf in flatten(model.base).items():
    if isinstance(leaf, nf4.Quantized):
        quantized.append(leaf)
        double = leaf.stored_absmax
        stored = leaf.codes, double.codes, double.nested_absmax, double.offset
        names = "codes", "codes of absmax", "nested absmax", "offsets"
        parts.update({name: array.nbytes for name, array in zip(names, stored)})
    else:
        parts["norms" if "norm" in path else f"embedding, {leaf.kind}"] += leaf.nbytes
in_memory = memory.nbytes(model.base)
table(["part of tiny", "bytes"], [*parts.most_common(), ["together", in_memory]])
bits = memory.bits_per_weight(model.base)
dense_share = in_memory / 4 / num_parameters(model.base)
print(f"{bits:.4f} bits per weight of the projections")
print(f"{dense_share:.3f} of the dense size, not {4.127 / 32:.3f}")

# %% [markdown]
# **Answer.** More: 4.127 are the bits per weight of the *projections*. The embedding is not in four
# bits. It is the second largest part, after the codes.
#
# ## On disk
#
# A file in bitsandbytes' layout has, for each weight, copies of both maps (16 and 256 floats) and a
# JSON text in place of the offset.
#
# **Predict.** How many bits per weight do the projections of `tiny` need on disk?

# %%
with tempfile.TemporaryDirectory() as folder:
    quantized_file.save_quantized(Path(folder) / "q", model, tokenizer, "float16")
    file = (Path(folder) / "q" / "model.safetensors").read_bytes()
elements = sum(math.prod(weight.shape) for weight in quantized)
on_disk = {
    "header": 8 + struct.unpack("<Q", file[:8])[0],
    "embedding and norms": 2 * (num_parameters(model.base) - elements),  # in 16 bits
}
of_projections = len(file) - sum(on_disk.values())
table(["file of tiny", "bytes"], [*on_disk.items(), ["projections", of_projections]])
print(f"{8 * of_projections / elements:.2f} bits per weight of the projections")

# %% [markdown]
# **Answer.** Clearly more than in memory. The maps are constants, but the layout does not assume
# that the reader knows them: each weight has its own copy.
#
# ## What was shown
#
# Two codes share a byte. The parts of `tiny` (1 million parameters) in memory add up to the byte.
# What is *not* a code counts, too: the embedding, and on disk the maps.
#
# **What to try.**
#
# 1. `q.codes << 4 | q.codes >> 4`: reverse the order of all codes instead. Is the error √2, too?
# 2. `minilora.load("tiny", "nf4-dq")`: use "micro". Is the share of the embedding larger?
# 3. `"float16"` in `save_quantized`: use "float32". Which row of the table changes?
#
# **Where to stop with a debugger.** `nf4.pack_4bit`, `nf4.normalize` (`rest`: a short last block),
# `quantized_file._parts` (`parts`).
#
# **Exercises.** one-file-quantize, test-nibbles, memory-estimate.
#
# **Further reading.** The bitsandbytes documentation:
# [huggingface.co/docs/bitsandbytes](https://huggingface.co/docs/bitsandbytes).

# %%
# Checks
assert packed == bytes.fromhex("f0 c4 77 77"), "the first code must be in the high four bits"
odd = nf4.quantize(np.ones((3, 5)))
assert (odd.codes.size, odd.absmax.size) == (8, 1), "15 weights: one block and one extra code"
assert abs(wrong["halves swapped"] - 2**0.5) < 0.03, "swapped halves: √2, worse than no weight"
same = (np.sort(read.dequantize(), axis=None) for read in (swapped, q))
assert np.array_equal(*same), "but the same numbers"
assert num_parameters(model.base) == 1_016_960, "tiny"
assert sum(parts.values()) == in_memory, "the parts must add up to the byte"
for weight in quantized:
    n = math.prod(weight.shape)
    m = -(-n // 64)  # blocks, rounded up
    assert weight.nbytes == -(-n // 2) + m + 4 * -(-m // 256) + 4, "bytes of its four arrays"
(first, _), (second, _) = parts.most_common(2)
assert first == "codes" and "embedding" in second, f"the two largest parts: {first}, {second}"
assert 4.1269 < bits < 4.13 < 32 * dense_share, "offsets, groups of fewer than 256; the embedding"
extra = of_projections - sum(weight.nbytes for weight in quantized)
maps = 4 * (16 + 256)
assert maps < extra / len(quantized) < maps + 250, "both maps and a short JSON per weight"
assert 8 * extra / elements > 0.2, "the file must have more bits per weight"

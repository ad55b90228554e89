"""Compiled decoders for 8-bit and 16-bit matrices, with the bits of `int8.py`, `low_precision.py`.

A decoder writes the elements from `start` on of a flat tensor to out (n,) float32. It checks no
bounds: `parts` does, and its caller guarantees that start + n is at most the tensor's size.
"""

import numpy as np

from ..config import InputError
from ..quant.int8 import Int8
from ..quant.low_precision import GGUF_BLOCK_SIZE
from .loops import fast_jit, jit

# 16 bits, shifted to the bits of float32, are the number divided by this power of two
MOVE = {"F16": (13, np.float32(2**112)), "BF16": (16, np.float32(1))}


def parts(w):
    """Return the arrays and numbers of w that its decoder reads, after checking their sizes."""
    codes = w.codes.reshape(-1)
    if isinstance(w, Int8):
        parts = codes, w.absmax, np.float32(1 / 127), w.shape[1]
    elif w.kind == "Q8_0":
        parts = codes, w.scales.reshape(-1), np.float32(1), GGUF_BLOCK_SIZE
    else:
        return codes, *MOVE[w.kind]
    _, scales, _, block_size = parts
    if scales.size * block_size != codes.size:
        raise InputError(f"the scales of an 8-bit matrix of shape {w.shape} do not fit its codes")
    return parts


@jit
def decode_8bit(start, parts, out):
    """Decode int8 codes: code·scale·unit, with a scale per block."""
    codes, scales, unit, block_size = parts
    for b in range(start // block_size, (start + out.size - 1) // block_size + 1):
        first = max(b * block_size, start)
        block = out[first - start : (b + 1) * block_size - start]
        packed = codes[first:]
        for i in range(block.size):
            block[i] = np.float32(packed[i]) * scales[b] * unit


@jit
def decode_16bit(start, parts, out):
    """Decode the bits of 16-bit numbers: shifted to those of float32, times a power of two."""
    codes, shift, power = parts
    packed = codes[start:]
    for i in range(out.size):
        code = packed[i]
        sign = np.uint32(code & 0x8000) << 16
        magnitude = np.uint32(code & 0x7FFF) << shift
        out[i] = np.uint32(sign | magnitude).view(np.float32) * power


@fast_jit
def matvec_8bit(lo, hi, parts, x, y):
    """Fill rows lo to hi - 1 of y = W x for int8 codes, without decoding them to an array."""
    codes, scales, unit, block_size = parts
    x = x.reshape(-1, block_size)
    w = codes.reshape(-1, len(x), block_size)
    for i in range(lo, hi):
        total = np.float32(0)
        for b in range(len(x)):
            part = np.float32(0)
            for j in range(block_size):
                part += np.float32(w[i, b, j]) * x[b, j]
            total += part * scales[i * len(x) + b]
        y[i] = total * unit

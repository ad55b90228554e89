"""Compiled loops for 4-bit weights, with the same bits as `nf4.py` and `double_quant.py`."""

import math

import numpy as np

from .. import nf4
from ..config import InputError
from ..double_quant import DYNAMIC_MAP, NESTED_BLOCK_SIZE, DoubleQuantized, double_quantize
from ..nf4 import CODEBOOKS, MIN_BLOCK_ABSMAX, Quantized, unpack_4bit
from . import loops
from .loops import jit
from .threads import parallel_rows

# the two float32 values of each byte, as one uint64: (256,)
PAIRS = unpack_4bit(np.arange(256))
BYTE_VALUES = {name: book.values[PAIRS].view(np.uint64) for name, book in CODEBOOKS.items()}


def quantize(w, block_size=64, double_quant=False, quant_type="nf4"):
    """Quantize w (any shape, converted to float32) to four bits per element; see `nf4.quantize`.

    NumPy computes FP4, a tensor whose last block is short, and a small one.
    """
    nf4.check_4bit(block_size, quant_type)
    w = np.ascontiguousarray(w, np.float32)
    if quant_type != "nf4" or w.size % block_size or w.size < loops.LARGE:
        return nf4.quantize(w, block_size, double_quant, quant_type)
    blocks = w.reshape(-1, block_size)
    codes = np.empty((len(blocks), block_size // 2), np.uint8)
    absmax = np.empty(len(blocks), np.float32)
    work = len(blocks), 2 * block_size  # 15 comparisons per element
    parallel_rows(_encode, work, blocks, CODEBOOKS["nf4"].midpoints, codes, absmax)
    nf4.require_finite(absmax)
    stored_absmax = double_quantize(absmax) if double_quant else absmax
    return Quantized(codes.reshape(-1), stored_absmax, w.shape, int(block_size), quant_type)


def parts(q):
    """Return the arrays of q that the loops read; they check no bounds, so too few codes raise."""
    nf4.check_4bit(q.block_size, q.quant_type)
    n = math.prod(q.shape)
    stored = q.stored_absmax
    if isinstance(stored, DoubleQuantized):
        m = min(stored.codes.size, stored.nested_absmax.size * NESTED_BLOCK_SIZE)
    else:
        m = stored.size
    if 2 * q.codes.size < n or m * q.block_size < n:
        raise InputError(f"a 4-bit weight of shape {q.shape} has too few codes or absmax")
    if isinstance(stored, DoubleQuantized) and n >= loops.LARGE:
        absmax = _double_dequantize(m, stored.codes, stored.nested_absmax, stored.offset)
    else:
        absmax = q.absmax
    k = int(q.block_size).bit_length() - 1
    return q.codes, absmax, CODEBOOKS[q.quant_type].values, BYTE_VALUES[q.quant_type], k


@jit
def _double_dequantize(m, codes, nested_absmax, offset):
    absmax = np.empty(m, np.float32)
    for i in range(m):
        absmax[i] = DYNAMIC_MAP[np.uint8(codes[i])] * nested_absmax[i // NESTED_BLOCK_SIZE] + offset
    return absmax


@jit
def _encode(lo, hi, w, midpoints, codes, absmax):
    """Compute the absmax of blocks lo to hi - 1, and two ranks (0 to 15) per byte."""
    # A first loop computes all ranks of a block, a second reads two of them as one number: so both
    # loops are vectorized. (All processors that numba supports store the low half first.)
    bits = w.view(np.uint32)
    absmax_bits = absmax.view(np.uint32)
    ranks = np.empty(w.shape[1], np.int32)
    pairs = ranks.view(np.uint64)
    for b in range(lo, hi):
        # without the sign bit, floats are ordered like integers, and NaN is the largest
        largest = np.uint32(0)
        for i in range(ranks.size):
            largest = max(largest, bits[b, i] & np.uint32(0x7FFFFFFF))
        absmax_bits[b] = largest
        scale = np.float32(1) / max(absmax[b], MIN_BLOCK_ABSMAX)
        for i in range(ranks.size):
            # counting the midpoints below x is faster than a binary search: it has no branches
            x = w[b, i] * scale
            rank = np.int32(0)
            for m in range(15):
                rank += x > midpoints[m]
            ranks[i] = rank
        for i in range(pairs.size):
            codes[b, i] = (pairs[i] << np.uint64(4) | pairs[i] >> np.uint64(32)) & np.uint64(255)

"""Products with a weight, dense or in any storage.

A weight in a storage of `STORAGE` is decoded by compiled loops, one tile of rows at a time, so the
whole dense matrix is never in memory. Any other weight that is not dense is dequantized as a whole.
"""

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from autograd.extend import defvjp, primitive
from numba.extending import overload

from .. import layers
from ..config import InputError
from ..double_quant import Stored
from . import bfloat16, loops, low_precision, nf4
from .lookup import decode_4bit
from .loops import fast_jit, rows
from .threads import parallel_rows

TILE = 1024  # rows of a weight that are decoded at a time; a multiple of 16
# elements that `matvec` decodes at a time: they fit in the first-level cache. The spans of a weight
# that threads decode begin at its multiples. A multiple of 16
SPAN = 4096


class Storage(NamedTuple):
    """How a stored weight is decoded."""

    parts: Any  # parts(w) returns the arrays and numbers of w that its decoder reads
    decode: Any  # decode(start, parts, out), a kernel


STORAGE = {  # by the type of the codes
    np.dtype("uint8"): Storage(nf4.parts, decode_4bit),
    np.dtype("int8"): Storage(low_precision.parts, low_precision.decode_8bit),
    np.dtype("uint16"): Storage(low_precision.parts, low_precision.decode_16bit),
}


def decode(start, parts, out):
    """Write the elements from `start` on of a flat tensor to out (n,) float32, also in a kernel."""
    STORAGE[parts[0].dtype].decode(start, parts, out)


@overload(decode)
def _decoder(start, parts, out):
    return STORAGE[np.dtype(str(parts[0].dtype))].decode.py_func


def parts_of(w):
    """Return the arrays and numbers of a stored weight that its decoder reads."""
    storage = STORAGE.get(w.codes.dtype)
    if storage is None:
        kinds = ", ".join(map(str, STORAGE))
        raise InputError(f"a weight of shape {w.shape} has codes of {w.codes.dtype}: use {kinds}")
    return storage.parts(w)


def dense(w):
    """Return a weight (out, in) as a float32 array."""
    if not isinstance(w, Stored):
        return layers.dense(w)
    return read(w.shape, parts_of(w), slice(0, w.shape[0]))


def tiles(w):
    """Yield (slice of rows, matrix) of w, tile by tile: float32, or the bits in bfloat16.

    The bits (uint16) are those of a stored w with this `compute_dtype`.
    """
    if not isinstance(w, Stored):
        w = layers.dense(w)
    rounds = getattr(w, "compute_dtype", "float32") == "bfloat16"
    has_bits = rounds and getattr(w, "kind", "") == "BF16"
    is_small = math.prod(w.shape) < loops.LARGE
    has_rows = isinstance(w, np.ndarray) or (is_small and w.codes.dtype == np.uint16)
    parts = None if has_rows else parts_of(w)
    for first in range(0, w.shape[0], TILE):
        span = slice(first, min(first + TILE, w.shape[0]))
        if has_bits:
            yield span, w.codes[span]
            continue
        tile = read(w.shape, parts, span) if parts else w[span]
        yield span, bfloat16.to_bfloat16(tile) if rounds else tile


def product(x, tile, out, first=0):
    """Write x tileᵀ to the columns of out from `first` on; see `tiles`."""
    if tile.dtype == np.uint16:
        bfloat16.matmul(x, tile, out, first)
    else:
        np.matmul(x, tile.T, out=out[:, first : first + len(tile)])


def product_transposed(g, tile):
    """Compute g tile; see `tiles`."""
    return bfloat16.matmul_transposed(g, tile) if tile.dtype == np.uint16 else g @ tile


def read(shape, parts, span):
    """Return the rows `span` of a stored weight of this shape (out, in) as a float32 matrix."""
    out = np.empty((span.stop - span.start, *shape[1:]), np.float32)
    flat = out.reshape(-1)
    start = span.start * math.prod(shape[1:])
    parallel_rows(_read, (-(-flat.size // SPAN), SPAN), start, parts, flat)
    return out


def matvec(w, x):
    """Compute W x for a stored W (out, in) and x (in,), without the dense W: (out,) float32."""
    rounds = w.compute_dtype == "bfloat16"
    x = layers.operand(np.ascontiguousarray(x, np.float32), w)
    if x.shape != w.shape[1:]:
        raise ValueError(f"x has the shape {x.shape}, but the weight has {w.shape}")
    y = np.empty(w.shape[0], np.float32)
    parts = parts_of(w)
    if parts[0].dtype == np.int8 and not rounds:
        parallel_rows(low_precision.matvec_8bit, w.shape, parts, x, y)
    else:
        parallel_rows(_matvec, w.shape, parts, x, y, rounds)
    return y


def tiled_matmul(x, w):
    """Compute `layers.matmul` tile by tile; a single row of x from the codes of a large w."""
    flat = rows(x)
    if not isinstance(w, Stored):
        y = flat @ layers.dense(w).T
    elif len(flat) == 1 and x.dtype == np.float32 and math.prod(w.shape) >= loops.LARGE:
        y = matvec(w, flat[0])
    else:
        y = np.empty((len(flat), w.shape[0]), x.dtype)
        for span, tile in tiles(w):
            product(flat, tile, y, span.start)
    return y.reshape(*x.shape[:-1], -1)


def tiled_matmul_backward(g, w):
    """Compute ∂L/∂x = (∂L/∂y) W of `tiled_matmul`, from g = ∂L/∂y (..., out)."""
    flat = rows(g)
    if not isinstance(w, Stored):
        dx = flat @ layers.dense(w)
    else:
        dx = reduce(np.add, (product_transposed(flat[:, span], tile) for span, tile in tiles(w)))
    return dx.reshape(*g.shape[:-1], -1)


matmul = primitive(tiled_matmul)
defvjp(matmul, lambda y, x, w: lambda g: tiled_matmul_backward(g, w))


def _read(lo, hi, start, parts, out):
    """Decode spans lo to hi - 1 of out, the elements from `start` on of a flat tensor."""
    decode(start + lo * SPAN, parts, out[lo * SPAN : hi * SPAN])


@fast_jit
def _matvec(lo, hi, parts, x, y, rounds):
    """Fill rows lo to hi - 1 of y = W x: decode a group of rows, multiply each by x.

    rounds: round the rows to bfloat16 first.
    """
    width = x.size
    group = max(1, SPAN // width)
    buffer = np.empty(group * width + 16, np.float32)
    for first in range(lo, hi, group):
        last = min(first + group, hi)
        start = first * width
        before = start % 16  # 4-bit codes are decoded by sixteens
        part = buffer[: before + (last - first) * width]
        decode(start - before, parts, part)
        if rounds:
            bfloat16.round_numbers(part)
        for i in range(first, last):
            row = part[before + (i - first) * width :]
            total = np.float32(0)
            for j in range(width):
                total += row[j] * x[j]
            y[i] = total

"""Products with a weight, dense or in any storage.

A weight in a storage of `STORAGE` is decoded by compiled loops, one tile of rows at a time, so the
whole dense matrix is never in memory. Any other weight that is not dense is dequantized as a whole.
"""

import numpy as np
from autograd.extend import defvjp, primitive

from .. import layers
from ..nf4 import Quantized
from ..quant.int8 import Int8
from ..quant.low_precision import LowPrecision
from . import low_precision, nf4
from .loops import rows as flat_rows

TILE = 1024  # rows of a weight that are decoded at a time (even)
# the module of each storage, which has the functions `read_rows` and `matvec`
STORAGE = {Quantized: nf4, Int8: low_precision, LowPrecision: low_precision}


def dense(w):
    """Return a weight (out, in) as a float32 array."""
    return next(tiles(w, w.shape[0]))[1] if type(w) in STORAGE else layers.dense(w)


def tiles(w, size=TILE):
    """Yield (slice of rows, float32 matrix) of w, tile by tile; the next tile may overwrite it."""
    spans = [slice(i, min(i + size, w.shape[0])) for i in range(0, w.shape[0], size)]
    if type(w) not in STORAGE:
        w = layers.dense(w)
        yield from ((rows, w[rows]) for rows in spans)
        return
    buffer = np.empty((min(size, w.shape[0]), w.shape[1]), np.float32)
    for rows in spans:
        tile = buffer[: rows.stop - rows.start]
        STORAGE[type(w)].read_rows(w, rows.start, tile)
        yield rows, tile


def tiled_matmul(x, w):
    """Compute `layers.matmul` tile by tile; a single row of x directly from the codes."""
    flat = flat_rows(x)
    if type(w) not in STORAGE:
        y = flat @ layers.dense(w).T
    elif len(flat) == 1 and x.dtype == np.float32:
        y = STORAGE[type(w)].matvec(w, flat[0])
    else:
        y = np.empty((len(flat), w.shape[0]), x.dtype)
        for rows, tile in tiles(w):
            np.matmul(flat, tile.T, out=y[:, rows])
    return y.reshape(*x.shape[:-1], -1)


def tiled_matmul_backward(g, w):
    """Compute ∂L/∂x = (∂L/∂y) W of `tiled_matmul`, from g = ∂L/∂y (..., out)."""
    flat = flat_rows(g)
    if type(w) not in STORAGE:
        dx = flat @ layers.dense(w)
    else:
        dx = np.zeros((len(flat), w.shape[1]), g.dtype)
        for rows, tile in tiles(w):
            dx += flat[:, rows] @ tile
    return dx.reshape(*g.shape[:-1], -1)


matmul = primitive(tiled_matmul)
defvjp(
    matmul,
    lambda y, x, w: lambda g: tiled_matmul_backward(g, w),
    lambda y, x, w: lambda g: flat_rows(g).T @ flat_rows(x),
)

"""Products with a weight, dense or in any storage.

The weights of `READ_ROWS` are decoded by compiled loops, one tile of rows at a time, so the whole
dense matrix is never in memory. Any other weight that is not dense is dequantized as a whole.
"""

import numpy as np
from autograd.extend import defvjp, primitive

from .. import layers
from ..nf4 import Quantized
from ..quant.int8 import Int8
from ..quant.low_precision import LowPrecision
from . import low_precision, nf4

TILE = 1024  # rows of a weight that are decoded at a time (even)
READ_ROWS = {
    Quantized: nf4.read_rows, Int8: low_precision.read_int8_rows,
    LowPrecision: low_precision.read_rows,
}  # fmt: skip
MATVEC = {
    Quantized: nf4.matvec, Int8: low_precision.int8_matvec, LowPrecision: low_precision.matvec,
}  # fmt: skip


def dense(w):
    """Return a weight (out, in) as a float32 array."""
    if isinstance(w, Quantized):
        return nf4.dequantize(w)
    return next(tiles(w, w.shape[0]))[1] if type(w) in READ_ROWS else layers.dense(w)


def tiles(w, size=TILE):
    """Yield (slice of rows, float32 matrix) of w, tile by tile; the next tile may overwrite it."""
    spans = [slice(i, min(i + size, w.shape[0])) for i in range(0, w.shape[0], size)]
    read_rows = READ_ROWS.get(type(w))
    if read_rows is None:
        w = dense(w)
        yield from ((rows, w[rows]) for rows in spans)
        return
    buffer = np.empty((min(size, w.shape[0]), w.shape[1]), np.float32)
    for rows in spans:
        tile = buffer[: rows.stop - rows.start]
        read_rows(w, rows.start, tile)
        yield rows, tile


def tiled_matmul(x, w):
    """Compute `layers.matmul` tile by tile; a single row of x directly from the codes."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) == 1 and type(w) in MATVEC and x.dtype == np.float32:
        y = MATVEC[type(w)](w, flat[0])
    elif type(w) in READ_ROWS:
        y = np.empty((len(flat), w.shape[0]), x.dtype)
        for rows, tile in tiles(w):
            np.matmul(flat, tile.T, out=y[:, rows])
    else:
        y = flat @ dense(w).T
    return y.reshape(*x.shape[:-1], -1)


def tiled_matmul_backward(g, w):
    """Compute ∂L/∂x = (∂L/∂y) W of `tiled_matmul`, from g = ∂L/∂y (..., out)."""
    flat = g.reshape(-1, g.shape[-1])
    if type(w) in READ_ROWS:
        dx = np.zeros((len(flat), w.shape[1]), g.dtype)
        for rows, tile in tiles(w):
            dx += flat[:, rows] @ tile
    else:
        dx = flat @ dense(w)
    return dx.reshape(*g.shape[:-1], -1)


matmul = primitive(tiled_matmul)
defvjp(
    matmul,
    lambda y, x, w: lambda g: tiled_matmul_backward(g, w),
    lambda y, x, w: lambda g: g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]),
)

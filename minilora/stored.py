"""The embedding and the output head, held in the type that their file holds them in.

They are never quantized here (see `quantize.py`), but a file may hold them in sixteen or eight bits
already. Beside a quantized base they stay so: every number read is the float32 number that the file
stands for, in a half to a quarter of the bytes. What reads them, reads parts: the embedding some
rows, the head one tile of rows after the other, so the dense matrix never exists.

    Q8_0        x = d·q: blocks of 32 whole numbers q, −128 … 127, each with a scale d   (GGUF)
    F16, BF16   sixteen bits: moved to where float32 has its exponent, they are x/2¹¹² and x
"""

from dataclasses import dataclass

import numba
import numpy as np
from numba.extending import overload

from .ahead import AHEAD, ahead
from .kernels import fast_jit, jit, share_rows

ONE = np.float32(1)
# how far the bits move, and the power of two that they then lack
MOVE = {"Q8_0": (0, ONE), "F16": (13, ONE * 2**112), "BF16": (16, ONE)}
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80}  # its bits; what is larger is NaN
TILE = 1024


@dataclass(frozen=True, eq=False)
class Stored:
    """A matrix in sixteen or eight bits an element; finite, as `is_finite` tells."""

    kind: str  # a key of MOVE
    codes: np.ndarray  # (rows, width): int8 of Q8_0, else the sixteen bits as uint16
    scales: np.ndarray  # float32: (rows, width/32) of Q8_0, else (1, 1), a one

    @property
    def shape(self):
        return self.codes.shape

    @property
    def nbytes(self):
        """All bytes that are stored."""
        return self.codes.nbytes + self.scales.nbytes

    def is_finite(self):
        """Neither NaN nor infinity anywhere."""
        if self.kind == "Q8_0":
            return bool(np.isfinite(self.scales).all())
        return int((self.codes & 0x7FFF).max(initial=0)) < INFINITY[self.kind]

    def __getitem__(self, index):
        """The float32 rows that `index` takes, as of the dense matrix: (*index, width)."""
        index = np.arange(len(self.codes))[index]
        return self._read(index, np.empty((*index.shape, self.shape[1]), np.float32))

    def dequantize(self, out=None):
        """The dense matrix in float32, written to `out`, C-contiguous, if given."""
        out = np.empty(self.shape, np.float32) if out is None else out
        return self._read(np.arange(len(self.codes)), out)

    def _read(self, index, out):
        rows = out.reshape(-1, self.shape[1])
        share_rows(_read, len(rows), *self._parts(), index.ravel(), rows, width=self.shape[1])
        return out

    def matvec(self, x):
        """y = W x for x (width,), with a row of W at a time: (rows,)."""
        x, y = np.ascontiguousarray(x, np.float32), np.empty(len(self.codes), np.float32)
        assert x.shape == self.shape[1:]
        share_rows(_matvec, len(y), *self._parts(), x, y, width=x.size)
        return y

    def _parts(self):
        scales = np.broadcast_to(self.scales, (len(self.codes), self.scales.shape[1]))
        return self.codes, scales, *MOVE[self.kind]


def halves(bits, kind):
    """The matrix whose elements have these bits (rows, width); kind: F16 or BF16."""
    return Stored(kind, bits.view(np.uint16), np.ones((1, 1), np.float32))


def dequantize_plain(w):
    """`Stored.dequantize`, in NumPy."""
    (rows, width), (shift, power), bits = w.shape, MOVE[w.kind], w.codes.astype(np.uint32)
    moved = ((bits & 0x8000) << 16 | (bits & 0x7FFF) << shift).view(np.float32) * power
    x = w.codes if w.kind == "Q8_0" else moved
    return (x.reshape(rows, w.scales.shape[1], -1) * w.scales[..., None]).reshape(rows, width)


def tiles(w):
    """Yield (rows, their float32 matrix) of w, TILE at a time: views of a dense w.

    Each tile of a stored w is read into the buffer of the one before.
    """
    spans = [slice(at, min(at + TILE, w.shape[0])) for at in range(0, w.shape[0], TILE)]
    if not isinstance(w, Stored):
        yield from ((rows, w[rows]) for rows in spans)
        return
    buffer = np.empty((min(TILE, len(w.codes)), w.shape[1]), np.float32)
    for rows in spans:
        index = np.arange(rows.start, rows.stop)
        yield rows, w._read(index, buffer[: index.size])


def product(x, w):
    """x wᵀ, stored or dense: (n, width) -> (n, rows)."""
    y = np.empty((len(x), w.shape[0]), x.dtype)
    for rows, tile in tiles(w):
        np.matmul(x, tile.T, out=y[:, rows])
    return y


# --- the loops


@jit
def _read(lo, hi, codes, scales, shift, power, index, out):
    for i in range(lo, hi):
        _row(codes[index[i]], scales[index[i]], shift, power, out[i])


@jit
def _row(codes, scales, shift, power, out):
    size = codes.size // scales.size
    for b in range(scales.size):
        at, scale = slice(b * size, (b + 1) * size), scales[b]
        block, some = out[at], codes[at]
        for j in range(block.size):
            block[j] = _number(some[j], shift, power) * scale


@fast_jit
def _matvec(lo, hi, codes, scales, shift, power, x, y):
    size = codes.shape[1] // scales.shape[1]
    for i in range(lo, hi):
        total = np.float32(0)
        for b in range(scales.shape[1]):
            at = slice(b * size, (b + 1) * size)
            ahead(codes, i * codes.shape[1] + at.start + AHEAD)
            some, block = codes[i, at], x[at]
            part = np.float32(0)
            for j in range(block.size):
                part += _number(some[j], shift, power) * block[j]
            total += part * scales[i, b]
        y[i] = total


def _number(code, shift, power):
    """What a code stands for, but for the scale of its block."""
    return (_whole if code.dtype == np.int8 else _half)(code, shift, power)


def _whole(code, shift, power):
    return np.float32(code)


def _half(code, shift, power):
    sign, magnitude = np.uint32(code & 0x8000) << 16, np.uint32(code & 0x7FFF) << shift
    return np.uint32(sign | magnitude).view(np.float32) * power


# Nothing in it is reordered: the moved bits are so small a number that times x they may be none.
@overload(_number, jit_options={"fastmath": False})
def _number_of(code, shift, power):
    return _whole if code == numba.types.int8 else _half

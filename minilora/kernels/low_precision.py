"""Compiled loops for 8-bit and 16-bit matrices, with the bits of `int8.py`, `low_precision.py`."""

import numba
import numpy as np
from numba.extending import overload

from ..config import InputError
from ..quant.low_precision import MOVE, LowPrecision
from .loops import fast_jit, jit
from .threads import parallel_rows


def read_int8_rows(q, first, out):
    """Dequantize n rows of an Int8 matrix, from row `first` on, into out (n, in) float32."""
    codes, absmax = (part[first : first + len(out)] for part in (q.codes, q.absmax))
    if codes.shape != out.shape or len(absmax) != len(out):
        raise InputError("rows outside the matrix")
    parallel_rows(_int8_rows, len(out), codes, absmax, out, width=out.shape[1])


@jit
def _int8_rows(lo, hi, codes, absmax, out):
    """Fill rows lo to hi - 1 of out; `read_int8_rows` checks the shapes."""
    for i in range(lo, hi):
        for j in range(codes.shape[1]):
            out[i, j] = np.float32(codes[i, j]) * absmax[i] * np.float32(1 / 127)


def read_rows(w, first, out):
    """Convert n rows of a LowPrecision matrix, from row `first` on, into out (n, width) float32."""
    codes, scales, *moves = _parts(w)
    codes = codes[first : first + len(out)]
    scales = scales[first : first + len(out)]
    if codes.shape != out.shape:
        raise InputError("rows outside the matrix")
    parallel_rows(_rows, len(out), codes, scales, *moves, out, width=w.shape[1])


def matvec(w, x):
    """Compute W x for a LowPrecision W (rows, width) and x (width,): (rows,) float32."""
    x, y = np.ascontiguousarray(x, np.float32), np.empty(w.shape[0], np.float32)
    if x.shape != w.shape[1:]:
        raise InputError(f"x has the shape {x.shape}, but the matrix has {w.shape}")
    parallel_rows(_matvec, len(y), *_parts(w), x, y, width=x.size)
    return y


def int8_matvec(q, x):
    """Compute W x for an Int8 W (out, in) and x (in,): (out,) float32."""
    # a row is one block of Q8_0, with the scale absmax/127
    return matvec(LowPrecision("Q8_0", q.codes, q.absmax[:, None] * np.float32(1 / 127)), x)


def _parts(w):
    """Return (codes, scales of every row, shift, power), after checking their shapes."""
    (n, width), (m, blocks) = w.codes.shape, w.scales.shape
    if not (m in (1, n) and blocks and width % blocks == 0):
        raise InputError("the scales do not fit the codes")
    scales = np.broadcast_to(w.scales, (n, blocks))
    return w.codes, scales, *MOVE[w.kind]


@jit
def _rows(lo, hi, codes, scales, shift, power, out):
    """Fill rows lo to hi - 1 of out; `read_rows` and `_parts` check the shapes."""
    size = codes.shape[1] // scales.shape[1]
    for i in range(lo, hi):
        for b in range(scales.shape[1]):
            at = slice(b * size, (b + 1) * size)
            scale = scales[i, b]
            block = out[i, at]
            packed = codes[i, at]
            for j in range(block.size):
                block[j] = _number(packed[j], shift, power) * scale


@fast_jit
def _matvec(lo, hi, codes, scales, shift, power, x, y):
    """Fill rows lo to hi - 1 of y = W x; `matvec` and `_parts` check the shapes."""
    size = codes.shape[1] // scales.shape[1]
    for i in range(lo, hi):
        total = np.float32(0)
        for b in range(scales.shape[1]):
            at = slice(b * size, (b + 1) * size)
            packed = codes[i, at]
            block = x[at]
            part = np.float32(0)
            for j in range(block.size):
                part += _number(packed[j], shift, power) * block[j]
            total += part * scales[i, b]
        y[i] = total


def _number(code, shift, power):
    """Decode one element, before it is multiplied by the scale of its block."""
    return (_whole if code.dtype == np.int8 else _half)(code, shift, power)


def _whole(code, shift, power):
    return np.float32(code)


def _half(code, shift, power):
    sign, magnitude = np.uint32(code & 0x8000) << 16, np.uint32(code & 0x7FFF) << shift
    return np.uint32(sign | magnitude).view(np.float32) * power


# Products are not reordered: the product of the small shifted number with x could underflow.
@overload(_number, jit_options={"fastmath": False})
def _number_of(code, shift, power):
    return _whole if code == numba.types.int8 else _half

"""Compiled loops for 8-bit and 16-bit matrices, with the bits of `int8.py`, `low_precision.py`."""

import numba
import numpy as np
from numba.extending import overload

from ..config import InputError
from ..quant.int8 import Int8
from ..quant.low_precision import MOVE, ONE
from .loops import fast_jit, jit
from .threads import parallel_rows


def read_rows(w, first, out):
    """Dequantize n rows of w, from row `first` on, into out (n, width) float32."""
    codes, scales, *numbers = parts(w)
    codes = codes[first : first + len(out)]
    if codes.shape != out.shape:
        raise InputError("rows outside the matrix")
    parallel_rows(_rows, len(out), codes, scales[first:], *numbers, out, width=w.shape[1])


def matvec(w, x):
    """Compute W x for W (rows, width) and x (width,): (rows,) float32."""
    x, y = np.ascontiguousarray(x, np.float32), np.empty(w.shape[0], np.float32)
    if x.shape != w.shape[1:]:
        raise InputError(f"x has the shape {x.shape}, but the matrix has {w.shape}")
    parallel_rows(_matvec, len(y), *parts(w), x, y, width=x.size)
    return y


def parts(w):
    """Return (codes, scales of every row, unit, shift, power), after checking their shapes.

    An element is number(code)·scale·unit; shift and power convert a code of sixteen bits.
    """
    if isinstance(w, Int8):
        scales, numbers = w.absmax[:, None], (np.float32(1 / 127), *MOVE["Q8_0"])
    else:
        scales, numbers = w.scales, (ONE, *MOVE[w.kind])
    (n, width), (m, blocks) = w.codes.shape, scales.shape
    if not (m in (1, n) and blocks and width % blocks == 0):
        raise InputError("the scales do not fit the codes")
    return w.codes, np.broadcast_to(scales, (n, blocks)), *numbers


@jit
def _rows(lo, hi, codes, scales, unit, shift, power, out):
    """Fill rows lo to hi - 1 of out; `read_rows` and `parts` check the shapes."""
    size = codes.shape[1] // scales.shape[1]
    for i in range(lo, hi):
        for b in range(scales.shape[1]):
            at = slice(b * size, (b + 1) * size)
            scale = scales[i, b]
            block = out[i, at]
            packed = codes[i, at]
            for j in range(block.size):
                block[j] = _number(packed[j], shift, power) * scale * unit


@fast_jit
def _matvec(lo, hi, codes, scales, unit, shift, power, x, y):
    """Fill rows lo to hi - 1 of y = W x; `matvec` and `parts` check the shapes."""
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
        y[i] = total * unit


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

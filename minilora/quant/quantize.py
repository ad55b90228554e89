"""Which weights of a model are stored in few bits, in which scheme, and what that costs them.

Only the seven projections of every layer are quantized: they are almost all of a model's weights,
and the embedding, the norms and the head are the parts that suffer most (QLoRA, Sec. 2, leaves
them in full precision as well). Beside a quantized base they stay in the type of their file, which
loses nothing: see stored.py.
"""

import math
from typing import NamedTuple

import numpy as np

from .. import nf4
from ..config import ALL_LINEAR, InputError, names_module, require
from ..tree import flatten, unflatten
from . import int8

SCHEMES = ("none", "int8", "fp4", "nf4", "nf4-dq")


def quantize(base, scheme, block_size=64, quantize_4bit=nf4.quantize):
    """A new tree: `base` with the seven projections' weights in `scheme`, all else shared.

    `scheme` is one of SCHEMES, "none" leaving them as they are; "nf4-dq" is NF4 with double
    quantization. `block_size` is that of the 4-bit schemes, `quantize_4bit` the plain quantizer or
    its compiled twin (`kernels.nf4.quantize`). InputError, which names the weight, for an unknown
    scheme or block size, for a weight that is not finite, and for one that is quantized already.
    """
    return unflatten(
        {
            path: quantize_leaf(path, w, scheme, block_size, quantize_4bit)
            if is_projection(path)
            else w
            for path, w in flatten(base).items()
        }
    )


def is_projection(path):
    """Whether `path` is the weight of one of the seven projections."""
    return any(names_module(f"{name}.weight", path) for name in ALL_LINEAR)


def quantize_leaf(path, w, scheme, block_size=64, quantize_4bit=nf4.quantize):
    """The weight w (out, in) at `path` in `scheme`: an array, an Int8 or a Quantized."""
    require(scheme in SCHEMES, f"unknown scheme {scheme!r}: --quantize takes {', '.join(SCHEMES)}")
    if scheme == "none":
        return w
    require(isinstance(w, np.ndarray), f"{path} is quantized already: take the original base")
    try:
        if scheme == "int8":
            return int8.quantize(w)
        code, _, double_quant = scheme.partition("-")
        return quantize_4bit(w, block_size, bool(double_quant), code)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


class ErrorRow(NamedTuple):
    """What quantization did to one weight."""

    path: str
    rmse: float  # root of the mean squared error
    relative_rmse: float  # the same over the root mean square of the weight
    max_error: float  # the largest error in units of the absmax of its block
    bits: float  # stored bits a parameter, scales included


def error_report(base, quantized):
    """An ErrorRow for every weight of `quantized` that is quantized; `base` holds the originals."""
    originals = flatten(base)
    return [
        _error_row(path, np.asarray(originals[path], np.float32), q)
        for path, q in flatten(quantized).items()
        if isinstance(q, (int8.Int8, nf4.Quantized))
    ]


def _error_row(path, w, q):
    error = q.dequantize() - w
    rmse, size = _rms(error), _rms(w)
    largest, absmax = _block_max(error, q.block_size), _block_max(w, q.block_size)
    share = largest[absmax > 0] / absmax[absmax > 0]
    return ErrorRow(
        path,
        rmse,
        rmse / size if size else 0.0,
        float(share.max(initial=0)),
        8 * q.nbytes / math.prod(q.shape),
    )


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _block_max(x, block_size):
    """The largest magnitude in each block of the flat x, the last filled up with zeros."""
    flat = np.abs(x).ravel()
    return np.pad(flat, (0, -flat.size % block_size)).reshape(-1, block_size).max(axis=1)

"""Quantization of a model, and the error of each weight.

Only the seven projections of each layer are quantized. They are most of a model's weights, and the
embedding, the norms and the head would lose most by quantization (QLoRA, Sec. 2, also keeps them in
full precision). These stay in the type of their file: see `low_precision.py`.
"""

import warnings
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import kernels, nf4
from ..config import ALL_LINEAR, POSITIVE_INT, InputError, check_setting, names_module
from ..double_quant import DoubleQuantized
from ..model import Model
from ..rounding import to_bfloat16
from ..tree import flatten, named_leaves, tree_map, unflatten
from . import int8
from .low_precision import LowPrecision

COMPUTE_DTYPES = ("float32", "bfloat16")
SCHEMES = ("none", "int8", "fp4", "nf4", "nf4-dq")  # nf4-dq: with double quantization
WITHOUT_BLOCKS = SCHEMES[:2]


def quantize(model: Model, scheme: str, block_size: int | None = None) -> Model:
    """Return a model with the weights of the projections quantized; it shares the other weights.

    scheme: "nf4", "nf4-dq" (with double quantization), "fp4", "int8" or "none". block_size: the
    weights per absmax in the 4-bit schemes (default: 64). Raises InputError for an unknown scheme,
    a wrong block size, one for another scheme, and a weight that is quantized already or not
    finite. `error_report` measures the error.
    """
    check_block_size(scheme, block_size)
    leaves = flatten(model.base)
    paths = [*filter(is_projection, leaves)]
    if scheme == "none" and any(storage_of(leaves[path]) != ("none", None) for path in paths):
        raise InputError("the base is quantized already: minilora.merge({}, model) is dense")
    for path in paths:
        leaves[path] = quantize_leaf(path, leaves[path], scheme, block_size)
    base = unflatten(leaves)
    stored, block = storage(base)
    return model._replace(base=base, source=model.source._replace(scheme=stored, block_size=block))


def check_block_size(scheme, block_size):
    """Raise InputError if a block size is given for weights that are stored without blocks."""
    if block_size is not None and scheme in WITHOUT_BLOCKS:
        raise InputError(f"`block_size` has no effect with `scheme` {scheme}: leave it out")


def storage(base):
    """Return (scheme, block size) of the quantized projections of a base; others may be dense.

    They are ("none", None) if no projection is quantized, or if they differ. The block size is None
    for weights without blocks.
    """
    found = {storage_of(w) for path, w in named_leaves(base) if is_projection(path)}
    found -= {("none", None)}
    return found.pop() if len(found) == 1 else ("none", None)


def storage_of(w):
    """Return (scheme, block size or None) of a weight, the arguments of `quantize`."""
    if isinstance(w, int8.Int8):
        return "int8", None
    if isinstance(w, nf4.Quantized):
        is_double = isinstance(w.stored_absmax, DoubleQuantized)
        return f"{w.quant_type}-dq" if is_double else w.quant_type, w.block_size
    return "none", None


def is_projection(path):
    """Return whether `path` is the weight of a projection."""
    return any(names_module(f"{name}.weight", path) for name in ALL_LINEAR)


def quantize_leaf(path, w, scheme, block_size=None):
    """Return the weight w (out, in) at `path` in `scheme`: an array, an Int8 or a Quantized."""
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}: choose from {', '.join(SCHEMES)}")
    if scheme == "none":
        return w
    if isinstance(w, LowPrecision):
        advice = "quantize the base first, and set the compute_dtype then"
        raise InputError(f"{path} is stored in {w.kind}: {advice}")
    if not isinstance(w, np.ndarray):
        raise InputError(f"{path} is quantized already: load the base without quantization")
    try:
        if scheme == "int8":
            return int8.quantize(w)
        size = 64 if block_size is None else block_size
        check_setting("block_size", size, POSITIVE_INT)
        code, _, double_quant = scheme.partition("-")
        return kernels.quantize_4bit(w, size, double_quant, code)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def with_compute_dtype(model: Model, dtype: str) -> Model:
    """Return a model whose frozen matrices are multiplied in `dtype`, bfloat16 or float32.

    bfloat16: both operands of a product are rounded to it, and the sums are in float32. Dense
    matrices are then stored in bfloat16, too, as PyTorch does with `dtype=torch.bfloat16`. Warns if
    this rounds a number, and raises InputError if the model is to be as it was before.
    """
    if (model.source.compute_dtype, dtype) == ("bfloat16", "float32"):
        raise InputError("the model may have been rounded to bfloat16: load it again for float32")
    base = tree_map(partial(leaf_in, dtype=dtype), model.base)
    stored = flatten(base)
    if any(is_rounded(w, stored[path]) for path, w in named_leaves(model.base)):
        what = f"the dense weights of {model.source.name or 'the model'} are rounded to {dtype}"
        warnings.warn(what, stacklevel=2)
    return model._replace(base=base, source=model.source._replace(compute_dtype=dtype))


def leaf_in(w, dtype):
    """Return a leaf of a base with this `compute_dtype`; a vector stays as it is."""
    if dtype not in COMPUTE_DTYPES:
        raise InputError(f"unknown compute_dtype {dtype!r}: choose {' or '.join(COMPUTE_DTYPES)}")
    if isinstance(w, np.ndarray):
        if dtype == "float32" or w.ndim == 1:
            return w
        w = LowPrecision("BF16", to_bfloat16(w))
    # a stack has settings, too, such as lora_scaling
    return w if getattr(w, "compute_dtype", dtype) == dtype else replace(w, compute_dtype=dtype)


def is_rounded(w, stored):
    """Return whether `leaf_in`, which made `stored` of the leaf w, rounded a number."""
    return (
        isinstance(w, np.ndarray) and stored is not w and not np.array_equal(stored.dequantize(), w)
    )


class ErrorRow(NamedTuple):
    """The error of one quantized weight."""

    path: str
    rmse: float  # root mean square of the error
    relative_rmse: float  # rmse / root mean square of the weight
    bits: float  # stored bits per weight, with scales


def error_report(base, quantized):
    """Return an ErrorRow per quantized weight of the tree `quantized`; base: the dense weights."""
    originals = flatten(base)
    rows = []
    for path, q in named_leaves(quantized):
        if isinstance(q, (int8.Int8, nf4.Quantized)):
            w = originals[path]
            rmse = _rms(q.dequantize() - w)
            size = _rms(w)
            bits = 8 * q.nbytes / w.size
            rows.append(ErrorRow(path, rmse, rmse / size if size else 0.0, bits))
    return rows


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

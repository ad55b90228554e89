"""linear-4bit: multiply by a weight that is stored in four bits.

Compute y = x Wᵀ. x is (..., in); w is (out, in), a dense float32 array or a quantized weight, which
`dense(w)` turns into a matrix. `_matmul(x, m)` is x m, for x with any number of axes. Return (...,
out). Keep the decorator, which hides the function from autograd.
"""

import numpy as np

from minilora import nf4
from minilora.course.outcome import close

CASES = {
    "rows": range(1, 4),
    "axes": [2, 3],
    "width": [4, 6],
    "out": [4, 6],
    "storage": ["nf4", "fp4", "dense"],
}
HIDDEN = {"rows": range(4, 7), "width": [9, 16], "out": [9, 11]}


def arguments(rng, rows, axes, width, out, storage):
    x = rng.uniform(-2, 2, (1, rows, width)[-axes:]).astype("f4")
    w = rng.uniform(-3, 3, (out, width)).astype("f4")
    return x, w if storage == "dense" else nf4.quantize(w, 16, quant_type=storage)


def tolerance(x, w):
    """float32, sums in any order: n terms of at most 2·3 and n partial sums, 2⁻²⁴ each."""
    return 6 * x.shape[-1] ** 2 * 2.0**-24


def plain(w):
    return nf4.dequantize(w) if isinstance(w, nf4.Quantized) else w


def property_row_by_row(function, x, w):
    """each output is the sum of x times a row of the dequantized weight"""
    rows = x.reshape(-1, w.shape[1])
    expected = [[np.dot(plain(w)[o].astype("f8"), row) for o in range(w.shape[0])] for row in rows]
    expected = np.array(expected, "f4").reshape(*x.shape[:-1], -1)
    close(np.asarray(function(x, w)), expected, tolerance(x, w))


def values(w, levels=None, scale=None, order=None):
    """Return a quantized weight, decoded with other levels, scales or order; or a dense weight.

    levels: of the sixteen codes; scale: a function of the absmax values; order: of the codes.
    """
    if not isinstance(w, nf4.Quantized):
        return w
    n = w.shape[0] * w.shape[1]
    codes = nf4.unpack_4bit(w.codes)
    codes = (codes if order is None else order(w.codes))[:n]
    levels = nf4.CODEBOOKS[w.quant_type].values if levels is None else levels
    absmax = w.absmax if scale is None else scale(w.absmax)
    return (levels[codes] * np.repeat(absmax, w.block_size)[:n]).reshape(w.shape).astype("f4")


def mistake_absmax_left_out(x, w):
    return x @ values(w, scale=np.ones_like).T


def mistake_first_absmax_for_all(x, w):
    return x @ values(w, scale=lambda absmax: 0 * absmax + absmax[0]).T


def mistake_divided_by_the_absmax(x, w):
    return x @ values(w, scale=np.reciprocal).T


def mistake_nibbles_swapped(x, w):
    return x @ values(w, order=lambda packed: nf4.unpack_4bit(packed << 4 | packed >> 4)).T


def mistake_codes_of_nibbles_apart(x, w):
    return x @ values(w, order=lambda packed: np.concatenate([packed >> 4, packed & 15])).T


def mistake_codes_as_numbers(x, w):
    return x @ values(w, levels=np.arange(16, dtype="f4")).T


def mistake_nf4_for_every_code(x, w):
    return x @ values(w, levels=nf4.CODEBOOKS["nf4"].values).T


def mistake_dense_weight_quantized(x, w):
    return x @ plain(w if isinstance(w, nf4.Quantized) else nf4.quantize(w)).T

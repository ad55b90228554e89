"""linear-4bit: multiply by a weight that is stored in four bits.

Compute y = x Wᵀ. x is (..., in); w is (out, in), a dense float32 array or a quantized weight, which
`dense(w)` turns into a matrix. Return (..., out). Keep the decorator, which hides the function from
autograd.
"""

from dataclasses import replace

import numpy as np

from minilora import nf4
from minilora.course.outcome import close

CASES = {
    "rows": range(1, 4),
    "width": [4, 6],
    "out": [4, 6],
    "storage": ["nf4", "fp4", "dense"],
}
HIDDEN = {"rows": range(4, 7), "width": [9, 16], "out": [9, 11]}


def arguments(rng, rows, width, out, storage):
    x = rng.uniform(-2, 2, (rows, 1, width)).astype("f4")
    w = rng.uniform(-3, 3, (out, width)).astype("f4")
    return x, w if storage == "dense" else nf4.quantize(w, 16, quant_type=storage)


def tolerance(x, w):
    """float32, sums in any order: n terms of at most 2·3 and n partial sums, 2⁻²⁴ each."""
    return 6 * x.shape[-1] ** 2 * 2.0**-24


def plain(w):
    return nf4.dequantize(w) if isinstance(w, nf4.Quantized) else w


def property_row_by_row(function, x, w):
    """each output is the sum of x times a row of the dequantized weight"""
    expected = [[np.dot(plain(w)[o].astype("f8"), row.ravel()) for o in range(w.shape[0])]
                for row in x]  # fmt: skip
    close(np.asarray(function(x, w))[:, 0], np.array(expected, "f4"), tolerance(x, w))


def values(w, scale):
    """Return the decoded codes of a 4-bit weight times scale; a dense weight unchanged."""
    if not isinstance(w, nf4.Quantized):
        return w
    n = w.shape[0] * w.shape[1]
    levels = nf4.CODEBOOKS[w.quant_type].values[nf4.unpack_4bit(w.codes)[:n]]
    return (levels * scale(w, n)).reshape(w.shape)


def mistake_absmax_left_out(x, w):
    return x @ values(w, lambda w, n: np.float32(1)).T


def mistake_first_absmax_for_all(x, w):
    return x @ values(w, lambda w, n: w.absmax[0]).T


def mistake_nibbles_swapped(x, w):
    if not isinstance(w, nf4.Quantized):
        return x @ w.T
    swapped = replace(w, codes=w.codes << 4 | w.codes >> 4)
    return x @ nf4.dequantize(swapped).T

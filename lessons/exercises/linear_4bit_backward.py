"""linear-4bit-backward: compute the gradient through a frozen 4-bit weight.

Compute the gradient of y = x Wᵀ with respect to x: ∂L/∂x = (∂L/∂y) W. g = ∂L/∂y is (..., out); w is
(out, in), a dense float32 array or a quantized weight, which `dense(w)` turns into a matrix. Return
(..., in).
"""

import numpy as np

from minilora import nf4
from minilora.course.outcome import close
from minilora.course.students.exercises import load
from minilora.layers import dense


def matmul_backward(g, w):
    """Compute ∂L/∂x of y = x Wᵀ from g = ∂L/∂y; W (out, in) is frozen, dense or quantized."""
    return g @ dense(w)


CASES = {
    "rows": range(1, 4),
    "axes": [2, 3],
    "width": [4, 6],
    "out": [4, 6],
    "quantized": [False, True],
}
HIDDEN = {"rows": range(4, 7), "width": [9, 16], "out": [9, 11]}


def arguments(rng, rows, axes, width, out, quantized):
    g = rng.uniform(-2, 2, (2, rows, out)[-axes:]).astype("f4")
    w = rng.uniform(-3, 3, (out, width)).astype("f4")
    return g, nf4.quantize(w, 16) if quantized else w


def tolerance(g, w):
    """float32: n terms of at most 2·3 and n partial sums, 2⁻²⁴ each."""
    return 6 * g.shape[-1] ** 2 * 2.0**-24


def plain(w):
    return nf4.dequantize(w) if isinstance(w, nf4.Quantized) else w


def property_the_same_number_from_both_sides(function, g, w):
    """for every x, Σ g∘(xWᵀ) = Σ (∂L/∂x)∘x: forward and backward are one bilinear form"""
    dx = np.asarray(function(g, w), "f8")
    for j in range(w.shape[1]):
        column = plain(w)[:, j].astype("f8")
        close(dx[..., j], g.astype("f8") @ column, tolerance(g, w))


def mistake_absmax_left_out(g, w):
    return g @ values(w, scale=np.ones_like)


def mistake_first_absmax_for_all(g, w):
    return g @ values(w, scale=lambda absmax: 0 * absmax + absmax[0])


def mistake_nibbles_swapped(g, w):
    return g @ values(w, order=lambda packed: nf4.unpack_4bit(packed << 4 | packed >> 4))


def mistake_codes_as_numbers(g, w):
    return g @ values(w, levels=np.arange(16, dtype="f4"))


def values(w, **how):
    """Return a quantized weight, decoded in another way; or a dense weight."""
    return load()["linear-4bit"].checks.values(w, **how)

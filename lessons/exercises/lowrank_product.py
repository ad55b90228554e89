"""lowrank-product: what an adapter adds, by two thin products.

y = scaling · B(Ax) for each row x of the last axis, without forming BA. x is (..., in), a is (r,
in), b is (out, r); or x is (batch, T, in), a (batch, r, in), b (batch, out, r), an adapter for
each row of the batch. Return (..., out).
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "batch": (1, 2),
    "length": (1, 3),
    "width": (2, 5),
    "out": (2, 5),
    "r": (2, 3),
    "per_row": [False, True],
    "flat": [False, True],
}
HIDDEN = {"batch": (3, 4), "length": (4, 7), "width": (6, 17), "r": (4, 6)}


def arguments(rng, batch, length, width, out, r, per_row, flat):
    front = (batch,) if per_row else ()
    x = rng.uniform(-2, 2, (length, width) if flat and not per_row else (batch, length, width))
    a, b = rng.uniform(-2, 2, (*front, r, width)), rng.uniform(-2, 2, (*front, out, r))
    return x, a, b, float(rng.uniform(1.5, 3))


def tolerance(*_):
    """float64: 17·6 terms of at most 3·2·2·2, some 2¹¹ in all, 2⁻⁵³ each; with room, 2⁻⁴²."""
    return 2.0**-42


def property_the_whole_update(function, x, a, b, scaling):
    """y is s·BA, formed as a matrix, times x"""
    update = scaling * (b @ a)  # (…, out, in)
    y = np.einsum("btd,bod->bto" if a.ndim == 3 else "...d,od->...o", x, update)
    close(function(x, a, b, scaling), y, tolerance())


def property_nothing_at_first(function, x, a, b, scaling):
    """with B = 0 nothing is added"""
    y = np.asarray(function(x, a, np.zeros_like(b), scaling))
    close(y, np.zeros((*x.shape[:-1], b.shape[-2])))

"""lowrank-product: what an adapter adds, by two thin products."""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "batch": (1, 2),
    "length": (1, 3),
    "width": (2, 5),
    "out": (2, 5),
    "r": (1, 3),
    "per_row": [False, True],
}


def arguments(rng, batch, length, width, out, r, per_row):
    front = (batch,) if per_row else ()
    x = rng.uniform(-2, 2, (batch, length, width))
    a, b = rng.uniform(-2, 2, (*front, r, width)), rng.uniform(-2, 2, (*front, out, r))
    return x, a, b, float(rng.uniform(1.5, 3))


def tolerance(*_):
    """float64: 5·3 terms of at most 3·2·2·2, some 2⁸ in all, 2⁻⁵³ each; with room, 2⁻⁴²."""
    return 2.0**-42


def property_the_whole_update(function, x, a, b, scaling):
    """y is s·BA, formed as a matrix, times x"""
    update = scaling * (b @ a)  # (…, out, in)
    y = np.einsum("btd,bod->bto" if a.ndim == 3 else "btd,od->bto", x, update)
    close(function(x, a, b, scaling), y, tolerance())


def property_nothing_at_first(function, x, a, b, scaling):
    """with B = 0 nothing is added"""
    y = np.asarray(function(x, a, np.zeros_like(b), scaling))
    close(y, np.zeros((*x.shape[:-1], b.shape[-2])))

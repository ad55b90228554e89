"""lowrank-gradient: the backward pass of s·BAx."""

import numpy as np

from minilora import products
from minilora.course.outcome import close, slope

CASES = {
    "batch": (1, 2),
    "length": (1, 3),
    "width": (2, 4),
    "out": (2, 4),
    "r": (1, 3),
}


def arguments(rng, batch, length, width, out, r):
    g, x = rng.uniform(-1, 1, (batch, length, out)), rng.uniform(-1, 1, (batch, length, width))
    a, b = rng.uniform(-1, 1, (r, width)), rng.uniform(-1, 1, (out, r))
    return g, x, a, b, float(rng.uniform(1.5, 3))


def tolerance(*_):
    """float64: sums of some 6·4·3 terms of at most 3, 2⁻⁵³ each; with room, 2⁻⁴²."""
    return 2.0**-42


def property_slopes(function, g, x, a, b, scaling):
    """each gradient is the slope of Σ g∘(s·BAx), by finite differences"""
    dx, da, db = function(g, x, a, b, scaling)
    bound = 1e-7  # slope: 1e-8 times the size of the sum, and that is at most some ten
    close(dx, slope(lambda x: g * products.lowrank(x, a, b, scaling), x), bound)
    close(da, slope(lambda a: g * products.lowrank(x, a, b, scaling), a), bound)
    close(db, slope(lambda b: g * products.lowrank(x, a, b, scaling), b), bound)


def property_why_b_moves_first(function, g, x, a, b, scaling):
    """with B = 0, ∂L/∂A is zero and ∂L/∂B is not"""
    _, da, db = function(g, x, a, np.zeros_like(b), scaling)
    close(da, np.zeros_like(a))
    assert np.any(np.asarray(db) != 0), "∂L/∂B is zero too: nothing would ever move"

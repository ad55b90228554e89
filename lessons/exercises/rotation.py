"""rotation: rotate queries and keys by the angles of their positions.

Element j (the first half of the last axis) and element j + hd/2 are a pair (a, b). Rotate each
pair by its angle: (a·cos − b·sin, b·cos + a·sin). The angles are the same for every head.

x is (B, T, heads, hd); cos and sin are (B, T, hd/2). Return an array of x's shape.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"length": range(1, 5), "heads": range(1, 4), "half": range(2, 5)}
HIDDEN = {"length": range(5, 10), "heads": range(3, 6), "half": range(5, 10)}


def arguments(rng, length, heads, half):
    angles = rng.uniform(-3, 3, (2, length, half))
    return rng.uniform(-2, 2, (2, length, heads, 2 * half)), np.cos(angles), np.sin(angles)


def tolerance(*_):
    """float64: two products of at most 2 and their sum."""
    return 2.0**-50


def property_lengths_stay(function, x, cos, sin):
    """a rotation does not change the length of a pair"""
    half = x.shape[-1] // 2
    y = np.asarray(function(x, cos, sin))
    close(y[..., :half] ** 2 + y[..., half:] ** 2, x[..., :half] ** 2 + x[..., half:] ** 2,
          2.0**-47)  # fmt: skip


def property_back_again(function, x, cos, sin):
    """a rotation by the angle and then by its negative gives x back"""
    close(function(function(x, cos, sin), cos, -sin), x, 2.0**-48)


def property_a_quarter_turn(function, x, cos, sin):
    """a rotation by 90 degrees turns (a, b) into (−b, a)"""
    half = x.shape[-1] // 2
    y = function(x, np.zeros_like(cos), np.ones_like(sin))
    close(y, np.concatenate([-x[..., half:], x[..., :half]], axis=-1))

"""one-file-apply-rope: encode positions by rotating pairs of numbers.

x is (N, H, T, hd), at the positions t = 0, 1, …, T − 1. Element j (of the first half of the last
axis) and element j + hd/2 are a pair (a, b). Rotate it by the angle t·θ^(−2j/hd), with θ = theta:
(a·cos − b·sin, b·cos + a·sin). Return an array of the shape of x. Angles in float32 or float64 are
both accepted.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"heads": range(1, 3), "length": range(1, 6), "half": range(2, 5), "theta": [10.0, 10000.0]}
HIDDEN = {"heads": range(3, 5), "length": range(6, 10), "half": range(5, 10)}


def arguments(rng, heads, length, half, theta):
    return rng.uniform(-2, 2, (2, heads, length, 2 * half)), theta


def tolerance(*_):
    """Angles of at most 9 in float32 have errors of some 2⁻²¹, and the numbers are at most 2."""
    return 2.0**-18


def property_lengths_stay(function, x, theta):
    """a rotation does not change the length of a pair"""
    half = x.shape[-1] // 2
    y = np.asarray(function(x, theta))
    squares = x[..., :half] ** 2 + x[..., half:] ** 2
    close(y[..., :half] ** 2 + y[..., half:] ** 2, squares, 2.0**-18)


def property_the_first_position(function, x, theta):
    """position 0 is not rotated"""
    close(np.asarray(function(x, theta))[:, :, 0], x[:, :, 0], 2.0**-40)

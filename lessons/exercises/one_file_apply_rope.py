"""one-file-apply-rope: encode positions by rotating pairs of numbers.

x is (N, H, T, hd), at the positions t = 0, 1, …, T − 1. Element j (of the first half of the last
axis) and element j + hd/2 are a pair (a, b). Rotate it by the angle t·θ^(−2j/hd), with θ = theta:
(a·cos − b·sin, b·cos + a·sin). Return an array of the shape of x. Angles in float32 or float64 are
both accepted. autograd must be able to differentiate it by x, so do not assign into arrays.
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
    """a rotation changes the numbers of a pair, but not its length"""
    half = x.shape[-1] // 2
    y = np.asarray(function(x, theta))
    assert (y[:, :, 1:] != x[:, :, 1:]).all(), "a later position is not rotated"
    squares = x[..., :half] ** 2 + x[..., half:] ** 2
    close(y[..., :half] ** 2 + y[..., half:] ** 2, squares, 2.0**-18)


def property_one_radian_per_position(function, x, theta):
    """position t rotates the first pair by t radians, so position 0 by nothing"""
    y = np.asarray(function(x, theta))
    half = x.shape[-1] // 2
    t = np.arange(x.shape[2])
    z = (x[..., 0] + 1j * x[..., half]) * np.exp(1j * t)
    close(y[..., 0], z.real, 2.0**-18)
    close(y[..., half], z.imag, 2.0**-18)


def tables(x, theta, axis=2):
    """Return cos and sin of the angles for x, with the positions along an axis."""
    hd = x.shape[-1]
    angles = np.arange(x.shape[axis])[:, None] * theta ** (-np.arange(0, hd, 2) / hd)
    angles = angles[:, None] if axis == 1 else angles
    return np.cos(angles), np.sin(angles)


def mistake_neighbours_interleaved(x, theta):
    (cos, sin), a, b = tables(x, theta), x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def mistake_positions_of_the_heads(x, theta):
    half = x.shape[-1] // 2
    (cos, sin), a, b = tables(x, theta, 1), x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def mistake_overwritten_half(x, theta):
    return mistake_overwritten_in_place(x.copy(), theta)


def mistake_overwritten_in_place(x, theta):
    half = x.shape[-1] // 2
    cos, sin = tables(x, theta)
    x[..., :half] = x[..., :half] * cos - x[..., half:] * sin
    x[..., half:] = x[..., half:] * cos + x[..., :half] * sin
    return x


def mistake_written_in_place(x, theta):
    half = x.shape[-1] // 2
    (cos, sin), a, b = tables(x, theta), x[..., :half].copy(), x[..., half:].copy()
    x[..., :half] = a * cos - b * sin
    x[..., half:] = b * cos + a * sin
    return x

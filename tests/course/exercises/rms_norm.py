"""rms-norm: scale each row to the same size.

Return y = x / √(mean(x²) + eps) · weight, with the mean over the last axis. x is (..., D), weight
is (D,), and eps is a float under the root. y has the shape of x. No mean is subtracted.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "rows": range(1, 4),
    "width": range(2, 7),
    "eps": [1e-5, 0.5],
}
HIDDEN = {"rows": range(4, 10), "width": range(7, 34)}


def arguments(rng, rows, width, eps):
    x = rng.uniform(-3, 3, (rows, 2, width)) + rng.uniform(1, 2)
    return x, rng.uniform(0.5, 2, width), eps


def tolerance(*_):
    """float64: |y| ≤ 2·√33, a sum of 33 terms and a few operations: some 40 times 2⁻⁵³·12."""
    return 2.0**-44


def property_the_mean_square(function, x, weight, eps):
    """before the gain, the mean of the squares is m/(m + ε), where m is that of x"""
    m = np.mean(x * x, axis=-1)
    close(np.mean((np.asarray(function(x, weight, eps)) / weight) ** 2, axis=-1), m / (m + eps),
          2.0**-44)  # fmt: skip


def property_only_direction(function, x, weight, eps):
    """with ε = 0, three times x gives the same result as x"""
    close(function(3 * x, weight, 0.0), function(x, weight, 0.0), 2.0**-46)

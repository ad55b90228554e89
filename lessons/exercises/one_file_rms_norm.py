"""one-file-rms-norm: scale each vector to a root mean square of 1.

Return y = x / √(mean(x²) + ε) · weight, with the mean over the last axis and ε =
config["rms_norm_eps"]. x is (…, D), weight is (D,), and y has the shape of x. autograd must be able
to differentiate it by x and weight: use autograd.numpy, and do not assign into arrays.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"rows": range(1, 4), "width": range(2, 7), "axes": [2, 3], "eps": [1e-5, 0.5]}
HIDDEN = {"rows": range(4, 10), "width": range(7, 34)}


def arguments(rng, rows, width, axes, eps):
    x = rng.uniform(-3, 3, (2, rows, width)[-axes:]) + rng.uniform(1, 2)
    return x, rng.uniform(0.5, 2, width), {"rms_norm_eps": eps}


def tolerance(*_):
    """float64: |y| ≤ 2·√33, a sum of 33 terms and a few operations: some 40 times 2⁻⁵³·12."""
    return 2.0**-44


def property_the_mean_square(function, x, weight, config):
    """before the weight, the mean of the squares is m/(m + ε), where m is that of x"""
    m = np.mean(x * x, axis=-1)
    square = np.mean((np.asarray(function(x, weight, config)) / weight) ** 2, axis=-1)
    close(square, m / (m + config["rms_norm_eps"]), 2.0**-44)

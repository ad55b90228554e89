"""What the properties of exercises share."""

import numpy as np

from .outcome import difference


def close(got, expected, bound=0.0):
    """Assert that two values (arrays, trees, tuples) are equal, floats to within `bound`."""
    found = difference(expected, got, bound)
    assert found is None, found[2]


def slope(function, x, step=1e-5):
    """∂ Σ function / ∂x by central differences, for a float64 array x: what a gradient must be.

    The error is of the order step², and 2⁻⁵³/step of rounding: use a bound of some 1e-8 times the
    size of what is summed.
    """
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append(np.sum(function(moved)))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient

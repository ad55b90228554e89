"""one-file-nearest: find the index of the nearest of several values.

values (n,) float32 is in rising order, and x is an array of any shape. Return the index of the
nearest value for each number of x: a flat array of whole numbers, in the order of x.ravel().
Exactly halfway between two values, take the lower one.
"""

import numpy as np

CASES = {
    "rows": range(1, 4),
    "width": range(2, 7),
    "axes": [1, 2],
    "count": [16, 256],
    "ties": [False, True],
}
HIDDEN = {"rows": range(4, 8), "width": range(7, 41), "count": [2, 31]}


def arguments(rng, rows, width, axes, count, ties):
    # multiples of 1/512, whose midpoints and differences are exact in float32
    values = np.sort(rng.choice(1025, count, replace=False)).astype("f4") / 512 - 1
    x = rng.integers(-700, 701, (rows, width)).astype("f4") / 512
    if ties:
        n = rng.integers(0, count - 1, (rows, (width + 1) // 2))
        x[:, ::2] = (values[n] + values[n + 1]) / 2
    return x if axes == 2 else x.ravel(), values


def property_nothing_is_nearer(function, x, values):
    """no value is nearer to x than the value of its index"""
    index = np.asarray(function(x, values))
    distance = np.abs(x.reshape(-1, 1) - values)
    assert (distance[np.arange(x.size), index] == distance.min(axis=1)).all()

"""nearest-code: find the code of the nearest of sixteen values.

x is (n,) float32 and code is a `minilora.nf4.Code`. `code.midpoints` (15,), in rising order, are
halfway between neighbouring values; `code.order` (16,) uint8 are the codes in the order of rising
values. Return for each x the code of the nearest of the sixteen values, (n,) whole numbers. Exactly
on a midpoint, take the code of the lower value.
"""

import numpy as np

from minilora import nf4

CASES = {"n": (1, 40), "code": ["nf4", "fp4"], "ties": [False, True]}
HIDDEN = {"n": (41, 300)}


def arguments(rng, n, code, ties):
    x = rng.uniform(-1, 1, n).astype(np.float32)
    if ties:  # some elements exactly halfway between two values
        x[::2] = rng.choice(nf4.CODES[code].midpoints, x[::2].size)
    return x, nf4.CODES[code]


def property_nothing_is_nearer(function, x, code):
    """none of the sixteen values is nearer to x than the value of its code"""
    codes = np.asarray(function(x, code))
    assert codes.shape == x.shape, f"shape {codes.shape} for x of shape {x.shape}"
    distance = np.abs(x[:, None] - code.values).astype(np.float64)  # (n, 16)
    # x, a value and their difference are at most 2: one rounding of 2⁻²⁴·2 on either side
    assert (distance[np.arange(x.size), codes] <= distance.min(axis=1) + 2**-22).all()

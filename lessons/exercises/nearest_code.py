"""nearest-code: of sixteen values, the code of the one that is nearest.

x (n,) float32 and code, a `minilora.nf4.Code`: `code.midpoints` (15,) are the places halfway
between neighbouring values, rising; `code.order` (16,) uint8 are the codes by rising value.
Return for each x the code (n,) of the nearest of the sixteen values, as whole numbers. Exactly on
a midpoint, take the lower value's.
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
    """no other of the sixteen values is nearer to x than the one that its code names"""
    codes = np.asarray(function(x, code))
    assert codes.shape == x.shape, f"shape {codes.shape} for x of shape {x.shape}"
    distance = np.abs(x[:, None] - code.values).astype(np.float64)  # (n, 16)
    # x, a value and their difference are at most 2: one rounding of 2⁻²⁴·2 on either side
    assert (distance[np.arange(x.size), codes] <= distance.min(axis=1) + 2**-22).all()

"""nearest-code: find the code of the nearest of sixteen values.

x is (n,) float32 and codebook is a `minilora.nf4.Codebook`. `codebook.midpoints` (15,), in rising
order, are halfway between neighbouring values; `codebook.order` (16,) uint8 are the codes in the
order of rising values. Return for each x the code of the nearest of the sixteen values, (n,) whole
numbers. Exactly on a midpoint, take the code of the lower value.
"""

import numpy as np

from minilora import nf4

CASES = {"n": range(1, 41), "quant_type": ["nf4", "fp4"], "ties": [False, True]}
HIDDEN = {"n": range(41, 301)}


def arguments(rng, n, quant_type, ties):
    x = rng.uniform(-1, 1, n).astype(np.float32)
    if ties:  # some elements exactly halfway between two values
        x[::2] = rng.choice(nf4.CODEBOOKS[quant_type].midpoints, x[::2].size)
    return x, nf4.CODEBOOKS[quant_type]


def property_nothing_is_nearer(function, x, codebook):
    """none of the sixteen values is nearer to x than the value of its code"""
    codes = np.asarray(function(x, codebook))
    assert codes.shape == x.shape
    distance = np.abs(x[:, None] - codebook.values).astype(np.float64)  # (n, 16)
    # x, a value and their difference are at most 2: one rounding of 2⁻²⁴·2 on either side
    assert (distance[np.arange(x.size), codes] <= distance.min(axis=1) + 2**-22).all()

"""absmax-blocks: scale each block of weights to [−1, 1].

w (n,) float32 consists of blocks of `block_size` neighbours; the last block may be shorter. The
absmax of a block is its largest magnitude. Return (x, absmax): x (n,) float32 is each w divided by
the absmax of its block, and absmax (m,) float32 has one value per block, m = ⌈n/block_size⌉. In a
block of zeros, x is 0 and absmax may be anything from 0 to TINY. The last bit of x may differ.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "blocks": range(4),
    "rest": range(4),
    "block_size": [4, 8],
    "zeros": [False, True],
    "negative": [False, True],
}
HIDDEN = {"blocks": range(4, 10), "block_size": [16, 64], "rest": range(16)}


def arguments(rng, blocks, rest, block_size, zeros, negative):
    w = rng.uniform(-3, 3, (blocks * block_size + rest) or 1).astype("f4")
    if negative:  # all numbers are negative
        w = -np.abs(w)
    if zeros:
        w[:block_size] = 0
    return w, block_size


def tolerance(*_):
    """w/absmax or w·(1/absmax): two roundings, 2⁻²⁴ of at most 1 each; a property checks absmax."""
    return 2.0**-22


def property_one_absmax_per_block(function, w, block_size):
    """the absmax of a block is its largest magnitude, exactly"""
    blocks = [w[at : at + block_size] for at in range(0, w.size, block_size)]
    expected = np.array([np.abs(block).max() for block in blocks])
    close(np.asarray(function(w, block_size)[1], "f4"), expected, 2e-38)


def property_between_minus_one_and_one(function, w, block_size):
    """no |x| is above 1, and every block that is not zero has an |x| of 1"""
    x = np.asarray(function(w, block_size)[0])
    assert np.isfinite(x).all(), "x is not finite: a block of zeros is divided by its absmax"
    # w·(1/absmax): the reciprocal and the product round, 2⁻²⁴ each
    assert np.abs(x).max() <= 1 + 2**-22
    for at in range(0, w.size, block_size):
        if w[at : at + block_size].any():
            assert np.abs(x[at : at + block_size]).max() >= 1 - 2**-22


def property_back_again(function, w, block_size):
    """x times the absmax of its block is w"""
    x, absmax = function(w, block_size)
    again = np.asarray(x) * np.repeat(absmax, block_size)[: w.size]
    close(again, w, 3 * 2.0**-22)

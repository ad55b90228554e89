"""absmax-blocks: a row of weights, block by block, brought into [−1, 1]."""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "blocks": (1, 3),
    "rest": (0, 3),
    "block_size": [4, 8],
    "zeros": [False, True],
    "negative": [False, True],
}


def arguments(rng, blocks, rest, block_size, zeros, negative):
    w = rng.uniform(-3, 3, blocks * block_size + rest).astype("f4")
    if negative:  # the largest of every block is below zero
        w = -np.abs(w)
    if zeros:
        w[:block_size] = 0
    return w, block_size


def property_between_minus_one_and_one(function, w, block_size):
    """no |x| is above 1, and every block that is not zero reaches it"""
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

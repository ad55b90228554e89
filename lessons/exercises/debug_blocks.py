"""debug-blocks: an error that depends on the other rows.

`round_trip` quantizes a matrix to int4 and dequantizes it. If all rows of the matrix have about the
same size, the error is as small as it should be. If one row is ten times larger than the others,
the error is huge in that row and in others. Find the fault and repair it, in one line.
"""

import numpy as np

CASES = {"rows": range(2, 5), "blocks": range(1, 4), "block_size": range(2, 5)}
HIDDEN = {"rows": range(5, 9), "blocks": range(2, 5), "block_size": range(5, 9)}


def arguments(rng, rows, blocks, block_size):
    w = rng.uniform(0.1, 1, (rows, blocks * block_size))
    w *= rng.choice([-1, 1], w.shape) * rng.uniform(0.1, 10, (rows, 1))
    return w, block_size


def tolerance(*_):
    """float64: numbers of at most 10, three roundings."""
    return 2.0**-46


def property_the_largest_comes_back(function, w, block_size):
    """the weight of the largest magnitude of each block comes back"""
    back = np.reshape(function(w, block_size)[2], (-1, block_size))
    blocks = w.reshape(-1, block_size)
    at = np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)
    assert np.abs(back[at] - blocks[at]).max() <= tolerance()


def property_the_error_of_a_block(function, w, block_size):
    """the error of a weight is at most half a step, a 14th of the absmax of its block"""
    back = np.reshape(function(w, block_size)[2], (-1, block_size))
    blocks = w.reshape(-1, block_size)
    steps = np.abs(blocks).max(axis=1, keepdims=True) / 7
    assert (np.abs(back - blocks) <= steps / 2 + tolerance()).all()


def round_trip(w, block_size):
    """Quantize w (out, in) to int4 and dequantize it; return (codes, absmax, matrix).

    A block is block_size neighbouring weights of a row, M blocks in all. The codes (out, in) are
    whole numbers from -7 to 7, the absmax values have the shape (M,), and the matrix that of w.
    """
    blocks = w.reshape(-1, block_size)
    absmax = np.max(np.abs(blocks), axis=1)
    codes = np.rint(blocks / absmax[:, None] * 7).astype(np.int8)
    codes = codes.reshape(w.shape)
    steps = np.repeat(absmax / 7, block_size)  # one per weight
    return codes, absmax, codes * steps.reshape(w.shape)

"""one-file-dequantize: turn an NF4Weight back into a matrix.

q.codes has two codes per byte, the first one in the high four bits. The weight consists of blocks
of 64 numbers, row by row. q.absmax_codes has one code per block, and q.nested_absmax one scale per
256 blocks. The absmax of a block is DYNAMIC_MAP[absmax_code] · scale + q.offset. Each number is
NF4[code] · absmax. Return a float32 array of the shape q.shape.
"""

import numpy as np

from minilora.course.one_file import DYNAMIC_MAP, quantize

CASES = {"out": [8, 16, 136], "width": [64, 128]}
HIDDEN = {"out": [24, 264], "width": [128]}


def arguments(rng, out, width):
    sizes = rng.uniform(0.5, 2, (out * width // 64, 1))
    w = rng.standard_normal((out * width // 64, 64)) * sizes
    return (quantize(w.astype("f4").reshape(out, width)),)


def tolerance(q):
    """float32, magnitudes of at most 16: three roundings of 2⁻²⁴·16 each."""
    return 2.0**-18


def property_the_same_codes(function, q):
    """if the matrix is quantized again, its codes are the same"""
    w = np.asarray(function(q), "f4")
    assert w.shape == q.shape, f"shape {w.shape} instead of {q.shape}"
    assert np.array_equal(quantize(w).codes, q.codes)


def property_absmax_of_a_byte(function, q):
    """the largest magnitude of a block is scale · DYNAMIC_MAP[code] + offset, for some code"""
    largest = np.abs(np.asarray(function(q))).reshape(-1, 64).max(axis=1)
    scale = np.repeat(q.nested_absmax, 256)[: len(largest)]
    gaps = np.abs(scale[:, None] * DYNAMIC_MAP + q.offset - largest[:, None])
    # float32: two roundings of numbers of at most 5
    assert gaps.min(axis=1).max() <= 2**-20

"""one-file-dequantize: turn an NF4Weight back into a matrix.

q.codes has two codes per byte, the first one in the high four bits. The weight consists of blocks
of 64 numbers, row by row. q.absmax_codes has one code per block, and q.nested_absmax one scale per
256 blocks. The absmax of a block is DYNAMIC_MAP[absmax_code] · scale + q.offset. Each number is
NF4[code] · absmax. Return an array of the shape q.shape.
"""

import numpy as np

from minilora.course.one_file import quantize

CASES = {"out": [8, 16, 136], "width": [64, 128]}
HIDDEN = {"out": [24, 264], "width": [128]}


def arguments(rng, out, width):
    sizes = rng.uniform(0.5, 2, (out * width // 64, 1))
    w = rng.standard_normal((out * width // 64, 64)) * sizes
    return (quantize(w.astype("f4").reshape(out, width)),)


def tolerance(q):
    """float32, magnitudes of at most 16: three roundings of 2⁻²⁴·16 each."""
    return 2.0**-18


def property_no_zero_block(function, q):
    """the largest magnitude of each block is its absmax, up to the double quantization"""
    blocks = np.abs(np.asarray(function(q)).reshape(-1, 64))
    assert (blocks.max(axis=1) > 0).all()
    assert blocks.reshape(q.shape).shape == q.shape

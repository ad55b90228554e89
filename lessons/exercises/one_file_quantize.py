"""one-file-quantize: quantize a weight to NF4 with double quantization.

w (out, in) is float32, and its size is a multiple of 64. Cut its numbers, row by row, into blocks
of 64 neighbours. Divide each block by its absmax, the largest magnitude in it (no block is zero),
and take the index of the nearest NF4 value, 0 to 15: `nearest(normalized, NF4)`, flat. Return
NF4Weight(codes, absmax_codes, nested_absmax, offset, shape):

- codes, uint8: code 2i in the high four bits of byte i, and code 2i + 1 in the low four bits;
- absmax_codes, nested_absmax, offset: `double_quantize(absmax)`;
- shape: the shape of w.
"""

import numpy as np

from minilora.course.one_file import NF4, dequantize

CASES = {"out": [8, 16], "width": [64, 128, 96]}
HIDDEN = {"out": [24, 32], "width": [32, 192, 160]}


def arguments(rng, out, width):
    """Draw numbers near the sixteen values, so that a last bit does not change a code."""
    m = out * width // 64
    x = NF4[rng.integers(0, 16, (m, 64))] + rng.uniform(-0.02, 0.02, (m, 64))
    x = np.clip(x, -0.99, 0.99)
    x[np.arange(m), rng.integers(0, 64, m)] = rng.choice([-1, 1], m)  # the largest magnitude
    return ((x * rng.uniform(0.5, 2, (m, 1))).astype("f4").reshape(out, width),)


def property_half_a_gap(function, w):
    """dequantized, no number is off by more than a fifth of the largest magnitude"""
    back = dequantize(function(w))
    # half of the widest gap is 0.15; double quantization changes an absmax by a few percent
    assert np.max(np.abs(back - w)) <= 0.2 * np.max(np.abs(w))


def property_bytes(function, w):
    """two numbers share a byte, 64 share a code of their absmax, and one of these 64 is ±1"""
    q = function(w)
    assert (np.size(q.codes), np.size(q.absmax_codes)) == (w.size // 2, w.size // 64)
    codes = np.stack([q.codes >> 4, q.codes & 15], axis=1).reshape(-1, 64)
    ends = ((codes == 0) | (codes == 15)).any(axis=1)
    assert ends.all() and len(np.unique(codes)) == 16, "no code of ±1 in a block, or few codes"

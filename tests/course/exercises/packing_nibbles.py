"""packing-nibbles: pack two 4-bit codes into each byte.

codes is (2k,) uint8, each from 0 to 15. Return (k,) uint8: byte i has code 2i in its high four
bits and code 2i + 1 in its low four bits.
"""

import numpy as np

from minilora import nf4

CASES = {"pairs": range(2, 21)}
HIDDEN = {"pairs": range(21, 401)}


def arguments(rng, pairs):
    return (rng.integers(0, 16, 2 * pairs).astype(np.uint8),)


def property_a_code_costs_four_bits(function, codes):
    """two codes take one byte"""
    assert np.asarray(function(codes)).nbytes == codes.size // 2


def property_unpacking_gives_the_codes_back(function, codes):
    """unpack(pack(codes)) is codes"""
    assert np.array_equal(nf4.unpack_4bit(np.asarray(function(codes))), codes)

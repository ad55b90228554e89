"""packing-nibbles: two 4-bit codes in a byte."""

import numpy as np

from minilora import nf4

CASES = {"pairs": (1, 20)}


def arguments(rng, pairs):
    return (rng.integers(0, 16, 2 * pairs).astype(np.uint8),)


def property_a_code_costs_four_bits(function, codes):
    """two codes take one byte"""
    assert np.asarray(function(codes)).nbytes == codes.size // 2


def property_unpacking_gives_the_codes_back(function, codes):
    """unpack(pack(codes)) is codes"""
    assert np.array_equal(nf4.unpack(np.asarray(function(codes))), codes)

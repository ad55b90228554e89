"""double-quantization: the scales of a 4-bit weight, in eight bits themselves."""

import numpy as np

from minilora.course.outcome import close
from minilora.nested import BLOCK, DYNAMIC

CASES = {"m": (1, 600), "spread": [0.1, 0.5]}


def arguments(rng, m, spread):
    absmax = (1 + spread * rng.uniform(-1, 1, m)).astype("f4")
    return np.float32(rng.uniform(0.8, 1.2)), absmax


def observe(result, offset, absmax):
    return result.codes, result.absmax, result.offset


def property_as_near_as_eight_bits_allow(function, offset, absmax):
    """what it stands for is off by at most half the widest gap, times the absmax of its block"""
    q = function(offset, absmax)
    scale = np.repeat(q.absmax, BLOCK)[: absmax.size]
    again = DYNAMIC[q.codes] * scale + q.offset
    # half the widest gap, a step of 2/65,535 that is rounded to first, and float32's own roundings
    bound = (np.diff(DYNAMIC).max() / 2 + 2 / 65535) * scale.max() + 2**-21
    close(again, absmax, float(bound))


def property_two_levels(function, offset, absmax):
    """a byte an absmax, and a second absmax for 256 of them"""
    q = function(offset, absmax)
    assert np.asarray(q.codes).dtype == np.uint8, f"codes of {np.asarray(q.codes).dtype}"
    assert (len(q.codes), len(q.absmax)) == (absmax.size, -(-absmax.size // BLOCK))

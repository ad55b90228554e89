"""double-quantization: quantize the absmax values of a 4-bit weight to 8 bits.

absmax is (m,) float32, offset is a float32 near its mean. Subtract the offset. Divide the result
into blocks of NESTED_BLOCK_SIZE = 256 neighbours; the last block may be shorter. The nested absmax
of a block is its largest magnitude. Divide each number by the nested absmax of its block, and give
it the code of the nearest of the 256 values of `minilora.double_quant.DYNAMIC_MAP`, all in [−1, 1].
bitsandbytes first rounds to the nearest of 65,536 equal steps from −1 to 1. This is also accepted.

Return DoubleQuantized(codes (m,) uint8, nested_absmax (⌈m/256⌉,) float32, offset).
"""

import numpy as np

from minilora.course.outcome import close
from minilora.double_quant import DYNAMIC_MAP, NESTED_BLOCK_SIZE

CASES = {"m": range(2, 601), "spread": [0.1, 0.5]}
HIDDEN = {"m": range(601, 1501), "spread": [0.3]}
STEP = 2 / 65535 + 2**-20


def arguments(rng, m, spread):
    absmax = (1 + spread * rng.uniform(-1, 1, m)).astype("f4")
    return absmax, np.float32(rng.uniform(0.8, 1.2))


def gaps(absmax, q):
    """Return (m, 256): the distance of each map value from each absmax, in units of the scale."""
    scale = np.repeat(np.asarray(q.nested_absmax), NESTED_BLOCK_SIZE)[: absmax.size]
    x = (absmax - q.offset) / np.where(scale > 0, scale, 1)
    return np.abs(DYNAMIC_MAP - x[:, None].astype("f8"))


def observe(result, absmax, offset):
    """Return the parts; codes within a step of 2/65,535 of the nearest count as the nearest."""
    codes, gap = np.array(result.codes), gaps(absmax, result)
    first = codes[: absmax.size]
    nearest = gap.argmin(axis=1)
    rows = np.arange(first.size)
    near = gap[rows, first] - gap[rows, nearest] <= STEP
    first[near] = nearest[near]
    return codes, result.nested_absmax, result.offset


def tolerance(*_):
    """Scales and offset of at most 2."""
    return 2.0**-23


def property_largest_magnitudes(function, absmax, offset):
    """the scale of a block is the largest magnitude in it, and the offset is kept"""
    q = function(absmax, offset)
    rest = np.abs(absmax - offset)
    expected = [
        rest[at : at + NESTED_BLOCK_SIZE].max() for at in range(0, rest.size, NESTED_BLOCK_SIZE)
    ]
    close(np.asarray(q.nested_absmax, "f4"), np.array(expected), 2.0**-24)
    close(np.float32(q.offset), offset)


def property_the_nearest_code(function, absmax, offset):
    """no value of the map is nearer than the decoded one by more than a step of 2/65,535"""
    q = function(absmax, offset)
    gap = gaps(absmax, q)
    found = (gap[np.arange(absmax.size), q.codes] - gap.min(axis=1)).max()
    assert found <= STEP, f"a value is nearer by {found:.2g}"


def property_two_levels(function, absmax, offset):
    """there is one byte per absmax, and one second-level scale per 256 of them"""
    q = function(absmax, offset)
    assert np.asarray(q.codes).dtype == np.uint8, f"codes of {np.asarray(q.codes).dtype}"
    assert (len(q.codes), len(q.nested_absmax)) == (
        absmax.size,
        -(-absmax.size // NESTED_BLOCK_SIZE),
    )

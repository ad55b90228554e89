"""one-file-double-quantize: quantize the absmax values of a weight to 8 bits.

absmax is (m,) float32. The offset is `np.mean(absmax)`. Subtract it, and cut the
differences into blocks of 256; the last block may be shorter, and no block is constant. The scale
of a block is the largest magnitude in it. Divide each difference by its scale, and take the index
of the nearest of the 256 values DYNAMIC_MAP. The lesson first rounds to one of 65,536 equal steps,
as bitsandbytes does. This is also accepted.

Return (absmax_codes (m,) of whole numbers, nested_absmax (⌈m/256⌉,) float32, offset).
"""

import numpy as np

from minilora.course.one_file import DYNAMIC_MAP, nearest
from minilora.course.outcome import close

CASES = {"m": range(8, 601), "spread": [0.1, 0.5]}
HIDDEN = {"m": range(601, 1301), "spread": [0.3]}
STEP = 2 / 65535 + 2**-20


def arguments(rng, m, spread):
    """Draw multiples of 1/2048: their sum is exact in any order, so every mean is equal."""
    return (np.rint(2048 * (1 + spread * rng.uniform(-1, 1, m) ** 3)).astype("f4") / 2048,)


def gaps(absmax, nested, offset):
    """Return (m, 256): the distance of each map value from each absmax, in units of the scale."""
    scale = np.repeat(np.asarray(nested), 256)[: absmax.size]
    x = (absmax - offset) / np.where(scale > 0, scale, 1)
    return np.abs(DYNAMIC_MAP - x[:, None].astype("f8"))


def observe(result, absmax):
    """Return the parts; codes within a step of 2/65,535 of the nearest count as the nearest."""
    codes, nested, offset = result
    codes = np.array(codes)
    blocks = -(-absmax.size // 256)
    if codes.dtype.kind not in "iu" or codes.ndim != 1 or np.shape(nested) != (blocks,):
        return result
    gap = gaps(absmax, nested, offset)
    first, nearest, rows = codes[: absmax.size], gap.argmin(axis=1), np.arange(absmax.size)
    near = gap[rows, first] - gap[rows, nearest] <= STEP
    first[near] = nearest[near]
    return codes, nested, offset, np.asarray(nested).dtype.name


def tolerance(absmax):
    """Scales and offset of at most 1.5."""
    return 2.0**-23


def property_largest_magnitudes(function, absmax):
    """the scale of a block is the largest distance from the mean in it"""
    rest = np.abs(absmax - np.mean(absmax))
    expected = [rest[at : at + 256].max() for at in range(0, rest.size, 256)]
    close(np.asarray(function(absmax)[1], "f4"), np.array(expected), 2.0**-20)


def property_the_nearest_code(function, absmax):
    """no value of the map is nearer than the decoded one by more than a step of 2/65,535"""
    codes, nested, offset = function(absmax)
    assert len(codes) == absmax.size, f"{len(codes)} codes for {absmax.size} numbers"
    gap = gaps(absmax, nested, offset)
    found = (gap[np.arange(absmax.size), codes] - gap.min(axis=1)).max()
    assert found <= STEP, f"a value is nearer by {found:.2g}"


def mistake_mean_of_each_block(absmax):
    blocks = [absmax[at : at + 256] for at in range(0, len(absmax), 256)]
    rest = np.concatenate([block - np.mean(block) for block in blocks])
    nested = np.array([np.abs(rest[at : at + 256]).max() for at in range(0, len(rest), 256)])
    x = rest / np.repeat(nested, 256)[: len(rest)]
    return nearest(x, DYNAMIC_MAP), nested, np.mean(absmax)

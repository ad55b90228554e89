"""attention: causal, grouped, with rotary positions."""

import numpy as np

from minilora import nn
from minilora.config import ModelConfig
from minilora.course.outcome import close

CASES = {
    "batch": (1, 2),
    "length": (1, 5),
    "groups": (1, 2),
    "kv_heads": (1, 2),
    "half": (1, 2),
    "packed": [False, True],
    "prefix": (0, 2),
}


def arguments(rng, batch, length, groups, kv_heads, half, packed, prefix):
    hd = 2 * half
    q = rng.uniform(-2, 2, (batch, length, groups * kv_heads * hd))
    k, v = rng.uniform(-2, 2, (2, batch, length, kv_heads * hd))
    shape = ModelConfig(8, hd, 8, 1, groups * kv_heads, kv_heads, hd, rope_theta=100.0)
    positions = np.repeat(np.arange(length)[None], batch, axis=0)
    starts = np.zeros((batch, length), int)
    if packed:  # a second example begins in the middle of the row
        starts[:, length // 2 :] = length // 2
    rows = tuple(rng.uniform(-2, 2, (2, prefix, kv_heads * hd))) if prefix else None
    return q, k, v, nn.rotation(positions, shape, np.float64), starts, None, rows


def tolerance(*_):
    """float64; a score is at most 4·4/√4·√2 and a value 2, so an error of 2⁻⁵³·40 in a score
    is one of some 2⁻⁴⁷ in the mean; a hundred times that for sums in another order."""
    return 2.0**-40


def property_a_mean_of_values(function, q, k, v, angles, starts, cache, prefix):
    """where all values are one, so is every mean of them"""
    ones = None if prefix is None else (prefix[0], np.ones_like(prefix[1]))
    y = function(q, k, np.ones_like(v), angles, starts, cache, ones)
    close(y, np.ones_like(q), 2.0**-40)


def property_causal(function, q, k, v, angles, starts, cache, prefix):
    """what comes later changes nothing before it"""
    later_k, later_v = k.copy(), v.copy()
    later_k[:, -1:] += 1
    later_v[:, -1:] -= 3
    a, b = (
        np.asarray(function(q, key, value, angles, starts, cache, prefix))
        for key, value in ((k, v), (later_k, later_v))
    )
    close(b[:, :-1], a[:, :-1], 2.0**-40)


def property_only_distance_counts(function, q, k, v, angles, starts, cache, prefix):
    """turning all queries and keys by one angle more changes nothing, without a prefix"""
    if prefix is None:
        cos, sin = angles
        more = np.cos(0.5), np.sin(0.5)
        turned = cos * more[0] - sin * more[1], sin * more[0] + cos * more[1]
        close(function(q, k, v, turned, starts), function(q, k, v, angles, starts), 2.0**-40)

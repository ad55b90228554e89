"""attention: causal, grouped, with rotary positions."""

from copy import deepcopy

import numpy as np
from hypothesis import strategies as st

from minilora import layers
from minilora.config import ModelConfig
from minilora.course.outcome import close

CASES = {
    "batch": st.integers(1, 2),
    "length": st.integers(1, 5),
    "groups": st.integers(1, 2),
    "kv_heads": st.integers(1, 2),
    "half": st.integers(1, 2),
    "packed": st.booleans(),
    "past": st.integers(0, 2),
}


def arguments(rng, batch, length, groups, kv_heads, half, packed, past):
    hd = 2 * half
    q = rng.uniform(-2, 2, (batch, length, groups * kv_heads * hd))
    k, v = rng.uniform(-2, 2, (2, batch, length, kv_heads * hd))
    shape = ModelConfig(8, hd, 8, 1, groups * kv_heads, kv_heads, hd, rope_theta=100.0)
    positions = np.repeat(past + np.arange(length)[None], batch, axis=0)
    starts = np.zeros((batch, length), int)
    if packed:  # a second example begins in the middle of the row
        starts[:, length // 2 :] = length // 2
    cache = None
    if past:  # earlier tokens, with their keys rotated already
        cache = layers.LayerCache()
        cache.extend(*rng.uniform(-2, 2, (2, batch, past, kv_heads, hd)))
    return q, k, v, layers.rope_cos_sin(positions, shape, np.float64), starts, cache


def tolerance(*_):
    """float64; a score is at most 4·4/√4·√2 and a value 2, so an error of 2⁻⁵³·40 in a score
    is one of some 2⁻⁴⁷ in the mean; a hundred times that for sums in another order."""
    return 2.0**-40


def property_a_mean_of_values(function, q, k, v, rope, starts, cache):
    """where all values are one, so is every mean of them"""
    if cache is not None:
        cache = deepcopy(cache)
        cache.v = np.ones_like(cache.v)
    close(function(q, k, np.ones_like(v), rope, starts, cache), np.ones_like(q), 2.0**-40)


def property_causal(function, q, k, v, rope, starts, cache):
    """what comes later changes nothing before it"""
    later_k, later_v = k.copy(), v.copy()
    later_k[:, -1:] += 1
    later_v[:, -1:] -= 3
    a, b = (
        np.asarray(function(q, key, value, rope, starts, deepcopy(cache)))
        for key, value in ((k, v), (later_k, later_v))
    )
    close(b[:, :-1], a[:, :-1], 2.0**-40)


def property_only_distance_counts(function, q, k, v, rope, starts, cache):
    """turning all queries and keys by one angle more changes nothing, without a cache"""
    if cache is None:
        cos, sin = rope
        more = np.cos(0.5), np.sin(0.5)
        turned = cos * more[0] - sin * more[1], sin * more[0] + cos * more[1]
        close(function(q, k, v, turned, starts), function(q, k, v, rope, starts), 2.0**-40)

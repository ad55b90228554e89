"""attention: compute causal attention with grouped heads and rotary positions.

Write `attention`; `attention_mask` is a helper that you may write too or leave out.

H query heads share K key and value heads: query head h reads key head ⌊h·K/H⌋. hd is twice the
length of the last axis of the cosines, rope[0]. Steps:

1. Reshape q to (B, T, H, hd), k and v to (B, T, K, hd). Rotate q and k with `apply_rope(·, *rope)`.
2. If there is a cache, `k, v = cache.extend(k, v)` appends (B, T, K, hd) and returns all S keys and
   values so far; the keys of earlier tokens are already rotated.
3. Compute the scores q·k/√hd. The last T of the S keys belong to the tokens. A token t sees all
   keys before these T, and of these T (counted from 0) those from segment_starts[t] to t.
4. Apply the softmax over the visible keys, without overflow for large scores, and multiply by v.

Return (B, T, H·hd). The checks leave `window` at None.
"""

from copy import deepcopy

import numpy as np

from minilora import layers
from minilora.config import ModelConfig
from minilora.course.outcome import close

CASES = {
    "batch": [1, 2],
    "length": range(1, 6),
    "groups": range(1, 4),
    "kv_heads": range(1, 3),
    "half": range(1, 3),
    "packed": [False, True],
    "cached": [-1, 0, 2],  # tokens in the cache; no cache below zero
    "large": [False, True],
}
HIDDEN = {"length": range(6, 10), "groups": range(2, 5), "half": range(3, 5), "cached": [-1, 3, 5]}


def arguments(rng, batch, length, groups, kv_heads, half, packed, cached, large):
    hd = 2 * half
    q = rng.uniform(-2, 2, (batch, length, groups * kv_heads * hd)) * (10_000 if large else 1)
    k, v = rng.uniform(-2, 2, (2, batch, length, kv_heads * hd))
    shape = ModelConfig(8, hd, 8, 1, groups * kv_heads, kv_heads, hd, rope_theta=100.0)
    positions = np.repeat(np.arange(length)[None] + max(0, cached), batch, axis=0)
    segment_starts = np.zeros((batch, length), int)
    if packed:  # a second example begins in each row, not always at the same token
        for row in segment_starts:
            start = int(rng.integers(length))
            row[start:] = start
    cache = layers.LayerCache() if cached >= 0 else None
    if cached > 0:
        cache.extend(*rng.uniform(-2, 2, (2, batch, cached, kv_heads, hd)))
    return q, k, v, layers.rope_cos_sin(positions, shape, np.float64), segment_starts, cache


def tolerance(q, *_):
    """float64; a score is at most 8·2·|q| and a value 2, so an error of 2⁻⁵³·16·|q| in a score is
    one of some 2⁻⁴⁷·|q| in the mean; a hundred times that for sums in another order."""
    return 2.0**-40 * (1 + float(np.abs(q).max()))


def property_a_mean_of_values(function, q, k, v, rope, segment_starts, cache):
    """if all values are one, every output is one"""
    if cache is not None and cache.length:
        cache.v = np.ones_like(cache.v)
    y = function(q, k, np.ones_like(v), rope, segment_starts, cache)
    close(y, np.ones_like(q), 2.0**-40)


def property_causal(function, q, k, v, rope, segment_starts, cache):
    """later keys and values do not change earlier outputs"""
    later_k, later_v = k.copy(), v.copy()
    later_k[:, -1:] += 1
    later_v[:, -1:] -= 3
    a, b = (
        np.asarray(function(q, key, value, rope, segment_starts, deepcopy(cache)))
        for key, value in ((k, v), (later_k, later_v))
    )
    close(b[:, :-1], a[:, :-1], tolerance(q))


def property_only_distance_counts(function, q, k, v, rope, segment_starts, cache):
    """the same additional rotation of all queries and keys changes nothing, without a cache"""
    if cache is None:
        cos, sin = rope
        more = np.cos(0.5), np.sin(0.5)
        turned = cos * more[0] - sin * more[1], sin * more[0] + cos * more[1]
        a, b = (function(q, k, v, angles, segment_starts) for angles in (turned, rope))
        close(a, b, tolerance(q))

"""attention: causal, grouped, with rotary positions.

Write `attention`; `visible` is a helper that you may write too or leave out.

H query heads share K key and value heads: query head h reads key head ⌊h·K/H⌋. hd is twice the
length of the last axis of cos. Steps:

1. Reshape q to (B, T, H, hd), k and v to (B, T, K, hd). Rotate q and k with `rotate(·, *angles)`.
2. Prefix (two arrays (n, K·hd), not rotated) and no cache, or one with `cache.empty`: put its
   keys and values before those of the tokens. A cache that is not empty has them already.
3. Cache: `k, v = cache.extend(k, v)` appends (B, T, K, hd) and returns the S keys and values so
   far.
4. Scores q·k/√hd. The last T of the S keys are the tokens' own. A token sees the n keys of a
   prefix and, of the others, those from starts[t] (counted without the prefix) up to its own.
5. Softmax over the keys that it sees, without overflow for large scores; times v.

Return (B, T, H·hd).
"""

from types import SimpleNamespace

import numpy as np

from minilora import nn
from minilora.config import ModelConfig
from minilora.course.outcome import close
from minilora.generate import LayerCache

CASES = {
    "batch": (1, 2),
    "length": (1, 5),
    "groups": (1, 3),
    "kv_heads": (1, 2),
    "half": (1, 2),
    "packed": [False, True],
    "prefix": (0, 2),
    "cached": [-1, 0, 2],  # tokens in the cache; no cache below zero
    "large": [False, True],
}
HIDDEN = {"length": (6, 9), "groups": (2, 4), "half": (3, 4), "cached": [-1, 3, 5]}


def arguments(rng, batch, length, groups, kv_heads, half, packed, prefix, cached, large):
    hd = 2 * half
    q = rng.uniform(-2, 2, (batch, length, groups * kv_heads * hd)) * (1000 if large else 1)
    k, v = rng.uniform(-2, 2, (2, batch, length, kv_heads * hd))
    shape = ModelConfig(8, hd, 8, 1, groups * kv_heads, kv_heads, hd, rope_theta=100.0)
    positions = np.repeat(np.arange(length)[None] + max(0, cached), batch, axis=0)
    starts = np.zeros((batch, length), int)
    if packed and cached < 0:  # a second example begins in the middle of the row
        starts[:, length // 2 :] = length // 2
    rows = tuple(rng.uniform(-2, 2, (2, prefix, kv_heads * hd))) if prefix else None
    cache, n = None, cached + prefix * (cached > 0)  # a filled cache has the prefix, too
    if cached >= 0:
        filled = rng.uniform(-2, 2, (2, batch, n + length + prefix, kv_heads, hd))
        if n and rows:
            filled[:, :, :prefix] = np.reshape(rows, (2, 1, prefix, kv_heads, hd))
        cache = LayerCache(SimpleNamespace(length=n), *filled)
    return q, k, v, nn.rotation(positions, shape, np.float64), starts, cache, rows


def tolerance(q, *_):
    """float64; a score is at most 8·2·|q| and a value 2, so an error of 2⁻⁵³·16·|q| in a score is
    one of some 2⁻⁴⁷·|q| in the mean; a hundred times that for sums in another order."""
    return 2.0**-40 * (1 + float(np.abs(q).max()))


def property_a_mean_of_values(function, q, k, v, angles, starts, cache, prefix):
    """where all values are one, so is every mean of them, without a cache"""
    if cache is not None:
        return
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
    close(b[:, :-1], a[:, :-1], tolerance(q))


def property_only_distance_counts(function, q, k, v, angles, starts, cache, prefix):
    """one angle more for all queries and keys changes nothing, without a prefix and a cache"""
    if prefix is None and cache is None:
        cos, sin = angles
        more = np.cos(0.5), np.sin(0.5)
        turned = cos * more[0] - sin * more[1], sin * more[0] + cos * more[1]
        close(function(q, k, v, turned, starts), function(q, k, v, angles, starts), tolerance(q))

"""Optimized attention: `layers.attention` as one primitive.

Letters as in `layers.py`; G = H/K query heads share a key head; g is ∂L/∂y.
"""

import numpy as np
from autograd.extend import primitive

from .. import layers
from .gradients import define_gradients
from .loops import exp, fast_jit, row_max, rows
from .threads import parallel_rows

QUERIES = 64  # tokens per matmul: with fewer, fewer masked scores are computed

# With S = QKᵀ/√hd + mask, P = softmax(S), Y = PV, per head:
#   ∂L/∂V = Pᵀg        ∂L/∂P = gVᵀ        ∂L/∂S = P∘(∂L/∂P − Σ_s P∘∂L/∂P)
#   ∂L/∂Q = ∂L/∂S·K/√hd    ∂L/∂K = (∂L/∂S)ᵀQ/√hd, both then rotated by −angle.
# P is recomputed from Q and K (Dao et al. 2022, Sec. 3.1), except for rows of few tokens, where P
# is not much larger than Q. The G heads that share a key head are interleaved by token,
# (B, K, T·G, hd): so a group of tokens is one matmul with only the keys that it sees.


def attention(q, k, v, rope, segment_starts, cache=None, window=None):
    """Compute `layers.attention`. Keeps q and k (rotated), v, and P of few tokens."""
    if cache is not None:
        return layers.attention(q, k, v, rope, segment_starts, cache, window)
    return _attention(q, k, v, rope, first_keys(segment_starts, window), {})


def first_keys(segment_starts, window):
    """Return the first key (B, T) that each token sees: a window only raises `segment_starts`.

    Raises IndexError if a segment starts before its row or after one of its tokens.
    """
    t = np.arange(segment_starts.shape[1])
    if not ((segment_starts >= 0) & (segment_starts <= t)).all():
        raise IndexError("segment_starts has a start before the row or after the segment's tokens")
    return segment_starts if window is None else np.maximum(segment_starts, t - window + 1)


@primitive
def _attention(q, k, v, rope, starts, saved):
    cos, sin = rope
    T, half = cos.shape[1:]
    hd = 2 * half
    K = k.shape[-1] // hd
    scale = hd**-0.5
    q = rotate(q, scale * cos, scale * sin)
    k = rotate(k, cos, sin)
    q, k, v = (group_heads(x, K, hd) for x in (q, k, v))
    saved["qkv"] = q, k, v
    y = np.empty_like(q)
    chunks = probabilities(q, k, starts)
    if T <= QUERIES:
        chunks = list(chunks)
        saved["chunks"] = chunks
    for queries, keys, p in chunks:
        y[:, :, queries] = p @ v[:, :, keys]
    return ungroup_heads(y, T)


def _attention_backward(g, argnums, rope, starts, saved):
    cos, sin = rope
    q, k, v = saved["qkv"]
    _, K, T, hd = k.shape
    g = group_heads(g, K, hd)
    dq = np.empty_like(q)
    dk = np.zeros_like(k)
    dv = np.zeros_like(v)
    for queries, keys, p in saved.get("chunks") or probabilities(q, k, starts):
        # ∂L/∂P, which becomes ∂L/∂S
        ds = matmul_transposed(g[:, :, queries], v[:, :, keys])
        ds -= np.einsum("...s,...s->...", p, ds)[..., None]
        ds *= p
        dq[:, :, queries] = ds @ k[:, :, keys]
        dk[:, :, keys] += ds.swapaxes(-1, -2) @ q[:, :, queries]
        dv[:, :, keys] += p.swapaxes(-1, -2) @ g[:, :, queries]
    dq, dk, dv = (ungroup_heads(x, T) for x in (dq, dk, dv))
    scale = hd**-0.5
    return rotate(dq, scale * cos, -scale * sin), rotate(dk, cos, -sin), dv


define_gradients(_attention, lambda y, q, k, v, *others: others, _attention_backward)


def probabilities(q, k, starts):
    """Yield (rows of q, the keys that some of them see, P of both) of each matmul."""
    T = starts.shape[1]
    G = q.shape[2] // T
    for t in range(0, T, QUERIES):
        queries = slice(t * G, (t + QUERIES) * G)
        keys = slice(t + QUERIES)
        p = matmul_transposed(q[:, :, queries], k[:, :, keys])
        parallel_rows(_softmax, p.shape, rows(p), starts, t, G)
        yield queries, keys, p


def matmul_transposed(a, b):
    """Compute abᵀ of the last two axes."""
    # bᵀ is copied because a small matmul is up to 40 % faster if its second matrix is contiguous
    return a @ np.ascontiguousarray(b.swapaxes(-1, -2))


def group_heads(x, K, hd):
    """Copy (B, T, K·G·hd) to (B, K, T·G, hd)."""
    B, T, _ = x.shape
    return x.reshape(B, T, K, -1).transpose(0, 2, 1, 3).copy().reshape(B, K, -1, hd)


def ungroup_heads(x, T):
    """Reorder (B, K, T·G, hd) to (B, T, K·G·hd)."""
    B, K, *_ = x.shape
    return x.reshape(B, K, T, -1).transpose(0, 2, 1, 3).reshape(B, T, -1)


def rotate(x, cos, sin):
    """Rotate the heads of x (B, T, heads·hd) by the rotary angles (B, T, hd/2)."""
    heads = np.ascontiguousarray(x).reshape(-1, 2 * cos.shape[-1])
    y = np.empty_like(heads)
    parallel_rows(_rotate, y.shape, heads, rows(cos), rows(sin), y)
    return y.reshape(x.shape)


@fast_jit
def _rotate(lo, hi, x, cos, sin, y):
    tokens, half = cos.shape
    for i in range(lo, hi):
        t = i * tokens // len(x)
        for j in range(half):
            y[i, j] = x[i, j] * cos[t, j] - x[i, j + half] * sin[t, j]
            y[i, j + half] = x[i, j + half] * cos[t, j] + x[i, j] * sin[t, j]


@fast_jit
def _softmax(lo, hi, s, starts, offset, G):
    num_rows, num_keys = s.shape
    for i in range(lo, hi):
        t = offset + i // G % (num_keys - offset)
        first = starts[i * len(starts) // num_rows, t]
        row = s[i]
        seen = row[first : t + 1]
        top = row_max(seen)
        total = np.float32(0)
        for j in range(seen.size):
            seen[j] = exp(seen[j] - top)
            total += seen[j]
        for j in range(seen.size):
            seen[j] /= total
        row[:first] = 0
        row[t + 1 :] = 0

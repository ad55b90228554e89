"""Optimized attention: `layers.attention` as one primitive, for `fused.py`.

Letters as in `layers.py`; G = H/K query heads share a key head; g is ∂L/∂y.
"""

import numpy as np
from autograd.extend import defvjp_argnums, primitive

from .. import layers
from ..config import ATTENTION
from .chunking import chunks
from .fused_projection import is_fused, join_factors, project, project_backward, split_factors
from .loops import exp, fast_jit, row_max, rows
from .threads import parallel_rows

SCORE_FLOATS = 2**22  # scores in memory at a time (16 MiB), for any batch size
QUERIES = 64  # tokens per matmul: with fewer, fewer masked scores are computed

# With S = QKᵀ/√hd + mask, P = softmax(S), Y = PV, per head:
#   ∂L/∂V = Pᵀg        ∂L/∂P = gVᵀ        ∂L/∂S = P∘(∂L/∂P − Σ_s P∘∂L/∂P)
#   ∂L/∂Q = ∂L/∂S·K/√hd    ∂L/∂K = (∂L/∂S)ᵀQ/√hd, both then rotated by −angle.
# P is recomputed from Q, K and log Σ eˢ (Dao et al. 2022, Sec. 3.1), except for rows of few tokens,
# where P is not much larger than Q. The G heads that share a key head are interleaved by token,
# (B, K, T·G, hd): so a group of tokens is one matmul with only the keys that it sees.


def attention(q, k, v, rope, segment_starts, cache=None, window=None):
    """Compute `layers.attention`. Keeps q and k (rotated), v, and P or one number per row of P."""
    if cache is not None:
        return layers.attention(q, k, v, rope, segment_starts, cache, window)
    return _attention(q, k, v, rope, first_keys(segment_starts, window), {})


def first_keys(segment_starts, window=None):
    """Return the first key (B, T) that each token sees: a window only raises `segment_starts`.

    Raises IndexError if a segment starts before its row or after one of its tokens.
    """
    t = np.arange(segment_starts.shape[1])
    if not ((segment_starts >= 0) & (segment_starts <= t)).all():
        raise IndexError("segment_starts has a start before the row or after the segment's tokens")
    return segment_starts if window is None else np.maximum(segment_starts, t - window + 1)


def _attention_vjp(argnums, y, args, kwargs):
    *_, rope, starts, saved = args

    def vjp(g):
        grads = attention_backward(g, rope, starts, saved)
        return tuple(grads[n] for n in argnums)

    return vjp


def attention_forward(q, k, v, rope, starts, saved):
    """Compute `layers.attention`; store the arrays of the backward pass in the dict `saved`."""
    hd = 2 * rope[0].shape[-1]
    K = k.shape[-1] // hd
    q = rotate(q, rope, K, hd**-0.5)
    k = rotate(k, rope, K)
    v = group_heads(v, K, hd)
    y = np.empty_like(q)
    log_z = np.empty(q.shape[:3], q.dtype)
    kept = []
    for b, queries, keys in query_chunks(q, k):
        p = probabilities(q[b], k[b], starts[b], log_z[b], queries, keys)
        np.matmul(p, v[b, :, keys], out=y[b, :, queries])
        kept.append(p if k.shape[2] <= QUERIES else None)
    saved.update(q=q, k=k, v=v, log_z=log_z, p=kept)
    return ungroup_heads(y, k.shape[2])


def probabilities(q, k, starts, log_z, queries, keys, again=False):
    """Compute P of a chunk, and log Σ eˢ of its rows; if `again`, from the known log Σ eˢ."""
    # Kᵀ is copied because a small matmul is up to 40 % faster if its second matrix is contiguous
    s = q[:, :, queries] @ np.ascontiguousarray(k[:, :, keys].swapaxes(-1, -2))
    a = (s, starts, log_z, queries.start, again)
    parallel_rows(_softmax, s.size // keys.stop, *a, width=keys.stop)
    return s


_attention = primitive(attention_forward)
defvjp_argnums(_attention, _attention_vjp)


def attention_backward(g, rope, starts, saved):
    """Compute ∂L/∂q, ∂L/∂k and ∂L/∂v for g = ∂L/∂y."""
    q, k, v, log_z = (saved[name] for name in ("q", "k", "v", "log_z"))
    g = group_heads(g, *k.shape[1::2])
    dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    for (b, queries, keys), p in zip(query_chunks(q, k), saved["p"]):
        if p is None:
            p = probabilities(q[b], k[b], starts[b], log_z[b], queries, keys, again=True)
        # ∂L/∂P, which the loop replaces by ∂L/∂S
        ds = g[b, :, queries] @ np.ascontiguousarray(v[b, :, keys].swapaxes(-1, -2))
        parallel_rows(_softmax_back, p.size // keys.stop, rows(p), rows(ds), width=keys.stop)
        np.matmul(ds, k[b, :, keys], out=dq[b, :, queries])
        dk[b, :, keys] += ds.swapaxes(-1, -2) @ q[b, :, queries]
        dv[b, :, keys] += p.swapaxes(-1, -2) @ g[b, :, queries]
    T = k.shape[2]
    dq, dk = unrotate(dq, rope, T, k.shape[3] ** -0.5), unrotate(dk, rope, T)
    return dq, dk, ungroup_heads(dv, T)


# ------------------------------------------------------------------------------- the sublayer


def self_attention(x, node, ctx):
    """Compute `layers.self_attention`. Keeps x and what `attention` keeps."""
    config = ctx.config
    plain = not config.qk_norm and config.query_pre_attn_scalar is None and ctx.cache is None
    if not plain or not is_fused(ATTENTION, node, ctx):
        return layers.self_attention(x, node, ctx)
    projections, factors = split_factors(ATTENTION, node)
    starts = first_keys(ctx.segment_starts, config.sliding_window)
    return _self_attention(x, projections, ctx.rope, starts, {}, *factors)


@primitive
def _self_attention(x, projections, rope, starts, saved, *factors):
    q, k, v, o = join_factors(projections, factors)
    q, k, v = project(x, q, k, v)
    mixed = attention_forward(q, k, v, rope, starts, saved)
    if o.A is not None:
        saved["mixed"] = mixed  # the gradient of its factor A needs the input of o_proj
    return project(mixed, o)[0]


def _self_attention_vjp(argnums, y, args, kwargs):
    x, projections, rope, starts, saved, *factors = args
    q, k, v, o = join_factors(projections, factors)

    def vjp(g):
        d_mixed, d_o = project_backward([g], saved.get("mixed"), o)
        d_qkv = attention_backward(d_mixed, rope, starts, saved)
        dx, d_factors = project_backward(d_qkv, x, q, k, v, needs_x=0 in argnums)
        grads = [dx, None, None, None, None, *d_factors, *d_o]
        return tuple(grads[n] for n in argnums)

    return vjp


defvjp_argnums(_self_attention, _self_attention_vjp)


# ---------------------------------------------------------------------- layout, rotation, softmax


def query_chunks(q, k):
    """Yield slices of each matmul: (rows of the batch, rows of q, keys that some of them see)."""
    (B, K, R, _) = q.shape
    T = k.shape[2]
    for b in chunks(B, K * R * min(T, QUERIES), SCORE_FLOATS):
        for t in range(0, T, QUERIES):
            end = min(t + QUERIES, T)
            yield b, slice(t * R // T, end * R // T), slice(0, end)


def group_heads(x, K, hd):
    """Reorder (B, T, K·G·hd) to (B, K, T·G, hd), contiguous."""
    B, T, _ = x.shape
    x = x.reshape(B, T, K, -1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(x).reshape(B, K, -1, hd)


def ungroup_heads(x, T):
    """Reorder (B, K, T·G, hd) to (B, T, K·G·hd)."""
    B, K, *_ = x.shape
    return x.reshape(B, K, T, -1).transpose(0, 2, 1, 3).reshape(B, T, -1)


def rotate(x, rope, K, scale=1.0):
    """Return x in the order of `group_heads`, rotated by the rotary angles, times scale."""
    (B, T, width) = x.shape
    hd = 2 * rope[0].shape[-1]
    y = np.empty((B, K, T * width // (K * hd), hd), x.dtype)
    _rotate_all(x, y, rope[0], rope[1], scale, True)
    return y


def unrotate(y, rope, T, scale=1.0):
    """Return y in the order of `ungroup_heads`, rotated by the negative angles, times scale."""
    B, K, R, hd = y.shape
    x = np.empty((B, T, K * R // T * hd), y.dtype)
    _rotate_all(x, y, rope[0], -rope[1], scale, False)
    return x


def _rotate_all(x, y, cos, sin, scale, grouping):
    (B, T, width) = x.shape
    hd = y.shape[-1]
    x = x.reshape(B * T, -1, hd)
    cos = rows(cos)
    sin = rows(sin)
    parallel_rows(_rotate_rows, B * T, x, y, cos, sin, x.dtype.type(scale), grouping, width=width)


@fast_jit
def _rotate_rows(lo, hi, x, y, cos, sin, scale, grouping):
    (n, heads, hd) = x.shape
    (B, K) = y.shape[:2]
    T, G, half = n // B, heads // K, hd // 2
    for i in range(lo, hi):
        for h in range(heads):
            flat = x[i, h]
            grouped = y[i // T, h // G, i % T * G + h % G]
            source, target = (flat, grouped) if grouping else (grouped, flat)
            for j in range(half):
                c, s = scale * cos[i, j], scale * sin[i, j]
                u, w = source[j], source[j + half]
                target[j], target[j + half] = u * c - w * s, w * c + u * s


@fast_jit
def _softmax(lo, hi, s, starts, log_z, offset, again):
    K, R = s.shape[1:3]
    G = log_z.shape[2] // starts.shape[1]
    for i in range(lo, hi):
        b, k, r = i // (K * R), i // R % K, i % R
        t = (offset + r) // G
        first = starts[b, t]
        row = s[b, k, r]
        seen = row[first : t + 1]
        top = log_z[b, k, offset + r] if again else row_max(seen)
        total = seen[0] * 0
        for j in range(seen.size):
            seen[j] = exp(seen[j] - top)
            total += seen[j]
        if not again:
            log_z[b, k, offset + r] = top + np.log(total)
            for j in range(seen.size):
                seen[j] /= total
        row[:first] = 0
        row[t + 1 :] = 0


@fast_jit
def _softmax_back(lo, hi, p, ds):
    for i in range(lo, hi):
        dot = p[i, 0] * 0
        for j in range(p.shape[1]):
            dot += p[i, j] * ds[i, j]
        for j in range(p.shape[1]):
            ds[i, j] = p[i, j] * (ds[i, j] - dot)

"""Optimized attention: `layers.attention` as one primitive.

Letters as in `layers.py`; G = H/K query heads share a key head; g is ∂L/∂y.
"""

import numpy as np
from autograd.extend import defvjp_argnums, primitive

from .. import layers
from .loops import exp, fast_jit, row_max
from .threads import parallel_rows

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


@primitive
def _attention(q, k, v, rope, starts, saved):
    cos, sin = rope
    T, half = cos.shape[1:]
    K = k.shape[-1] // (2 * half)
    q, k, v = (group_heads(x, K, 2 * half) for x in (q, k, v))
    rotate(q, cos, sin, (2 * half) ** -0.5)
    rotate(k, cos, sin)
    y = np.empty_like(q)
    log_z = np.empty(q.shape[:3], q.dtype)
    kept = []
    for queries, keys in chunks(q, T):
        p = probabilities(q, k, starts, log_z, queries, keys)
        np.matmul(p, v[:, :, keys], out=y[:, :, queries])
        kept.append(p if T <= QUERIES else None)
    saved.update(q=q, k=k, v=v, log_z=log_z, p=kept)
    return ungroup_heads(y, T)


def _attention_vjp(argnums, y, args, kwargs):
    *_, (cos, sin), starts, saved = args

    def vjp(g):
        q, k, v, log_z = (saved[name] for name in ("q", "k", "v", "log_z"))
        K, T, hd = k.shape[1:]
        g = group_heads(g, K, hd)
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        for (queries, keys), p in zip(chunks(q, T), saved["p"]):
            if p is None:
                p = probabilities(q, k, starts, log_z, queries, keys, again=True)
            # ∂L/∂P, which becomes ∂L/∂S
            ds = matmul_transposed(g[:, :, queries], v[:, :, keys])
            ds -= np.einsum("...s,...s->...", p, ds)[..., None]
            ds *= p
            np.matmul(ds, k[:, :, keys], out=dq[:, :, queries])
            dk[:, :, keys] += ds.swapaxes(-1, -2) @ q[:, :, queries]
            dv[:, :, keys] += p.swapaxes(-1, -2) @ g[:, :, queries]
        rotate(dq, cos, -sin, hd**-0.5)
        rotate(dk, cos, -sin)
        grads = [ungroup_heads(x, T) for x in (dq, dk, dv)]
        return tuple(grads[n] for n in argnums)

    return vjp


defvjp_argnums(_attention, _attention_vjp)


def chunks(q, T):
    """Yield slices of each matmul: (rows of q, keys that some of them see)."""
    R = q.shape[2]
    for t in range(0, T, QUERIES):
        end = min(t + QUERIES, T)
        yield slice(t * R // T, end * R // T), slice(0, end)


def probabilities(q, k, starts, log_z, queries, keys, again=False):
    """Compute P of a chunk, and log Σ eˢ of its rows; if `again`, from the known log Σ eˢ."""
    s = matmul_transposed(q[:, :, queries], k[:, :, keys])
    a = (s, starts, log_z, queries.start, again)
    parallel_rows(_softmax, s.size // keys.stop, *a, width=keys.stop)
    return s


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


def rotate(x, cos, sin, scale=1.0):
    """Rotate x (B, K, T·G, hd) in place by the rotary angles (B, T, hd/2), times scale."""
    hd = x.shape[-1]
    parallel_rows(_rotate, x.size // hd, x, cos, sin, x.dtype.type(scale), width=hd)


@fast_jit
def _rotate(lo, hi, x, cos, sin, scale):
    K, R, hd = x.shape[1:]
    G, half = R // cos.shape[1], hd // 2
    for i in range(lo, hi):
        b, k, r = i // (K * R), i // R % K, i % R
        row = x[b, k, r]
        for j in range(half):
            c, s = scale * cos[b, r // G, j], scale * sin[b, r // G, j]
            u, w = row[j], row[j + half]
            row[j], row[j + half] = u * c - w * s, w * c + u * s


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

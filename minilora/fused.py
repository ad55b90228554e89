"""The operations of `nn.py` made fast: same names, same arguments, same values.

Each is one autograd primitive with its backward pass derived by hand above it, and keeps for that
pass only what cannot be had again cheaply. Loops are numba's; products are BLAS's. `nn.py` is the
text, this is the engine, and the tests hold one against the other in value and in gradient.

Letters as in `nn.py`; g is the gradient that arrives from above, ∂L/∂y.
"""

from itertools import pairwise

import numpy as np
from autograd.extend import defvjp_argnums, primitive
from autograd.tracer import isbox

from . import nn, stored
from .kernels import exp, fast_jit, share_rows

LOGIT_FLOATS = 2**23  # logits held at once (32 MiB), however large batch and vocabulary are
SCORE_FLOATS = 2**22  # the same for attention's scores


def rows(x):
    """x as a contiguous matrix (rows, last axis): what the kernels loop over."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


# ---------------------------------------------------------------------------------- RMSNorm
# With r = 1/√(mean(x²) + ε), x̂ = r·x and y = x̂∘w:
#   ∂L/∂x = r·(g∘w − x̂·mean(g∘w∘x̂))        ∂L/∂w = Σ_rows g∘x̂
# x̂ is had again as y/w: y is what an adapter above keeps anyway, so x need not be kept as well.


def rms_norm(x, weight, eps):
    """As `nn.rms_norm`; keeps y, and one number a row."""
    return _rms_norm(x, weight, eps, {})


@primitive
def _rms_norm(x, weight, eps, kept):
    y, width = np.empty(x.shape, x.dtype), x.shape[-1]
    kept["r"] = np.empty(x.size // width, x.dtype)
    share_rows(_norm, len(kept["r"]), rows(x), weight, eps, rows(y), kept["r"], width=width)
    kept["x_hat"] = None if weight.all() else x * kept["r"].reshape(*x.shape[:-1], 1)
    return y


def _rms_norm_vjp(argnums, y, args, kwargs):
    weight, kept = args[1], args[3]

    def vjp(g):
        x_hat = y / weight if kept["x_hat"] is None else kept["x_hat"]
        dx, width = np.empty(y.shape, y.dtype), y.shape[-1]
        a = (rows(x_hat), weight, kept["r"], rows(g), rows(dx))
        share_rows(_norm_back, len(kept["r"]), *a, width=width)
        return tuple(dx if n == 0 else np.sum(rows(g * x_hat), axis=0) for n in argnums)

    return vjp


defvjp_argnums(_rms_norm, _rms_norm_vjp)


@fast_jit
def _norm(lo, hi, x, w, eps, y, r):
    D = x.shape[1]
    for i in range(lo, hi):
        total = x[i, 0] * 0
        for j in range(D):
            total += x[i, j] * x[i, j]
        r[i] = 1 / np.sqrt(total / D + eps)
        for j in range(D):
            y[i, j] = x[i, j] * r[i] * w[j]


@fast_jit
def _norm_back(lo, hi, x_hat, w, r, g, dx):
    D = x_hat.shape[1]
    for i in range(lo, hi):
        dot = x_hat[i, 0] * 0
        for j in range(D):
            dot += g[i, j] * w[j] * x_hat[i, j]
        mean = x_hat.dtype.type(dot / D)
        for j in range(D):
            dx[i, j] = r[i] * (g[i, j] * w[j] - x_hat[i, j] * mean)


# ----------------------------------------------------------------------------------- SwiGLU
# With σ = 1/(1 + e^−a) and y = a·σ∘b:
#   ∂L/∂a = g∘b∘σ∘(1 + a∘(1 − σ))        ∂L/∂b = g∘a∘σ


@primitive
def swiglu(gate, up):
    """As `nn.swiglu`; keeps its two inputs."""
    y, width = np.empty(gate.shape, gate.dtype), gate.shape[-1]
    share_rows(_swiglu, gate.size // width, rows(gate), rows(up), rows(y), width=width)
    return y


def _swiglu_vjp(argnums, y, args, kwargs):
    gate, up = args

    def vjp(g):
        da, db = np.empty(gate.shape, gate.dtype), np.empty(up.shape, up.dtype)
        a, width = (rows(x) for x in (gate, up, g, da, db)), gate.shape[-1]
        share_rows(_swiglu_back, gate.size // width, *a, width=width)
        return tuple((da, db)[n] for n in argnums)

    return vjp


defvjp_argnums(swiglu, _swiglu_vjp)


@fast_jit
def _swiglu(lo, hi, a, b, y):
    one = a.dtype.type(1)
    for i in range(lo, hi):
        for j in range(a.shape[1]):
            y[i, j] = a[i, j] / (one + exp(-a[i, j])) * b[i, j]


@fast_jit
def _swiglu_back(lo, hi, a, b, g, da, db):
    one = a.dtype.type(1)
    for i in range(lo, hi):
        for j in range(a.shape[1]):
            s = one / (one + exp(-a[i, j]))
            da[i, j] = g[i, j] * b[i, j] * s * (one + a[i, j] * (one - s))
            db[i, j] = g[i, j] * a[i, j] * s


# -------------------------------------------------------------------------------- Attention
# With S = QKᵀ/√hd + mask, P = softmax(S), Y = PV, per head:
#   ∂L/∂V = Pᵀg        ∂L/∂P = gVᵀ        ∂L/∂S = P∘(∂L/∂P − Σ_s P∘∂L/∂P)
#   ∂L/∂Q = ∂L/∂S·K/√hd    ∂L/∂K = (∂L/∂S)ᵀQ/√hd, both then turned back by −angle.
# P is not kept but made again from Q, K and log Σ eˢ (Dao et al. 2022, Sec. 3.1). The heads that
# share keys are stacked, (B, K, G·T, hd), so that each key/value head is one product.


def attention(q, k, v, angles, starts, cache=None, prefix=None):
    """As `nn.attention`; keeps q and k (turned), v and one number a row of scores.

    With a cache or a prefix it is `nn.attention` itself.
    """
    if cache is not None or prefix is not None:
        return nn.attention(q, k, v, angles, starts, cache, prefix)
    return _attention(q, k, v, angles, starts, {})


@primitive
def _attention(q, k, v, angles, starts, kept):
    hd, (B, T) = 2 * angles[0].shape[-1], starts.shape
    K = k.shape[-1] // hd
    q, k = turned(q, angles, hd**-0.5), turned(k, angles)
    q, k, v = (stacked(x, K, hd) for x in (q, k, v))
    y, log_z = np.empty_like(q), np.empty(q.shape[:3], q.dtype)
    for b in chunks(B, q.shape[1] * q.shape[2] * T, SCORE_FLOATS):
        s = q[b] @ k[b].swapaxes(-1, -2)
        share_rows(_softmax, s.size // T, rows(s), starts[b], log_z[b].reshape(-1), width=T)
        np.matmul(s, v[b], out=y[b])
    kept.update(q=q, k=k, v=v, log_z=log_z)
    return unstacked(y, T)


def _attention_vjp(argnums, y, args, kwargs):
    *_, angles, starts, kept = args
    q, k, v, log_z = (kept[name] for name in ("q", "k", "v", "log_z"))
    (B, K, _, hd), T = q.shape, starts.shape[1]

    def vjp(g):
        g = stacked(g, K, hd)
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(k)
        for b in chunks(B, q.shape[1] * q.shape[2] * T, SCORE_FLOATS):
            s, dp = q[b] @ k[b].swapaxes(-1, -2), g[b] @ v[b].swapaxes(-1, -2)
            a = (rows(s), rows(dp), starts[b], log_z[b].reshape(-1))
            share_rows(_softmax_back, s.size // T, *a, width=T)
            np.matmul(dp, k[b], out=dq[b])
            np.matmul(dp.swapaxes(-1, -2), q[b], out=dk[b])
            np.matmul(s.swapaxes(-1, -2), g[b], out=dv[b])
        back = (angles[0], -angles[1])
        grads = (
            lambda: turned(unstacked(dq, T), back, hd**-0.5),
            lambda: turned(unstacked(dk, T), back),
            lambda: unstacked(dv, T),
        )
        return tuple(grads[n]() for n in argnums)

    return vjp


defvjp_argnums(_attention, _attention_vjp)


def chunks(n, floats, most):
    """As few slices of range(n) as hold about `most` floats, of nearly equal length."""
    pieces = min(n, -(-n * floats // most))
    edges = [n * i // pieces for i in range(pieces + 1)] if n else []
    return [slice(*edge) for edge in pairwise(edges)]


def stacked(x, K, hd):
    """(B, T, heads·hd) -> (B, K, G·T, hd), contiguous."""
    B, T, _ = x.shape
    x = x.reshape(B, T, K, -1, hd).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(x).reshape(B, K, -1, hd)


def unstacked(x, T):
    """(B, K, G·T, hd) -> (B, T, heads·hd)."""
    B, hd = x.shape[0], x.shape[-1]
    return x.reshape(B, -1, T, hd).transpose(0, 2, 1, 3).reshape(B, T, -1)


def turned(x, angles, scale=1.0):
    """x (B, T, heads·hd) rotated by the angles, times scale."""
    cos, sin = (rows(a) for a in angles)  # (B·T, hd/2)
    y, (n, half), width = np.empty(x.shape, x.dtype), cos.shape, x.shape[-1]
    a = (x.reshape(n, -1, 2 * half), y.reshape(n, -1, 2 * half), cos, sin, x.dtype.type(scale))
    share_rows(_turn, n, *a, width=width)
    return y


@fast_jit
def _turn(lo, hi, x, y, cos, sin, scale):
    _, heads, hd = x.shape
    half = hd // 2
    for i in range(lo, hi):
        for h in range(heads):
            u, w = x[i, h, :half], x[i, h, half:]
            for j in range(half):
                c, s = scale * cos[i, j], scale * sin[i, j]
                y[i, h, j], y[i, h, j + half] = u[j] * c - w[j] * s, w[j] * c + u[j] * s


@fast_jit
def _softmax(lo, hi, s, starts, log_z):
    B, T = starts.shape
    for i in range(lo, hi):
        t = i % T
        first = starts[i // (s.shape[0] // B), t]
        seen = s[i, first : t + 1]
        top, total = seen[0], seen[0] * 0
        for j in range(seen.size):
            top = max(top, seen[j])
        for j in range(seen.size):
            seen[j] = exp(seen[j] - top)
            total += seen[j]
        log_z[i] = top + np.log(total)
        for j in range(seen.size):
            seen[j] /= total
        s[i, :first] = 0
        s[i, t + 1 :] = 0


@fast_jit
def _softmax_back(lo, hi, s, dp, starts, log_z):
    B, T = starts.shape
    for i in range(lo, hi):
        t = i % T
        first = starts[i // (s.shape[0] // B), t]
        p, d = s[i, first : t + 1], dp[i, first : t + 1]
        dot = log_z[i] * 0
        for j in range(p.size):
            p[j] = exp(p[j] - log_z[i])
            dot += p[j] * d[j]
        for j in range(p.size):
            d[j] = p[j] * (d[j] - dot)
        s[i, :first] = 0
        dp[i, :first] = 0
        s[i, t + 1 :] = 0
        dp[i, t + 1 :] = 0


# ---------------------------------------------------------------------------- Cross-entropy
# With z = hEᵀ, p = softmax(z), weight c = m/Σm and target one-hot y:
#   L = Σ c·(log Σ eᶻ − z[target])        ∂L/∂z = c·(p − y)
#   ∂L/∂h = ∂L/∂z·E        ∂L/∂E = (∂L/∂z)ᵀ h
# V is large: the logits exist only a few rows at a time, and each batch of rows gives its part of
# the gradient before it is dropped. Rows with m = 0 are never computed. A head that is held in
# few bits goes through both products in tiles; it is frozen, so there is no ∂L/∂E.


def cross_entropy(hidden, head, targets, mask):
    """As `nn.cross_entropy`; keeps the gradients, which the same pass computes."""
    kept = {"hidden": isbox(hidden), "head": isbox(head)}
    return _cross_entropy(hidden, head, targets, mask, kept)


@primitive
def _cross_entropy(hidden, head, targets, mask, kept):
    at = np.nonzero(mask)
    h, t = hidden[at], targets[at]
    if t.size and not 0 <= t.min() <= t.max() < head.shape[0]:  # the loop below checks no bounds
        raise IndexError(f"target {t.max()} is not one of {head.shape[0]} tokens")
    c = mask[at].astype(h.dtype) / h.dtype.type(np.sum(mask))
    nll, dh = np.empty_like(c), np.empty_like(h)
    de = np.zeros_like(head) if kept["head"] else None
    for i in chunks(len(h), head.shape[0], LOGIT_FLOATS):
        z = stored.product(h[i], head)
        share_rows(_softmax_nll, len(z), z, t[i], c[i], nll[i], width=z.shape[1])
        if kept["hidden"]:
            dh[i] = stored.product_back(z, head)
        if kept["head"]:
            de += z.T @ h[i]
        del z  # before the next rows' are made
    kept["head"], kept["hidden"] = de, np.zeros_like(hidden)
    kept["hidden"][at] = dh
    return np.dot(nll.astype(np.float64), c.astype(np.float64))


defvjp_argnums(
    _cross_entropy,
    lambda argnums, loss, args, kwargs: (
        lambda g: tuple((args[4]["hidden"], args[4]["head"])[n] * float(g) for n in argnums)
    ),
)


@fast_jit
def _softmax_nll(lo, hi, z, targets, c, nll):
    V = z.shape[1]
    for i in range(lo, hi):
        top = z[i, 0]
        for j in range(1, V):
            top = max(top, z[i, j])
        target = z[i, targets[i]]
        total = top * 0
        for j in range(V):
            z[i, j] = exp(z[i, j] - top)
            total += z[i, j]
        nll[i] = top - target + np.log(total)
        scale = c[i] / total
        for j in range(V):
            z[i, j] *= scale
        z[i, targets[i]] -= c[i]

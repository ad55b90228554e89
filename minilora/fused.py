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
from .kernels import exp, fast_jit, largest, share_rows
from .products import lowrank, lowrank_back, product, product_back

LOGIT_FLOATS = 2**22  # logits held at once (16 MiB), however large batch and vocabulary are
SCORE_FLOATS = 2**22  # the same for attention's scores
QUERIES = 32  # tokens whose scores are one product: fewer waste less on keys they may not see


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
    def vjp(g):
        grads = swiglu_back(g, *args)
        return tuple(grads[n] for n in argnums)

    return vjp


def swiglu_back(g, gate, up):
    """∂L/∂gate and ∂L/∂up for g = ∂L/∂y."""
    da, db = np.empty(gate.shape, gate.dtype), np.empty(up.shape, up.dtype)
    a, width = (rows(x) for x in (gate, up, g, da, db)), gate.shape[-1]
    share_rows(_swiglu_back, gate.size // width, *a, width=width)
    return da, db


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


# ------------------------------------------------------------------- Projections with LoRA on them
# y = W₀x + s·B(Ax): the gradients of both products (`products.py`), added in place.
# Of x = swiglu(gate, up), the input of W_down, nothing is kept: what makes it again costs a
# thousandth of the product that reads it, and it is the widest input of all.


def linear(x, trained, frozen, rng=None):
    """As `nn.linear`, which does all but the commonest case: low-rank factors and nothing else."""
    if not factors_alone(trained, frozen, rng is not None):
        return nn.linear(x, trained, frozen, rng)
    return _adapted(x, *_factors(trained, frozen))


def down(gate, up, trained, frozen, rng=None):
    """As `nn.down`; keeps its two inputs."""
    if not factors_alone(trained, frozen, rng is not None):
        return nn.linear(swiglu(gate, up), trained, frozen, rng)
    return _adapted_down(gate, up, *_factors(trained, frozen))


def factors_alone(trained, frozen, training=True):
    """Whether all that stands beside a weight is `lora_A` and `lora_B`, without a dropout."""
    return (
        set(trained) == {"lora_A", "lora_B"}
        and not {"bias", "lora_stack"} & frozen.keys()
        and not (training and frozen["lora_dropout"])
    )


def _factors(trained, frozen):
    return trained["lora_A"], trained["lora_B"], frozen["weight"], frozen["lora_scaling"]


@primitive
def _adapted(x, a, b, w, scaling):
    y = product(x, w)
    y += lowrank(x, a, b, scaling)
    return y


def _adapted_vjp(argnums, y, args, kwargs):
    def vjp(g):
        grads = adapted_back(g, args, 0 in argnums)
        return tuple(grads[n] for n in argnums)

    return vjp


def adapted_back(g, args, x_followed=True):
    """∂L/∂x, ∂L/∂A and ∂L/∂B for g = ∂L/∂y; without W₀'s part of the first if nothing reads it."""
    x, a, b, w, scaling = args
    dx, da, db = lowrank_back(g, x, a, b, scaling)
    if x_followed:
        dx += product_back(g, w)
    return dx, da, db


defvjp_argnums(_adapted, _adapted_vjp)


@primitive
def _adapted_down(gate, up, a, b, w, scaling):
    return _adapted(swiglu(gate, up), a, b, w, scaling)


def _adapted_down_vjp(argnums, y, args, kwargs):
    gate, up, *factors = args

    def vjp(g):
        dx, da, db = adapted_back(g, (swiglu(gate, up), *factors))
        grads = (*swiglu_back(dx, gate, up), da, db)
        return tuple(grads[n] for n in argnums)

    return vjp


defvjp_argnums(_adapted_down, _adapted_down_vjp)


# -------------------------------------------------------------------------------- Attention
# With S = QKᵀ/√hd + mask, P = softmax(S), Y = PV, per head:
#   ∂L/∂V = Pᵀg        ∂L/∂P = gVᵀ        ∂L/∂S = P∘(∂L/∂P − Σ_s P∘∂L/∂P)
#   ∂L/∂Q = ∂L/∂S·K/√hd    ∂L/∂K = (∂L/∂S)ᵀQ/√hd, both then turned back by −angle.
# P is not kept but made again from Q, K and log Σ eˢ (Dao et al. 2022, Sec. 3.1). The G heads that
# share keys are stacked token by token, (B, K, T·G, hd), so that some tokens are one product with
# the keys that they may see, which for the first tokens are few.


def attention(q, k, v, angles, starts, cache=None, prefix=None):
    """As `nn.attention`; keeps q and k (turned), v and one number a row of scores.

    With a cache or a prefix it is `nn.attention` itself.
    """
    if cache is not None or prefix is not None:
        return nn.attention(q, k, v, angles, starts, cache, prefix)
    return _attention(q, k, v, angles, starts, {})


@primitive
def _attention(q, k, v, angles, starts, kept):
    hd = 2 * angles[0].shape[-1]
    K = k.shape[-1] // hd
    q, k, v = turned(q, angles, K, hd**-0.5), turned(k, angles, K), stacked(v, K, hd)
    y, log_z = np.empty_like(q), np.empty(q.shape[:3], q.dtype)
    for b, rows, keys in spans(q, k):
        s = q[b, :, rows] @ k[b, :, keys].swapaxes(-1, -2)
        a = (s, starts[b], log_z[b], rows.start)
        share_rows(_softmax, s.size // keys.stop, *a, width=keys.stop)
        np.matmul(s, v[b, :, keys], out=y[b, :, rows])
    kept.update(q=q, k=k, v=v, log_z=log_z)
    return unstacked(y, k.shape[2])


def _attention_vjp(argnums, y, args, kwargs):
    *_, angles, starts, kept = args
    q, k, v, log_z = (kept[name] for name in ("q", "k", "v", "log_z"))

    def vjp(g):
        g = stacked(g, *k.shape[1::2])
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        for b, rows, keys in spans(q, k):
            s = q[b, :, rows] @ k[b, :, keys].swapaxes(-1, -2)
            dp = g[b, :, rows] @ v[b, :, keys].swapaxes(-1, -2)
            a = (s, dp, starts[b], log_z[b], rows.start)
            share_rows(_softmax_back, s.size // keys.stop, *a, width=keys.stop)
            np.matmul(dp, k[b, :, keys], out=dq[b, :, rows])
            dk[b, :, keys] += dp.swapaxes(-1, -2) @ q[b, :, rows]
            dv[b, :, keys] += s.swapaxes(-1, -2) @ g[b, :, rows]
        grads = (
            lambda: turned_back(dq, angles, k.shape[2], k.shape[3] ** -0.5),
            lambda: turned_back(dk, angles, k.shape[2]),
            lambda: unstacked(dv, k.shape[2]),
        )
        return tuple(grads[n]() for n in argnums)

    return vjp


defvjp_argnums(_attention, _attention_vjp)


def spans(q, k):
    """(batch rows, rows of q, keys that these can see) of every product, as slices."""
    (B, K, R, _), T = q.shape, k.shape[2]
    for b in chunks(B, K * R * min(T, QUERIES), SCORE_FLOATS):
        for t in range(0, T, QUERIES):
            end = min(t + QUERIES, T)
            yield b, slice(t * R // T, end * R // T), slice(0, end)


def chunks(n, floats, most):
    """As few slices of range(n) as hold about `most` floats, of nearly equal length."""
    pieces = min(n, -(-n * floats // most))
    edges = [n * i // pieces for i in range(pieces + 1)] if n else []
    return [slice(*edge) for edge in pairwise(edges)]


def stacked(x, K, hd):
    """(B, T, K·G·hd) -> (B, K, T·G, hd), contiguous."""
    B, T, _ = x.shape
    x = x.reshape(B, T, K, -1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(x).reshape(B, K, -1, hd)


def unstacked(x, T):
    """(B, K, T·G, hd) -> (B, T, K·G·hd)."""
    B, K, *_ = x.shape
    return x.reshape(B, K, T, -1).transpose(0, 2, 1, 3).reshape(B, T, -1)


def turned(x, angles, K, scale=1.0):
    """`stacked` x, rotated by the angles, times scale."""
    (B, T, width), hd = x.shape, 2 * angles[0].shape[-1]
    y = np.empty((B, K, T * width // (K * hd), hd), x.dtype)
    _turn_all(x, y, angles[0], angles[1], scale, True)
    return y


def turned_back(y, angles, T, scale=1.0):
    """`unstacked` y, rotated by −angle, times scale."""
    B, K, rows, hd = y.shape
    x = np.empty((B, T, K * rows // T * hd), y.dtype)
    _turn_all(x, y, angles[0], -angles[1], scale, False)
    return x


def _turn_all(x, y, cos, sin, scale, forth):
    (B, T, width), hd = x.shape, y.shape[-1]
    x, cos, sin = x.reshape(B * T, -1, hd), rows(cos), rows(sin)
    share_rows(_turn, B * T, x, y, cos, sin, x.dtype.type(scale), forth, width=width)


@fast_jit
def _turn(lo, hi, x, y, cos, sin, scale, forth):
    (n, heads, hd), (B, K) = x.shape, y.shape[:2]
    T, G, half = n // B, heads // K, hd // 2
    for i in range(lo, hi):
        for h in range(heads):
            flat, stacked = x[i, h], y[i // T, h // G, i % T * G + h % G]
            source, target = (flat, stacked) if forth else (stacked, flat)
            for j in range(half):
                c, s = scale * cos[i, j], scale * sin[i, j]
                u, w = source[j], source[j + half]
                target[j], target[j + half] = u * c - w * s, w * c + u * s


@fast_jit
def _softmax(lo, hi, s, starts, log_z, offset):
    K, R = s.shape[1:3]
    G = log_z.shape[2] // starts.shape[1]
    for i in range(lo, hi):
        b, k, r = i // (K * R), i // R % K, i % R
        t = (offset + r) // G
        first, row = starts[b, t], s[b, k, r]
        seen = row[first : t + 1]
        top, total = largest(seen), seen[0] * 0
        for j in range(seen.size):
            seen[j] = exp(seen[j] - top)
            total += seen[j]
        log_z[b, k, offset + r] = top + np.log(total)
        for j in range(seen.size):
            seen[j] /= total
        row[:first] = 0
        row[t + 1 :] = 0


@fast_jit
def _softmax_back(lo, hi, s, dp, starts, log_z, offset):
    K, R = s.shape[1:3]
    G = log_z.shape[2] // starts.shape[1]
    for i in range(lo, hi):
        b, k, r = i // (K * R), i // R % K, i % R
        t = (offset + r) // G
        first, row, drow, z = starts[b, t], s[b, k, r], dp[b, k, r], log_z[b, k, offset + r]
        p, d = row[first : t + 1], drow[first : t + 1]
        dot = z * 0
        for j in range(p.size):
            p[j] = exp(p[j] - z)
            dot += p[j] * d[j]
        for j in range(p.size):
            d[j] = p[j] * (d[j] - dot)
        row[:first] = 0
        drow[:first] = 0
        row[t + 1 :] = 0
        drow[t + 1 :] = 0


# ---------------------------------------------------------------------------- Cross-entropy
# With z = hEᵀ, p = softmax(z), weight c = m/Σm and target one-hot y:
#   L = Σ c·(log Σ eᶻ − z[target])        ∂L/∂z = c·(p − y)
#   ∂L/∂h = c·(pE − E[target])            ∂L/∂E = (∂L/∂z)ᵀ h
# pE is attention whose keys and values are both E, and V is large: so E goes by in tiles, and for
# the tiles so far there are the largest z, Σ e^(z − largest) and Σ e^(z − largest)·E, which shrink
# when a larger z comes (Milakov and Gimelshein 2018, Alg. 3). The logits of one tile exist at a
# time, and a head that is held in few bits is read once for both products. Only a trained E needs
# the logits again, when Σ eᶻ is known. Rows with m = 0 are never computed.


def cross_entropy(hidden, head, targets, mask):
    """As `nn.cross_entropy`; keeps the gradients, which the same pass computes."""
    kept = {"hidden": isbox(hidden), "head": isbox(head)}
    return _cross_entropy(hidden, head, targets, mask, kept)


@primitive
def _cross_entropy(hidden, head, targets, mask, kept):
    at = np.nonzero(mask)
    h, t = hidden[at], targets[at]
    if t.size and not 0 <= t.min() <= t.max() < head.shape[0]:  # the loops below check no bounds
        raise IndexError(f"target {t.max()} is not one of {head.shape[0]} tokens")
    c = mask[at].astype(h.dtype) / h.dtype.type(np.sum(mask))
    log_z, mean = np.empty_like(c), np.zeros_like(h) if kept["hidden"] else None
    for i in chunks(len(h), stored.TILE, LOGIT_FLOATS):
        log_z[i] = _log_z(h[i], head, mean if mean is None else mean[i])
    e_target = head[t]
    nll = log_z - np.sum(h * e_target, axis=-1)
    if kept["hidden"]:
        kept["hidden"] = np.zeros_like(hidden)
        kept["hidden"][at] = c[:, None] * (mean - e_target)
    kept["head"] = _head_gradient(h, head, t, c, log_z) if kept["head"] else None
    return np.dot(nll.astype(np.float64), c.astype(np.float64))


defvjp_argnums(
    _cross_entropy,
    lambda argnums, loss, args, kwargs: (
        lambda g: tuple((args[4]["hidden"], args[4]["head"])[n] * float(g) for n in argnums)
    ),
)


def _log_z(h, head, mean):
    """log Σ eᶻ of the rows h (n, D): (n,); and pE to `mean` (n, D), zeros before, if given."""
    top, total = np.full(len(h), -np.inf, h.dtype), np.zeros(len(h), h.dtype)
    shrink = np.empty_like(top)
    for _, tile in stored.tiles(head):
        z = h @ tile.T
        share_rows(_exp_tile, len(z), z, top, total, shrink, width=z.shape[1])
        if mean is not None:
            mean *= shrink[:, None]
            mean += z @ tile
    if mean is not None:
        mean /= total[:, None]
    return top + np.log(total)


def _head_gradient(h, head, targets, c, log_z):
    """∂L/∂E (V, D) of a trained head."""
    de = np.zeros_like(head)
    for i in chunks(len(h), stored.TILE, LOGIT_FLOATS):
        for rows, tile in stored.tiles(head):
            z = h[i] @ tile.T
            share_rows(_probabilities, len(z), z, c[i], log_z[i], width=z.shape[1])
            de[rows] += z.T @ h[i]
    np.subtract.at(de, targets, c[:, None] * h)
    return de


@fast_jit
def _exp_tile(lo, hi, z, top, total, shrink):
    for i in range(lo, hi):
        new, part = max(top[i], largest(z[i])), total[i] * 0
        for j in range(z.shape[1]):
            z[i, j] = exp(z[i, j] - new)
            part += z[i, j]
        shrink[i] = exp(top[i] - new)
        top[i], total[i] = new, total[i] * shrink[i] + part


@fast_jit
def _probabilities(lo, hi, z, c, log_z):
    for i in range(lo, hi):
        for j in range(z.shape[1]):
            z[i, j] = exp(z[i, j] - log_z[i]) * c[i]

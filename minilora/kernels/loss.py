"""Optimized cross-entropy: one pass over the head. Letters as in `layers.py`."""

import numpy as np
from autograd.extend import defvjp_argnums, primitive
from autograd.tracer import isbox

from .loops import exp, fast_jit, row_max
from .threads import parallel_rows
from .weights import TILE, tiles

# With z = hEᵀ, p = softmax(z), weight c = m/Σm and target one-hot y:
#   L = Σ c·(log Σ eᶻ − z[target])        ∂L/∂z = c·(p − y)
#   ∂L/∂h = c·(pE − E[target])            ∂L/∂E = (∂L/∂z)ᵀ h
# pE is attention with the keys and values E, and V is large. So E is read in tiles, with running
# values of the largest z, Σ e^(z − largest) and Σ e^(z − largest)·E, which are rescaled when a
# larger z is found (Milakov and Gimelshein 2018, Alg. 3). Only one tile of logits is in memory, and
# a quantized head is decoded once for both products. The gradient of a trained E recomputes the
# logits when Σ eᶻ is known. Rows with m = 0 are not computed.


def cross_entropy(hidden, head, targets, mask):
    """Compute `layers.cross_entropy`. Keeps the gradients, which the same pass computes."""
    saved = {"hidden": isbox(hidden), "head": isbox(head)}
    return _cross_entropy(hidden, head, targets, mask, saved)


@primitive
def _cross_entropy(hidden, head, targets, mask, saved):
    at = np.nonzero(mask)
    h = hidden[at]
    t = targets[at]
    if t.size and not 0 <= t.min() <= t.max() < head.shape[0]:  # the loops check no bounds
        raise IndexError(f"targets {t.min()} to {t.max()} are not all in [0, {head.shape[0]})")
    c = mask[at].astype(h.dtype) / h.dtype.type(np.sum(mask))
    mean = np.zeros_like(h) if saved["hidden"] else None
    log_z = _log_z(h, head, mean)
    e_target = head[t]
    nll = log_z - np.sum(h * e_target, axis=-1)
    if saved["hidden"]:
        saved["hidden"] = np.zeros_like(hidden)
        saved["hidden"][at] = c[:, None] * (mean - e_target)
    saved["head"] = _head_gradient(h, head, t, c, log_z) if saved["head"] else None
    return np.dot(nll.astype(np.float64), c.astype(np.float64))


defvjp_argnums(
    _cross_entropy,
    lambda argnums, loss, args, kwargs: (
        lambda g: tuple((args[4]["hidden"], args[4]["head"])[n] * float(g) for n in argnums)
    ),
)


def _log_z(h, head, mean):
    """Return log Σ eᶻ (n,) of the rows h (n, D); set `mean` (n, D), zeros or None, to pE."""
    top, total = np.full(len(h), -np.inf, h.dtype), np.zeros(len(h), h.dtype)
    shrink = np.empty_like(top)
    for _, tile in tiles(head, TILE):
        z = h @ tile.T
        parallel_rows(_exp_tile, len(z), z, top, total, shrink, width=z.shape[1])
        if mean is not None:
            mean *= shrink[:, None]
            mean += z @ tile
    if mean is not None:
        mean /= total[:, None]
    return top + np.log(total)


def _head_gradient(h, head, targets, c, log_z):
    """Return ∂L/∂E (V, D) of a trained head."""
    de = np.empty_like(head)
    for rows, tile in tiles(head, TILE):
        z = h @ tile.T
        parallel_rows(_probabilities, len(z), z, c, log_z, width=z.shape[1])
        np.matmul(z.T, h, out=de[rows])
    np.subtract.at(de, targets, c[:, None] * h)
    return de


@fast_jit
def _exp_tile(lo, hi, z, top, total, shrink):
    for i in range(lo, hi):
        new = max(top[i], row_max(z[i]))
        part = total[i] * 0
        for j in range(z.shape[1]):
            z[i, j] = exp(z[i, j] - new)
            part += z[i, j]
        shrink[i] = exp(top[i] - new)
        top[i] = new
        total[i] = total[i] * shrink[i] + part


@fast_jit
def _probabilities(lo, hi, z, c, log_z):
    for i in range(lo, hi):
        for j in range(z.shape[1]):
            z[i, j] = exp(z[i, j] - log_z[i]) * c[i]

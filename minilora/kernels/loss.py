"""Optimized cross-entropy: one pass over the head. Letters as in `layers.py`."""

import numpy as np
from autograd.extend import primitive
from autograd.tracer import isbox

from ..layers import operand
from .gradients import define_gradients
from .weights import product, product_transposed, tiles

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
    traced = {n for n, x in enumerate((hidden, head)) if isbox(x)}  # whose gradient is computed
    return _cross_entropy(hidden, head, targets, mask, traced, {})


@primitive
def _cross_entropy(hidden, head, targets, mask, traced, grads):
    at = np.nonzero(mask)
    h = hidden[at]
    t = targets[at]
    c = mask[at].astype(h.dtype) / np.sum(mask)
    mean = np.zeros_like(h) if 0 in traced else None
    log_z = _log_z(h, head, mean)
    e_target = operand(head[t], head)
    nll = log_z - np.sum(operand(h, head) * e_target, axis=-1)
    if mean is not None:
        grads[0] = np.zeros_like(hidden)
        grads[0][at] = c[:, None] * (mean - e_target)
    if 1 in traced:
        de = np.empty_like(head)
        grads[1] = de
        for rows, tile in tiles(head):
            p = np.exp(h @ tile.T - log_z[:, None])
            de[rows] = (c[:, None] * p).T @ h
        np.subtract.at(de, t, c[:, None] * h)
    return np.dot(nll.astype(np.float64), c.astype(np.float64))


def _cross_entropy_backward(g, argnums, grads):
    return {n: grads[n] * float(g) for n in argnums}


define_gradients(_cross_entropy, lambda loss, *args: args[-1:], _cross_entropy_backward)


def _log_z(h, head, mean):
    """Return log Σ eᶻ (n,) of the rows h (n, D); set `mean` (n, D), zeros or None, to pE."""
    top = np.full(len(h), -np.inf, h.dtype)
    total = np.zeros_like(top)
    for _, tile in tiles(head):
        z = np.empty((len(h), len(tile)), h.dtype)
        product(h, tile, z)
        larger = np.maximum(top, z.max(axis=1))
        z -= larger[:, None]
        np.exp(z, out=z)
        shrink = np.exp(top - larger)
        total = total * shrink + z.sum(axis=1)
        top = larger
        if mean is not None:
            mean *= shrink[:, None]
            mean += product_transposed(z, tile)
    if mean is not None:
        mean /= total[:, None]
    return top + np.log(total)

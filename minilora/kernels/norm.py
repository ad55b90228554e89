"""Optimized RMSNorm: `layers.rms_norm` as one primitive, also for the norms of the heads."""

import numpy as np
from autograd.extend import primitive

from .gradients import define_gradients
from .loops import MIN_DIVISOR, fast_jit, rows
from .threads import parallel_rows

# With r = 1/√(mean(x²) + ε), x̂ = r·x, y = x̂∘w and g = ∂L/∂y:
#   ∂L/∂x = r·(g∘w − x̂·mean(g∘w∘x̂))        ∂L/∂w = Σ_rows g∘x̂
# x̂ is recomputed as y/w: the projections after the norm keep y in any case, so x is not kept. For
# this, a weight of 0 counts as 1e-30.


def rms_norm(x, weight, eps):
    """Compute `layers.rms_norm`. Keeps y and one number per row."""
    return _rms_norm(x, weight, eps, {})


@primitive
def _rms_norm(x, weight, eps, saved):
    y = np.empty(x.shape, x.dtype)
    r = np.empty(x.size // x.shape[-1], x.dtype)
    w = np.where(weight == 0, MIN_DIVISOR, weight)
    saved.update(r=r, w=w)
    parallel_rows(_norm, x.shape, rows(x), w, eps, rows(y), r)
    return y


def _rms_norm_backward(g, argnums, y, saved):
    w = saved["w"]
    dx = np.empty_like(y)
    parallel_rows(_norm_back, y.shape, rows(y), w, saved["r"], rows(g), rows(dx))
    return dx, np.sum(rows(g * (y / w)), axis=0) if 1 in argnums else None


define_gradients(_rms_norm, lambda y, x, weight, eps, saved: (y, saved), _rms_norm_backward)


@fast_jit
def _norm(lo, hi, x, w, eps, y, r):
    D = x.shape[1]
    for i in range(lo, hi):
        total = 0.0
        for j in range(D):
            total += x[i, j] * x[i, j]
        r[i] = 1 / np.sqrt(total / D + eps)
        for j in range(D):
            y[i, j] = x[i, j] * r[i] * w[j]


@fast_jit
def _norm_back(lo, hi, y, w, r, g, dx):
    D = y.shape[1]
    for i in range(lo, hi):
        dot = 0.0
        for j in range(D):
            dx[i, j] = y[i, j] / w[j]  # x̂
            dot += g[i, j] * w[j] * dx[i, j]
        mean = y.dtype.type(dot / D)
        for j in range(D):
            dx[i, j] = r[i] * (g[i, j] * w[j] - dx[i, j] * mean)

"""Optimized SwiGLU: `layers.swiglu` as one primitive."""

import numpy as np
from autograd.extend import defvjp_argnums, primitive

from .loops import TINY, exp, fast_jit, rows
from .threads import parallel_rows

# With σ = 1/(1 + e^−a), y = a·σ∘b and g = ∂L/∂y:
#   ∂L/∂a = g∘σ∘b∘(1 + a∘(1 − σ))        ∂L/∂b = g∘a∘σ
# σ∘b is recomputed as y/a: an adapted down_proj keeps y in any case, so b is not kept. For this, an
# a between ±1e-30 counts as 1e-30.


@primitive
def swiglu(gate, up):
    """Compute `layers.swiglu`. Keeps gate and y."""
    y = np.empty(gate.shape, gate.dtype)
    width = gate.shape[-1]
    parallel_rows(_swiglu, gate.size // width, rows(gate), rows(up), rows(y), width=width)
    return y


def _swiglu_vjp(argnums, y, args, kwargs):
    gate = args[0]

    def vjp(g):
        grads = np.empty(gate.shape, gate.dtype), np.empty(gate.shape, gate.dtype)
        width = gate.shape[-1]
        a = (rows(x) for x in (gate, y, g, *grads))
        parallel_rows(_swiglu_back, gate.size // width, *a, width=width)
        return tuple(grads[n] for n in argnums)

    return vjp


defvjp_argnums(swiglu, _swiglu_vjp)


@fast_jit
def _swiglu(lo, hi, gate, up, y):
    one, tiny = gate.dtype.type(1), gate.dtype.type(TINY)
    for i in range(lo, hi):
        for j in range(gate.shape[1]):
            a = tiny if abs(gate[i, j]) < tiny else gate[i, j]  # NaN stays NaN
            y[i, j] = a / (one + exp(-a)) * up[i, j]


@fast_jit
def _swiglu_back(lo, hi, gate, y, g, da, db):
    one, tiny = gate.dtype.type(1), gate.dtype.type(TINY)
    for i in range(lo, hi):
        for j in range(gate.shape[1]):
            a = tiny if abs(gate[i, j]) < tiny else gate[i, j]  # NaN stays NaN
            s = one / (one + exp(-a))
            da[i, j] = g[i, j] * (y[i, j] / a) * (one + a * (one - s))
            db[i, j] = g[i, j] * a * s

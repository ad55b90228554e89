"""The optimized operations of `layers.py`: the same names, arguments and values.

Part 4 of `lessons/00_qlora_in_one_file.py`, made general: the same equations, with gradients
derived by hand.

A sublayer with plain LoRA is one autograd primitive, and keeps only arrays that are expensive to
recompute. Autograd hands the backward pass only the arguments and the result, so the forward pass
keeps these arrays in a dict that it gets as an argument, `saved`. Other sublayers (dropout, trained
weights) are composed as in `layers.py`. Loops use numba, matmuls use NumPy. Tests compare each
function with `layers.py`, in values and gradients.

Letters as in `layers.py`; g is the gradient of the output, ∂L/∂y.
"""

import numpy as np
from autograd.extend import defvjp_argnums, primitive

from .. import layers
from ..config import MLP
from ..layers import ENTRIES, embed, merge_projection
from .fused_attention import attention, self_attention
from .fused_loss import cross_entropy
from .fused_norm import rms_norm
from .fused_projection import (
    is_fused,
    join_factors,
    linear,
    project,
    project_backward,
    split_factors,
)  # fmt: skip
from .loops import exp, fast_jit, rows
from .threads import parallel_rows

__all__ = ["ENTRIES", "attention", "cross_entropy", "embed", "linear", "merge_projection", "mlp",
           "rms_norm", "self_attention", "swiglu"]  # fmt: skip


# ----------------------------------------------------------------------------------- SwiGLU
# With σ = 1/(1 + e^−a) and y = a·σ∘b:
#   ∂L/∂a = g∘b∘σ∘(1 + a∘(1 − σ))        ∂L/∂b = g∘a∘σ


def swiglu_forward(gate, up):
    """Compute `layers.swiglu`."""
    y = np.empty(gate.shape, gate.dtype)
    width = gate.shape[-1]
    parallel_rows(_swiglu, gate.size // width, rows(gate), rows(up), rows(y), width=width)
    return y


def _swiglu_vjp(argnums, y, args, kwargs):
    def vjp(g):
        grads = swiglu_backward(g, *args)
        return tuple(grads[n] for n in argnums)

    return vjp


def swiglu_backward(g, gate, up):
    """Compute ∂L/∂gate and ∂L/∂up for g = ∂L/∂y."""
    da, db = np.empty(gate.shape, gate.dtype), np.empty(up.shape, up.dtype)
    a = (rows(x) for x in (gate, up, g, da, db))
    width = gate.shape[-1]
    parallel_rows(_swiglu_back, gate.size // width, *a, width=width)
    return da, db


swiglu = primitive(swiglu_forward)  # keeps its inputs
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


# -------------------------------------------------------------------------------------- MLP
# y = W_down·swiglu(W_gate·x, W_up·x), each W with its adapter; gradients pass in reverse order.
# The input of down_proj is recomputed in the backward pass instead of being kept. It is the widest
# array, and recomputing it takes a tenth of the time of the matmul that reads it.


def mlp(x, node, ctx):
    """Compute `layers.mlp`. Keeps x and the outputs of gate_proj and up_proj."""
    if ctx.config.hidden_act != "silu" or not is_fused(MLP, node, ctx):
        return layers.mlp(x, node, ctx)
    projections, factors = split_factors(MLP, node)
    return _mlp(x, projections, {}, *factors)


@primitive
def _mlp(x, projections, saved, *factors):
    gate, up, down = join_factors(projections, factors)
    saved["gate"], saved["up"] = project(x, gate, up)
    return project(swiglu_forward(saved["gate"], saved["up"]), down)[0]


def _mlp_vjp(argnums, y, args, kwargs):
    x, projections, saved, *factors = args
    gate, up, down = join_factors(projections, factors)

    def vjp(g):
        hidden = swiglu_forward(saved["gate"], saved["up"]) if down.A is not None else None
        d_hidden, d_down = project_backward([g], hidden, down)
        d_hidden = swiglu_backward(d_hidden, saved["gate"], saved["up"])
        dx, d_factors = project_backward(d_hidden, x, gate, up, needs_x=0 in argnums)
        grads = [dx, None, None, *d_factors, *d_down]
        return tuple(grads[n] for n in argnums)

    return vjp


defvjp_argnums(_mlp, _mlp_vjp)

"""The operations of `nn.py` made fast: same names, same arguments, same values.

Part 4 of `lessons/00_qlora_in_one_file.py`, made general: the same equations, with gradients
derived by hand.

Each is one autograd primitive with its backward pass derived by hand above it, and keeps for that
pass only what cannot be recomputed cheaply. Loops are numba's, matrix products NumPy's. Tests hold
each function and its twin in `nn.py` together, in value and in gradient. The two longest are in
`fused_attention.py` and `fused_loss.py`.

Letters as in `nn.py`; g is the gradient that arrives from above, ∂L/∂y.
"""

import numpy as np
from autograd.extend import defvjp_argnums, primitive

from .. import nn
from ..products import lowrank, lowrank_back
from .fused_attention import attention
from .fused_loss import cross_entropy
from .loops import exp, fast_jit, rows
from .threads import share_rows
from .weights import product, product_back

__all__ = ["attention", "cross_entropy", "down", "linear", "product", "rms_norm", "swiglu"]


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
# Of x = swiglu(gate, up), the input of W_down, nothing is kept: to make it again takes a tenth of
# the time of the product that reads it, and it is the widest input of all.


def linear(x, trained, frozen, rng=None):
    """As `nn.linear`, which does all but the commonest case: low-rank factors and nothing else."""
    if not factors_alone(trained, frozen, rng is not None):
        return nn.linear(x, trained, frozen, rng, product)
    return _adapted(x, *_factors(trained, frozen))


def down(gate, up, trained, frozen, rng=None):
    """As `nn.down`; keeps its two inputs."""
    if not factors_alone(trained, frozen, rng is not None):
        return nn.linear(swiglu(gate, up), trained, frozen, rng, product)
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

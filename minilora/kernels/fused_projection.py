"""Optimized projections with plain LoRA: all projections of one input together.

Part 3 of `lessons/00_qlora_in_one_file.py`, optimized: one matmul computes Ax for all projections.
The functions are not autograd primitives; the fused sublayers call them in both passes.

Letters as in `layers.py`; g is the gradient of an output, ∂L/∂y.
"""

from typing import Any, NamedTuple

import numpy as np
from autograd.tracer import isbox

from .. import layers
from .loops import rows
from .weights import matmul, tiled_matmul, tiled_matmul_backward


def linear(x, node, rng=None):
    """Compute `layers.linear`, but dequantize a weight tile by tile."""
    return layers.linear(x, node, rng, matmul)


class Projection(NamedTuple):
    """A projection: its frozen leaves and its factors, which are None without an adapter."""

    weight: Any  # (out, in), an array or quantized
    bias: Any = None  # (out,), frozen
    scaling: Any = None  # α/r
    A: Any = None  # (r, in)
    B: Any = None  # (out, r)


def is_fused(names, node, ctx):
    """Return whether these projections of a sublayer train nothing but LoRA, without dropout.

    No other method may wrap `linear`. Otherwise, the sublayer is composed as in `layers`.
    """
    nodes = [node[name] for name in names]
    trained = any(isbox(n["weight"]) or isbox(n.get("bias")) for n in nodes)
    dropout = ctx.rng is not None and any(n.get("lora_dropout") for n in nodes)
    return ctx.ops.linear is linear and not trained and not dropout


def split_factors(names, node):
    """Return the Projections of a sublayer without factors, and a flat list of all factors."""
    # autograd traces only arrays that are arguments of a primitive, not arrays in its arguments
    projections, factors = [], []
    for own in (node[name] for name in names):
        projections.append(Projection(own["weight"], own.get("bias"), own.get("lora_scaling")))
        if "lora_A" in own:
            factors += [own["lora_A"], own["lora_B"]]
    return projections, factors


def join_factors(projections, factors):
    """Return the Projections with their factors, the inverse of `split_factors`."""
    pairs = iter(zip(factors[::2], factors[1::2]))
    adapted = (dict(zip("AB", next(pairs))) if p.scaling is not None else {} for p in projections)
    return [p._replace(**own) for p, own in zip(projections, adapted)]


def project(x, *projections):
    """Compute [W₀x + s·B(Ax) + b of each projection]: x (..., in) -> (..., out) each."""
    flat = rows(x)
    outputs = [tiled_matmul(flat, p.weight) for p in projections]
    for i, z in down_project(flat, projections):
        outputs[i] += z @ projections[i].B.T
    for y, p in zip(outputs, projections):
        if p.bias is not None:
            y += p.bias
    return [y.reshape(*x.shape[:-1], -1) for y in outputs]


def down_project(flat, projections):
    """Yield (i, s·Ax) of each adapted projection: flat (n, in) -> (n, r), one matmul for all."""
    adapted = [(i, p) for i, p in enumerate(projections) if p.A is not None]
    if adapted:
        z = flat @ np.concatenate([p.A for _, p in adapted]).T
        end = 0
        for i, p in adapted:
            start = end
            end = end + len(p.A)
            yield i, p.scaling * z[:, start:end]


def project_backward(gs, x, *projections, needs_x=True):
    """Compute ∂L/∂x (None unless `needs_x`) and [∂L/∂A, ∂L/∂B, …] from gs, ∂L/∂y of each output.

    With y = W₀x + s·B(Ax):  ∂L/∂B = g·(s·Ax)ᵀ,  ∂L/∂A = (s·Bᵀg)·xᵀ,  ∂L/∂x = W₀ᵀg + Aᵀ(s·Bᵀg).
    x can be None if there are no factors.
    """
    shape = gs[0].shape[:-1]
    dx = None
    grads = []
    gs = [rows(g) for g in gs]
    for g, p in zip(gs, projections if needs_x else ()):
        part = tiled_matmul_backward(g, p.weight)
        dx = part if dx is None else np.add(dx, part, out=dx)
    adapted = [(g, p) for g, p in zip(gs, projections) if p.A is not None]
    if adapted:
        flat = rows(x)
        ups = np.concatenate([p.scaling * (g @ p.B) for g, p in adapted], axis=1)
        dA = ups.T @ flat  # the gradients of all A, stacked
        end = 0
        for i, z in down_project(flat, projections):
            start = end
            end = end + len(projections[i].A)
            grads += [dA[start:end], gs[i].T @ z]
        if needs_x:
            dx += ups @ np.concatenate([p.A for _, p in adapted])
    return None if dx is None else dx.reshape(*shape, -1), grads

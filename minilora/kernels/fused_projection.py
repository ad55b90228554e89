"""Projections with plain LoRA on them, several of one input at a time, for the fused sublayers.

Part 3 of `lessons/00_qlora_in_one_file.py`, made fast: the projections of one input share the thin
matmuls with their A. These are plain functions of arrays, not autograd's: the sublayers call them
in both directions.

Letters as in `layers.py`; g is the gradient of an output, ∂L/∂y.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import layers
from ..lora import FACTORS, FIXED
from ..tree import check_leaves, subtree
from .loops import rows
from .weights import frozen_matmul, tiled_matmul, tiled_matmul_backward


def linear(x, trained, frozen, rng=None, frozen_matmul=frozen_matmul):
    """Compute `layers.linear` with tiles of a quantized weight in place of all of it."""
    return layers.linear(x, trained, frozen, rng, frozen_matmul)


class Projection(NamedTuple):
    """A frozen weight and what is next to it. A and B are None where nothing is trained."""

    weight: Any  # (out, in), an array or quantized
    bias: Any = None  # (out,), frozen
    scaling: Any = None  # α/r
    A: Any = None  # (r, in)
    B: Any = None  # (out, r)


def split_factors(names, trained, frozen):
    """Return the Projections of a sublayer without their factors, and all factors as a flat list.

    autograd follows only arrays that are arguments of a primitive themselves. Raises InputError for
    a leaf that plain LoRA does not read.
    """
    check_leaves(trained, names, "the sublayer")
    check_leaves(frozen, names, "the sublayer")
    projections, factors = [], []
    for name in names:
        node, own = subtree(trained, name), frozen[name]
        check_leaves(own, ("weight", "bias", *FIXED), name)
        scaling = own["lora_scaling"] if node else None
        projections.append(Projection(own["weight"], own.get("bias"), scaling))
        factors += [node[factor] for factor in FACTORS if node]
    return projections, factors


def join_factors(projections, factors):
    """Return the Projections with their factors, the inverse of `projections`."""
    pairs = iter(zip(factors[::2], factors[1::2]))
    adapted = (dict(zip("AB", next(pairs))) if p.scaling is not None else {} for p in projections)
    return [p._replace(**own) for p, own in zip(projections, adapted)]


def project(x, *split_factors):
    """Compute [W₀x + s·B(Ax) + b of each projection]: x (..., in) -> (..., out) each."""
    flat = rows(x)
    outputs = [tiled_matmul(flat, p.weight) for p in split_factors]
    for i, z in down_project(flat, split_factors):
        outputs[i] += z @ split_factors[i].B.T
    for y, p in zip(outputs, split_factors):
        if p.bias is not None:
            y += p.bias
    return [y.reshape(*x.shape[:-1], -1) for y in outputs]


def down_project(flat, split_factors):
    """Yield (i, s·Ax) of each adapted projection: flat (n, in) -> (n, r), one matmul for all."""
    adapted = [(i, p) for i, p in enumerate(split_factors) if p.A is not None]
    if adapted:
        z, end = flat @ np.concatenate([p.A for _, p in adapted]).T, 0
        for i, p in adapted:
            start, end = end, end + len(p.A)
            yield i, p.scaling * z[:, start:end]


def project_backward(gs, x, *split_factors, needs_x=True):
    """Compute ∂L/∂x, or None, and [∂L/∂A, ∂L/∂B, …] for the gradients gs of the outputs.

    With y = W₀x + s·B(Ax):  ∂L/∂B = g·(s·Ax)ᵀ,  ∂L/∂A = (s·Bᵀg)·xᵀ,  ∂L/∂x = W₀ᵀg + Aᵀ(s·Bᵀg).
    x may be None if nothing is trained.
    """
    shape, dx, grads = gs[0].shape[:-1], None, []
    gs = [rows(g) for g in gs]
    for g, p in zip(gs, split_factors if needs_x else ()):
        part = tiled_matmul_backward(g, p.weight)
        dx = part if dx is None else np.add(dx, part, out=dx)
    adapted = [(g, p) for g, p in zip(gs, split_factors) if p.A is not None]
    if adapted:
        flat = rows(x)
        ups = np.concatenate([p.scaling * (g @ p.B) for g, p in adapted], axis=1)
        dA, end = ups.T @ flat, 0  # of all of them, one below the other
        for i, z in down_project(flat, split_factors):
            start, end = end, end + len(split_factors[i].A)
            grads += [dA[start:end], gs[i].T @ z]
        if needs_x:
            dx += ups @ np.concatenate([p.A for _, p in adapted])
    return None if dx is None else dx.reshape(*shape, -1), grads

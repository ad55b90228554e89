"""DoRA (Liu et al. 2024): LoRA, and a trained magnitude m per output of a projection."""

from dataclasses import replace

import autograd.numpy as np
from autograd.extend import notrace_primitive

from .. import kernels, lora
from ..config import InputError
from ..layers import LORA, Hook, dropout
from ..tree import get, without
from .method import Method

M = "lora_magnitude_vector"  # (out,)


def init(base, config, rng):
    """Create the factors of LoRA, and m = ‖W₀‖ per row (Sec. 4.1)."""
    return add_magnitudes(lora.init(base, replace(config, use_dora=False), rng), base)


def add_magnitudes(adapters, base):
    """Set m = ‖W₀ + (α/r)·BA‖ in place, for each adapted projection; return the adapters."""
    for path in lora.adapted_paths(adapters):
        node = get(base, path)
        own = get(adapters, path)
        own[M] = row_norms(node | own)
    return adapters


def apply(inner, x, node, rng):
    """Scale the outputs of LoRA; with dropout, W₀x stays as it is, and its change drops, too."""
    z = dropout(x, node["lora_dropout"], rng)
    # h = m∘(W₀z + (α/r)·BAz)/‖W₀ + (α/r)·BA‖ + b, with constant norms   (DoRA, Eqs. 5 and 11)
    h = inner(z, without(node, "bias"), None) * (node[M] / row_norms(node))
    if z is not x:
        h = h + inner(x - z, without(node, "bias", *LORA), None)  # W₀(x − z), as in PEFT
    return h + node["bias"] if "bias" in node else h


def merge(inner, node):
    """Scale the rows of the merged weight."""
    # W' = m∘(W₀ + (α/r)·BA)/‖W₀ + (α/r)·BA‖   (DoRA, Eq. 5)
    merged = inner(without(node, M))
    return merged | {"weight": (node[M] / row_norms(node))[:, None] * merged["weight"]}


def row_norms(node):
    """Return ‖W₀ + (α/r)·BA‖ per row, (out,), without a gradient; 1 for a row of zeros."""
    if "lora_stack" in node:
        raise InputError("DoRA cannot be trained on a stacked adapter: merge that adapter first")
    return _row_norms(node["weight"], node["lora_scaling"], node["lora_A"], node["lora_B"])


@notrace_primitive
def _row_norms(w, scaling, a, b):
    w = kernels.ops.dense(w)
    norms = np.linalg.norm(w + w.dtype.type(scaling) * (b @ a), axis=1)
    return np.where(norms == 0, norms.dtype.type(1), norms)


METHOD = Method(
    "dora",
    init,
    hooks=(Hook((M,), apply, merge),),
    extra_floats={M: len},  # the output before scaling
)

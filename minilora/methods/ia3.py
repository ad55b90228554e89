"""IA³ (Liu et al. 2022): trained scales of keys, values and the hidden units of the MLP."""

import autograd.numpy as np

from ..layers import Hook
from ..tree import set_leaf, without
from .method import Method, projections

L = "ia3_l"  # (out, 1) of k_proj and v_proj, (1, in) of down_proj
TARGETS = ("k_proj", "v_proj", "down_proj")


def init(base, config, rng):
    """Create scales, all one."""
    adapters: dict = {}
    for path, (out_features, in_features) in projections(base, TARGETS).items():
        shape = (1, in_features) if path.endswith("down_proj") else (out_features, 1)
        set_leaf(adapters, f"{path}.{L}", np.ones(shape, "f4"))
    return adapters


def apply(inner, x, node, rng):
    """Scale the input of down_proj, and the outputs of k_proj and v_proj with their biases."""
    if len(node[L]) == 1:
        return inner(x * node[L][0], node, rng)  # W_down(l_ff ∘ h)   (IA³, Sec. 3.3)
    return inner(x, node, rng) * node[L][:, 0]  # l_k ∘ K and l_v ∘ V


def merge(inner, node):
    """Scale the rows or the columns of the weight, and the bias of scaled outputs."""
    merged = inner(without(node, L))
    merged["weight"] = node[L] * merged["weight"]
    if "bias" in merged and len(node[L]) > 1:
        merged["bias"] = node[L][:, 0] * merged["bias"]
    return merged


METHOD = Method(
    "ia3",
    init,
    hooks=(Hook((L,), apply, merge),),
    # the output before scaling; the input is kept in any case
    extra_floats={L: lambda leaf: leaf.size if len(leaf) > 1 else 0},
    peft_fields={
        "peft_type": "IA3",
        "target_modules": list(TARGETS),
        "feedforward_modules": ["down_proj"],
    },
    free_fields=("init_ia3_weights",),
)

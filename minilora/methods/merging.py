"""Merging an adapter of any method that changes weights alone."""

from functools import reduce

import numpy as np

from .. import lora
from ..config import InputError, require
from ..layers import dense
from ..tree import (
    flatten,
    get,
    named_leaves,
    set_leaf,
    subtree,
    trained_or_frozen,
    tree_map,
    unflatten,
)
from .operations import row_norms

# Nodes and leaves that no weight can replace.
UNMERGED = {
    "prompt_embeddings": "a prompt or P-tuning", "prompt_encoder": "P-tuning",
    "prefix_k": "prefix tuning", "prefix_v": "prefix tuning", "bottleneck_down": "a bottleneck",
}  # fmt: skip
OWN = ("lora_magnitude_vector", "ia3_l")  # leaves that `lora.merge` does not know


def merge(adapters, base, dtype=np.float32):
    """Return a dense tree that computes alone what `base` computes with `adapters`.

    As `lora.merge`, also for DoRA, IA³ and stacked adapters. Raises InputError for methods that do
    more than change weights.
    """
    leaves, frozen = flatten(adapters), flatten(base)
    for path in leaves:
        for name in set(path.split(".")) & UNMERGED.keys():
            raise InputError(f"{UNMERGED[name]} cannot be merged: {path} is part of no weight")
    nodes = {path.rpartition(".")[0] for path in leaves if path.endswith(OWN)}
    nodes |= {path.partition(".lora_stack.")[0] for path in frozen if ".lora_stack." in path}
    plain = {path: w for path, w in leaves.items() if not path.endswith(OWN)}
    for node in nodes:
        trained, own = reduce(subtree, node.split("."), adapters), get(base, node)
        for name in lora.FACTORS:
            plain.pop(f"{node}.{name}", None)
        plain[f"{node}.weight"] = merged_weight(trained, own)
        if "bias" in own | trained and len(trained.get("ia3_l", ())) > 1:
            bias = trained_or_frozen(trained, own, "bias")
            plain[f"{node}.bias"] = trained["ia3_l"][:, 0] * bias
    frozen = {path: w for path, w in frozen.items() if ".lora_stack." not in path}
    return lora.merge(unflatten(plain), unflatten(frozen), dtype)


@np.errstate(over="ignore", invalid="ignore")  # `lora.merge` refuses what is not finite by name
def merged_weight(trained, frozen):
    """Return the dense weight (out, in) of a projection with all that is trained on it."""
    w = dense(trained_or_frozen(trained, frozen, "weight"))
    for below in subtree(frozen, "lora_stack").values():
        w = w + lora.delta(below, below)
    if "lora_A" in trained:
        w = w + lora.delta(trained, frozen)
    if "lora_magnitude_vector" in trained:
        # W' = m∘(W₀ + (α/r)·BA)/‖W₀ + (α/r)·BA‖   (DoRA, Eq. 5)
        w = (trained["lora_magnitude_vector"] / row_norms(trained, frozen))[:, None] * w
    if "ia3_l" in trained:
        w = trained["ia3_l"] * w  # (out, 1): rows, (1, in): columns
    return w


def unmerge(adapters, base, merged):
    """Return the weights before merging: W₀ = W' − (α/r)·BA for every adapted projection.

    `base` has the scalings. The result is exact up to the rounding of W' (LoRA, Sec. 4, "No
    Additional Inference Latency"). Leaves that were replaced cannot be recovered from `merged`.
    """
    for path, _ in named_leaves(adapters):
        require(path.endswith(lora.LEAVES), f"{path} was multiplied into its weight: load the base")
    restored = tree_map(lambda w: w, merged)
    for path in lora.adapted_paths(adapters):
        w = get(merged, path)["weight"]
        set_leaf(restored, f"{path}.weight", w - lora.delta(get(adapters, path), get(base, path)))
    return restored

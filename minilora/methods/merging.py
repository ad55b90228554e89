"""Merging of adapters for all methods that modify only weights and biases."""

from functools import reduce
from typing import Any

import numpy as np

from .. import lora, tree
from ..config import InputError
from ..layers import dense
from ..tree import Tree
from .operations import row_norms

UNMERGED = {  # nodes and leaves that are not part of a weight
    "prompt_embeddings": "a prompt or P-tuning", "prompt_encoder": "P-tuning",
    "prefix_k": "prefix tuning", "prefix_v": "prefix tuning", "bottleneck_down": "a bottleneck",
}  # fmt: skip
OWN = ("lora_magnitude_vector", "ia3_l")  # leaves that only this module merges


def merge(adapters: Tree, base: Tree, dtype: Any = np.float32) -> Tree:
    """Return a dense base that computes without adapters what `base` computes with `adapters`.

    Like `lora.merge`, also for DoRA, IA³ and stacked adapters; dtype: of the result. Raises
    InputError for methods that do not only modify weights (prompts, prefixes, bottlenecks), and if
    `base` is that of another adapter.
    """
    lora.check_base(adapters, base)
    leaves, frozen = tree.flatten(adapters), tree.flatten(base)
    for path in leaves:
        for name in set(path.split(".")) & UNMERGED.keys():
            raise InputError(f"{UNMERGED[name]} cannot be merged: keep it as an adapter ({path})")
    nodes = {path.rpartition(".")[0] for path in leaves if path.endswith(OWN)}
    nodes |= {path.partition(".lora_stack.")[0] for path in frozen if ".lora_stack." in path}
    plain = {path: w for path, w in leaves.items() if not path.endswith(OWN)}
    for node in nodes:
        trained, own = reduce(tree.subtree, node.split("."), adapters), tree.get(base, node)
        for name in lora.FACTORS:
            plain.pop(f"{node}.{name}", None)
        plain[f"{node}.weight"] = merged_weight(trained, own)
        if "bias" in own | trained and len(trained.get("ia3_l", ())) > 1:
            bias = tree.trained_or_frozen(trained, own, "bias")
            plain[f"{node}.bias"] = trained["ia3_l"][:, 0] * bias
    frozen = {path: w for path, w in frozen.items() if ".lora_stack." not in path}
    return lora.merge(tree.unflatten(plain), tree.unflatten(frozen), dtype)


@np.errstate(over="ignore", invalid="ignore")  # `lora.merge` names weights that are not finite
def merged_weight(trained, frozen):
    """Return the dense weight (out, in) of a projection, merged with its trained leaves."""
    w = dense(tree.trained_or_frozen(trained, frozen, "weight"))
    for below in tree.subtree(frozen, "lora_stack").values():
        w = w + lora.delta(below, below)
    if "lora_A" in trained:
        w = w + lora.delta(trained, frozen)
    if "lora_magnitude_vector" in trained:
        # W' = m∘(W₀ + (α/r)·BA)/‖W₀ + (α/r)·BA‖   (DoRA, Eq. 5)
        w = (trained["lora_magnitude_vector"] / row_norms(trained, frozen))[:, None] * w
    if "ia3_l" in trained:
        w = trained["ia3_l"] * w  # (out, 1): rows, (1, in): columns
    return w

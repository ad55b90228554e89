"""Methods that train leaves of the base: BitFit, the norms, the head, all weights.

Such a leaf is at its own path in the adapter, and replaces the leaf of the base.
"""

import numpy as np

from .. import lora
from ..config import ALL_LINEAR, InputError
from ..layers import dense
from ..model import lm_head
from ..tree import get, named_leaves, overlay, tree_map, unflatten
from .method import Method, projections


def also_train(adapters, base, groups):
    """Return `adapters` with copies of other leaves of the base, which are trained as well.

    groups: any of `norm` (all RMSNorms), `bias` (of adapted projections, or of all if none is) and
    `head` (the output matrix, untied from the embedding). `TrainConfig.also_train_lr_scale` scales
    their rate.
    """
    for group in groups:
        if group not in GROUPS:
            raise InputError(f"there is no group {group!r}: give a list of {', '.join(GROUPS)}")
    added = {
        path: np.array(dense(w), "f4")
        for group in groups
        for path, w in GROUPS[group](adapters, base)
    }
    # a resumed adapter has trained some already, and its leaves stay
    return overlay(overlay(adapters, unflatten(added)), adapters)


def norms(adapters, base):
    """Return [(path, weight)] of the norms."""
    return [(path, w) for path, w in named_leaves(base) if path.endswith("norm.weight")]


def biases(paths, base):
    """Yield (path, bias) of the projections at `paths`: that of the base, or zeros."""
    for path in paths:
        node = get(base, path)
        yield f"{path}.bias", node.get("bias", np.zeros(node["weight"].shape[0]))


GROUPS = {
    "norm": norms,
    "head": lambda adapters, base: [("lm_head.weight", lm_head(base))],
    "bias": lambda adapters, base: biases(
        lora.adapted_paths(adapters) or projections(base, ALL_LINEAR), base
    ),
}


def full(base, config, rng):
    """Copy all leaves of the base; raise InputError if one is quantized."""
    for path, w in named_leaves(base):
        if not isinstance(w, np.ndarray):
            raise InputError(
                f"{path} is not float32: set `scheme` to none and `compute_dtype` to float32, "
                "because full trains every weight"
            )
    return tree_map(np.array, base)


def training(group):
    """Return the `init` of the method that trains this group alone."""
    return lambda base, config, rng: also_train({}, base, [group])


BITFIT = Method("bitfit", training("bias"))  # Ben Zaken et al. 2022
NORM = Method("norm", training("norm"))
HEAD = Method("head", training("head"))
FULL = Method("full", full)

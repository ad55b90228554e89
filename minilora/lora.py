"""LoRA (Hu et al. 2021): W' = W₀ + (α/r)·BA, on chosen projections of a frozen model.

This file generalizes parts 3 and 7 of `lessons/00_qlora_in_one_file.py` to any choice of
projections, layers and ranks.

An adapter is a small tree. At the path of an adapted projection it has `lora_A` (r, in), `lora_B`
(out, r), the scaling α/r and the dropout probability. `layers.linear` reads them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import ALL_LINEAR, InputError, LoraConfig, matches, names_module
from .layers import ENTRIES, dense
from .model import first_unread, parameters
from .ops import Ops
from .tree import Tree, get, is_node, layer_of, named_leaves, set_leaf, unflatten

DENSE = ENTRIES | dict.fromkeys(ALL_LINEAR, ("weight", "bias"))  # the entries of a merged model


def init(base: Tree, lora_config: LoraConfig, rng: Any) -> Tree:
    """Create the factors of plain LoRA, which do not change the outputs yet.

    `minilora.get_peft_model` calls this function, and adds what DoRA, PiSSA and LoftQ need.
    rng: a NumPy generator or a seed. Raises InputError if a target matches no projection.
    """
    rng = np.random.default_rng(rng)
    adapters: Tree = {}
    for path in target_paths(base, lora_config):
        r, scaling = lora_config.rank_and_scaling(path)
        out_features, in_features = get(base, path)["weight"].shape
        bound = 1 / np.sqrt(in_features)
        # A ~ U(−1/√in, 1/√in), B = 0: BA = 0, but ∂L/∂B ≠ 0   (PEFT; Gaussian in LoRA, Sec. 4.1).
        # If A were zero as well, both gradients would be zero, and training would change nothing.
        node = {
            "lora_A": rng.uniform(-bound, bound, (r, in_features)).astype(np.float32),
            "lora_B": np.zeros((out_features, r), np.float32),
            "lora_scaling": scaling, "lora_dropout": lora_config.lora_dropout,
        }  # fmt: skip
        set_leaf(adapters, path, node)
    return adapters


def target_paths(base: Tree, lora_config: LoraConfig) -> list[str]:
    """Return the paths of the projections that `lora_config` adapts, in the order of the tree.

    As in PEFT, a name in a list matches the end of a path, and a string (except all-linear) is a
    regular expression that must match a whole path. Raises InputError if a target or an excluded
    name matches nothing, if a target matches other modules, or if a layer does not exist.

    >>> names = "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"
    >>> base = unflatten({f"model.layers.0.{name}.weight": np.ones((2, 2)) for name in names})
    >>> target_paths(base, LoraConfig(target_modules=("q_proj", "up_proj")))
    ['model.layers.0.self_attn.q_proj', 'model.layers.0.mlp.up_proj']
    """
    weights = tuple(f"{name}.weight" for name in ALL_LINEAR)
    inside = (path for path, _ in named_leaves(base) if layer_of(path) >= 0)
    paths = [path.removesuffix(".weight") for path in inside if path.endswith(weights)]
    targets = lora_config.target_modules
    is_regex = isinstance(targets, str)
    found = regex_targets(base, paths, targets) if is_regex else named_targets(paths, targets)
    found -= excluded_modules(base, lora_config.exclude_modules)
    depth = len(base["model"]["layers"])
    chosen = lora_config.layers_to_transform
    layers = tuple(range(depth)) if chosen is None else chosen
    for layer in layers:
        if not (0 <= layer < depth):
            raise InputError(
                f"`layers_to_transform` has {layer}: this model has layers 0 to {depth - 1}"
            )
    adapted = [path for path in paths if path in found and layer_of(path) in layers]
    if not adapted:
        raise InputError("the adapter has no targets: name a module and a layer, and exclude less")
    return adapted


def named_targets(paths: list[str], targets: Sequence[str]) -> set[str]:
    """Return the paths that a list of names selects; raise InputError if one selects nothing."""
    found = set[str]()
    for target in targets:
        every = target == "all-linear"
        matching = {path for path in paths if every or names_module(target, path)}
        if not matching:
            names = f"choose from {', '.join(ALL_LINEAR)} or all-linear"
            raise InputError(f"`target_modules` has {target}, which matches nothing here: {names}")
        found |= matching
    return found


def regex_targets(base: Tree, paths: list[str], regex: Any) -> set[str]:
    """Return the paths that a regular expression matches; raise InputError unless it fits."""
    found = {path for path in modules(base) if matches(regex, path)}
    what = f"target_modules {regex!r} is a regular expression, and matches"
    if found.isdisjoint(paths):
        way = f"give a list, such as [{regex!r}], or an expression such as '.*q_proj'"
        raise InputError(f"{what} no whole path of a projection: {way}")
    other = sorted(found.difference(paths))
    if other:
        raise InputError(f"{what} {other[0]}, too, which is not a projection: match only those")
    return found


def excluded_modules(base: Tree, names: str | Sequence[str] | None) -> set[str]:
    """Return the paths of all modules that exclude_modules names: a list, or one expression."""
    excluded = set[str]()
    matching = matches if isinstance(names, str) else names_module
    listed = [names] if isinstance(names, str) else names or ()
    for name in listed:
        found = {path for path in modules(base) if matching(name, path)}
        if not found:
            way = "give a list of names, or an expression for whole paths, such as '.*q_proj'"
            raise InputError(f"exclude_modules {name!r} matches nothing in this model: {way}")
        excluded |= found
    return excluded


def modules(base: Tree) -> set[str]:
    """Return the paths of the modules of a model, with the head also if it is tied."""
    found = {"lm_head"}
    for path, _ in named_leaves(base):
        # a base can hold adapters below `lora_stack` (methods/several.py): these are no modules
        names = path.partition(".lora_stack.")[0].split(".")
        found.update(".".join(names[:n]) for n in range(1, len(names)))
    return found


def adapted_paths(adapters: Tree) -> list[str]:
    """Return the paths of the projections that have low-rank factors."""
    paths = (path for path, _ in named_leaves(adapters))
    return [path.removesuffix(".lora_A") for path in paths if path.endswith(".lora_A")]


@np.errstate(over="ignore", invalid="ignore")  # the last check names the path
def merge(adapters: Tree, base: Tree, ops: Ops, dtype: Any = np.float32) -> Tree:
    """Return a dense base that computes without adapters what `base` computes with `adapters`.

    Quantized weights are dequantized. Quantizing the result again (`minilora.quantize`) would lose
    much of the update. dtype: of the result. Raises InputError, with the path, for an entry that is
    not part of a weight or a bias, and for a weight that is not finite.
    """
    merged = merge_projections(parameters(adapters, base, ops), ops)
    path = first_unread(merged, DENSE | {"layers": tuple(merged["model"]["layers"])})
    if path is not None:
        raise InputError(f"{path} cannot be merged: keep it as an adapter")
    # a head or an embedding can be stored in few bits, too
    leaves = {path: dense(leaf) for path, leaf in named_leaves(merged)}
    for path, leaf in leaves.items():
        if not np.isfinite(leaf.astype(dtype)).all():
            raise InputError(f"merging would make {path} not finite: merge an earlier checkpoint")
    return unflatten({path: leaf.astype(dtype) for path, leaf in leaves.items()})


def merge_projections(node: Tree, ops: Ops, name: str = "") -> Tree:
    """Return a tree in which each projection is merged with its adapter."""
    if name in ALL_LINEAR:
        return ops.merge_projection(node)
    return {
        key: merge_projections(value, ops, key) if is_node(value) else value
        for key, value in node.items()
    }

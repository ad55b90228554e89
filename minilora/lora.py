"""LoRA (Hu et al. 2021): W' = W₀ + (α/r)·BA, on chosen projections of a frozen model.

This file generalizes parts 3 and 7 of `lessons/00_qlora_in_one_file.py` to any choice of
projections, layers and ranks.

An adapter is a small tree. At the path of an adapted projection it has `lora_A` (r, in) and
`lora_B` (out, r). The scaling, the dropout probability and the rank, which are not trained, are in
the frozen tree next to the weight. `layers.linear` reads both trees.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .config import ALL_LINEAR, InputError, LoraConfig, matches, names_module, require
from .layers import dense
from .tree import Array, Tree, flatten, get, layer_of, named_leaves, set_leaf, tree_map, unflatten

FACTORS, SETTINGS = ("lora_A", "lora_B"), ("lora_scaling", "lora_dropout", "lora_r")
LEAVES = ("weight", "bias", *FACTORS)  # trained leaves of a projection that `layers.linear` reads


class AdaptedModel(NamedTuple):
    """A model with an adapter: the trained tree, and the frozen base with the scalings."""

    adapters: Tree
    base: Tree


def init(base: Tree, lora_config: LoraConfig, rng: Any) -> AdaptedModel:
    """Create an adapter that does not change the outputs yet: AdaptedModel(adapters, base).

    rng: a NumPy generator or a seed. The returned base has `lora_scaling`, `lora_dropout` and
    `lora_r` next to each adapted weight, and shares its arrays with `base`. Raises InputError if a
    target matches no projection, or if `base` has the scalings of another adapter.
    """
    check_unadapted(base)
    plain = lora_config.init_lora_weights is True and not lora_config.use_dora
    require(plain, "lora.init is plain LoRA only: use get_peft_model for DoRA, PiSSA and LoftQ")
    adapters: Tree = {}
    rng = np.random.default_rng(rng)
    base = tree_map(lambda w: w, base)  # a new tree with the same arrays
    for path in target_paths(base, lora_config):
        r, scaling = lora_config.rank_and_scaling(path)
        out_features, in_features = get(base, path)["weight"].shape
        bound = 1 / np.sqrt(in_features)
        # A ~ U(−1/√in, 1/√in), B = 0: BA = 0, but ∂L/∂B ≠ 0   (PEFT; Gaussian in LoRA, Sec. 4.1).
        # If A were zero as well, both gradients would be zero, and training would change nothing.
        A = rng.uniform(-bound, bound, (r, in_features)).astype(np.float32)
        set_leaf(adapters, f"{path}.lora_A", A)
        set_leaf(adapters, f"{path}.lora_B", np.zeros((out_features, r), np.float32))
        set_leaf(base, f"{path}.lora_scaling", scaling)
        set_leaf(base, f"{path}.lora_dropout", lora_config.lora_dropout)
        set_leaf(base, f"{path}.lora_r", r)
    return AdaptedModel(adapters, base)


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
    leaves = (path for path, _ in named_leaves(base) if layer_of(path) >= 0)
    paths = [p for p in (path.removesuffix(".weight") for path in leaves) if p.endswith(ALL_LINEAR)]
    targets = lora_config.target_modules
    is_regex = isinstance(targets, str)
    found = regex_targets(base, paths, targets) if is_regex else named_targets(paths, targets)
    found -= excluded_modules(base, lora_config.exclude_modules)
    depth, chosen = len(base["model"]["layers"]), lora_config.layers_to_transform
    layers = tuple(range(depth)) if chosen is None else chosen
    for layer in layers:
        inside = 0 <= layer < depth
        require(inside, f"--layers-to-transform {layer}: this model has layers 0 to {depth - 1}")
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
        names = f"choose from {', '.join(ALL_LINEAR)} or all-linear"
        require(matching, f"--target-modules {target} matches nothing in this model: {names}")
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
    for name in (names,) if isinstance(names, str) else names or ():
        matching = matches if isinstance(names, str) else names_module
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
        names = path.partition(".lora_stack.")[0].split(".")
        found.update(".".join(names[:n]) for n in range(1, len(names)))
    return found


def adapted_paths(adapters: Tree) -> list[str]:
    """Return the paths of the projections that have low-rank factors."""
    paths = (path for path, _ in named_leaves(adapters))
    return [path.removesuffix(".lora_A") for path in paths if path.endswith(".lora_A")]


def check_unadapted(base: Tree) -> None:
    """Raise InputError if `base` has the scalings of an adapter, except of stacked adapters."""
    for path, _ in named_leaves(base):
        if path.endswith(".lora_scaling") and ".lora_stack." not in path:
            node = path.removesuffix(".lora_scaling")
            what = f"the base has the scalings of another adapter ({node})"
            way = "use the base that `load` returned, or methods.compose.stack to keep both"
            raise InputError(f"{what}: {way}")


def check_base(adapters: Tree, base: Tree) -> None:
    """Raise InputError unless `base` has the scaling and the rank of each projection's factors."""
    frozen = flatten(base)
    advice = "use the base that get_peft_model or load_adapter returned with the adapter"
    for path, A in named_leaves(adapters):
        if not path.endswith(".lora_A"):
            continue
        node, rank = path.removesuffix(".lora_A"), A.shape[-2]
        if f"{node}.lora_scaling" not in frozen:
            raise InputError(f"the base has no lora_scaling for the adapter on {node}: {advice}")
        recorded = frozen.get(f"{node}.lora_r", rank)
        if rank != recorded:
            what = f"the adapter on {node} has rank {rank}, but its base is that of an adapter of"
            raise InputError(f"{what} rank {recorded}: {advice}")


def delta(trained: Tree, frozen: Tree) -> Array:
    """Compute ΔW = (α/r)·BA of one projection: (out, in) float32."""
    require(trained["lora_A"].ndim == 2, "per-row adapters cannot be merged: merge one adapter")
    return np.float32(frozen["lora_scaling"]) * (trained["lora_B"] @ trained["lora_A"])


@np.errstate(over="ignore", invalid="ignore")  # the last check names the path
def merge(adapters: Tree, base: Tree, dtype: Any = np.float32) -> Tree:
    """Return a dense base that computes without adapters what `base` computes with `adapters`.

    Quantized weights are dequantized. Quantizing the result again (`minilora.quantize`) would lose
    much of the update. Raises InputError, with the path, for a leaf of another method, for a weight
    that is not finite, and if `base` is that of another adapter (`check_base`).
    """
    weights = {path: w for path, w in named_leaves(base) if not path.endswith(SETTINGS)}
    trained = flatten(adapters)
    for path in weights | trained:
        # a trained weight needs a frozen one, except the head of a tied model; a bias may be new
        known = path in weights or path.rpartition(".")[2] in LEAVES[1:] or path == "lm_head.weight"
        plain = known and ".lora_stack." not in path  # a frozen second adapter: see methods
        require(plain, f"lora.merge does not know {path}: minilora.merge knows more methods")
    check_base(adapters, base)
    # a trained weight or bias replaces the frozen one; a bias may also be new
    replaced = {path: w for path, w in trained.items() if not path.endswith(FACTORS)}
    merged = {path: dense(w) for path, w in (weights | replaced).items()}
    for path in adapted_paths(adapters):
        # W' = W₀ + (α/r)·BA   (LoRA, Sec. 4)
        name = f"{path}.weight"
        merged[name] = merged[name] + delta(get(adapters, path), get(base, path))
    merged = {path: w.astype(dtype) for path, w in merged.items()}
    for path, w in merged.items():
        finite = np.isfinite(w).all()
        require(finite, f"merging would make {path} not finite: merge an earlier checkpoint")
    return unflatten(merged)

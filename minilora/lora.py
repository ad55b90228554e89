"""LoRA (Hu et al. 2021): W' = W₀ + (α/r)·BA, on chosen projections of a frozen model.

This file generalizes parts 3 and 7 of `lessons/00_qlora_in_one_file.py` to any choice of
projections, layers and ranks.

An adapter is a small tree. At the path of an adapted projection it has `lora_A` (r, in), `lora_B`
(out, r), the scaling α/r and the dropout probability. `layers.linear` reads them.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .config import (
    ALL_LINEAR,
    InputError,
    LoraConfig,
    Rule,
    check_setting,
    first_match,
    matches,
    names_module,
)
from .layers import dense, hooks_of, merge_lora
from .model import Model, Source, with_adapters
from .tree import Tree, flatten, get, is_node, layer_of, named_leaves, set_leaf, unflatten

FLOAT_TYPE = Rule("be a float type of NumPy", lambda dtype: np.dtype(dtype).kind == "f")


def init(base: Tree, lora_config: LoraConfig, rng: Any) -> Tree:
    """Create the factors of plain LoRA, which do not change the outputs yet.

    For DoRA, PiSSA and LoftQ, `minilora.get_peft_model` calls this function with the settings of
    plain LoRA, and adds what they need.
    rng: a NumPy generator or a seed. Raises InputError if a target matches no projection.
    """
    if lora_config.init_lora_weights is not True or lora_config.use_dora:
        raise InputError("lora.init is plain LoRA: use get_peft_model for DoRA, PiSSA and LoftQ")
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
            "lora_scaling": scaling,
            "lora_dropout": lora_config.lora_dropout,
        }
        set_leaf(adapters, path, node)
    return adapters


def adapted_paths(adapters: Tree) -> list[str]:
    """Return the paths of the projections that have low-rank factors."""
    paths = (path for path, _ in named_leaves(adapters))
    return [path.removesuffix(".lora_A") for path in paths if path.endswith(".lora_A")]


@np.errstate(over="ignore", invalid="ignore")  # no warnings: the last check raises, with the path
def merge(adapters: Tree, model: Model, dtype: Any = np.float32) -> Model:
    """Return a dense model that computes without adapters what `model` computes with `adapters`.

    In PEFT, this is `merge_and_unload`. Quantized weights are dequantized; quantizing the result
    again (`minilora.quantize`) can lose a part of the update. dtype: of the result; float16 is for
    saving only. A model with the `compute_dtype` bfloat16 rounds the operands of its products; the
    result does not. The source of the result is unknown, because no file has its weights. Raises
    InputError for a dtype that is not a float type and, with the path, for an entry that is not
    part of a weight or a bias (of prompts, prefixes, bottlenecks), and for a weight that is not
    finite.
    """
    check_setting("dtype", dtype, FLOAT_TYPE)
    leaves = flatten(merge_projections(with_adapters(adapters, model).base))
    nodes = set(modules(model.base))
    for path, leaf in leaves.items():
        node, _, name = path.rpartition(".")
        if name not in ("weight", "bias") or node not in nodes:
            raise InputError(f"{path} cannot be merged: keep it as an adapter")
        # a head or an embedding can be stored in 8 or 16 bits, too (quant/low_precision.py)
        leaves[path] = dense(leaf).astype(dtype)
        if not np.isfinite(leaves[path]).all():
            raise InputError(f"merging would make {path} not finite: merge an earlier checkpoint")
    return model._replace(base=unflatten(leaves), source=Source())


def merge_projections(node: Any, name: str = "") -> Any:
    """Return a tree in which each projection is merged with its adapters."""
    if name in ALL_LINEAR:
        return merge_projection(node)
    if not is_node(node):
        return node
    return {key: merge_projections(child, key) for key, child in node.items()}


def merge_projection(node: Tree) -> Tree:
    """Return the node of a projection with its adapters in the weight, dense."""
    merge = merge_lora
    for hook in hooks_of(node):
        if hook.merge:  # without it, its entries stay, and `merge` raises an error
            merge = partial(hook.merge, merge)
    return merge(node)


def target_paths(base: Tree, lora_config: LoraConfig) -> list[str]:
    """Return the paths of the projections that `lora_config` adapts, in the order of the tree.

    Raises InputError if a target or an excluded name matches nothing, if a target matches another
    module than a projection, or if a layer does not exist.

    >>> names = "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"
    >>> base = unflatten({f"model.layers.0.{name}.weight": np.ones((2, 2)) for name in names})
    >>> target_paths(base, LoraConfig(target_modules=("q_proj", "up_proj")))
    ['model.layers.0.self_attn.q_proj', 'model.layers.0.mlp.up_proj']
    """
    projections = [path for path in modules(base) if path.rpartition(".")[2] in ALL_LINEAR]
    found = selected("target_modules", lora_config.target_modules, base)
    others = sorted(found.difference(projections))
    if others:
        what = f"`target_modules` matches {others[0]}, which is not a projection"
        raise InputError(f"{what}: match only projections")
    if lora_config.exclude_modules:
        found -= selected("exclude_modules", lora_config.exclude_modules, base)
    chosen = lora_config.layers_to_transform
    depth = len(base["model"]["layers"])
    layers = range(depth) if chosen is None else np.atleast_1d(chosen)
    for layer in layers:
        if layer not in range(depth):
            what = f"`layers_to_transform` has {layer}"
            raise InputError(f"{what}: this model has layers 0 to {depth - 1}")
    adapted = [path for path in projections if path in found and layer_of(path) in layers]
    if not adapted:
        raise InputError("the adapter has no targets: name a module and a layer, and exclude less")
    return adapted


def check_patterns(base: Tree, lora_config: LoraConfig) -> None:
    """Raise InputError for an expression of `lora_config` that decides nothing.

    In a pattern, only the first expression that matches a projection counts.
    """
    paths = target_paths(base, lora_config)
    for setting in ("rank_pattern", "alpha_pattern"):
        every = getattr(lora_config, setting)
        deciding = {first_match(dict(zip(every, every)), path, None) for path in paths}
        for regex in every:
            if regex not in deciding:
                what = "matches no adapted projection, or only after another expression"
                raise InputError(f"`{setting}` has {regex!r}, which {what}: leave it out")
    not_excluded = target_paths(base, replace(lora_config, exclude_modules=None))
    if lora_config.exclude_modules and paths == not_excluded:
        raise InputError("`exclude_modules` has no effect, because no target matches: leave it out")
    if not isinstance(lora_config.target_modules, str):
        for name in lora_config.target_modules:
            if not any(names_module(name, path) for path in not_excluded):
                what = f"`target_modules` has {name!r}, which is in no layer of"
                raise InputError(f"{what} `layers_to_transform`: leave it out")


def selected(field: str, names: str | Sequence[str], base: Tree) -> set[str]:
    """Return the paths of the modules that a field of a LoraConfig names, as in PEFT.

    A string is a regular expression that must match a whole path. A name in a list matches the end
    of a path. Raises InputError for one that matches nothing.
    """
    paths = modules(base)
    found = set[str]()
    for name in [names] if isinstance(names, str) else names:
        fits = matches if isinstance(names, str) else names_module
        matching = {path for path in paths if fits(name, path)}
        if not matching:
            a_list = f"give a list of {', '.join(ALL_LINEAR)}"
            if field == "target_modules":
                a_list += ", or all-linear"
            advice = f"{a_list}, or an expression for whole paths, such as '.*q_proj'"
            raise InputError(f"`{field}` has {name!r}, which matches nothing here: {advice}")
        found |= matching
    return found


def modules(base: Tree) -> list[str]:
    """Return the paths of all nodes (PyTorch's modules), in the order of the tree.

    The head is one of them even if it is tied: an adapter may untie it.
    """
    found = dict[str, None]()
    for path, _ in named_leaves(base):
        names = path.split(".")
        found |= dict.fromkeys(".".join(names[:n]) for n in range(1, len(names)))
    return list(found | {"lm_head": None})

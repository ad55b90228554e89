"""LoRA (Hu et al. 2021): W' = W₀ + (α/r)·BA, on chosen projections of a frozen model.

Part 3 of `lessons/00_qlora_in_one_file.py`, made general: any choice of projections, layers and
ranks; part 7 for merging.

An adapter is a small tree next to the base's. At the path of an adapted projection it has `lora_A`
(r, in) and `lora_B` (out, r). What is fixed about it, its scaling and its dropout, is in the frozen
tree next to the weight. `layers.linear` reads both.
"""

from typing import Any

import numpy as np

from .config import ALL_LINEAR, LoraConfig, names_module, require
from .layers import dense
from .tree import Array, Tree, flatten, get, layer_of, named_leaves, set_leaf, tree_map, unflatten

FACTORS, FIXED = ("lora_A", "lora_B"), ("lora_scaling", "lora_dropout")
LEAVES = ("weight", "bias", *FACTORS)  # trained leaves of a projection that `layers.linear` reads


def init(base: Tree, config: LoraConfig, rng: np.random.Generator) -> tuple[Tree, Tree]:
    """Create an adapter that changes nothing yet.

    Returns (adapters, frozen): the tree to train, and the base with a `lora_scaling` and a
    `lora_dropout` next to each adapted weight. The weights are shared, not copied. Raises
    InputError if a target matches no projection of the base.
    """
    require(
        config.init_lora_weights is True and not config.use_dora,
        "lora.init is plain LoRA: use METHODS['dora'], or initializers.init for PiSSA and LoftQ",
    )
    adapters: Tree = {}
    frozen = tree_map(lambda w: w, base)
    for path in target_paths(base, config):
        r, scaling = config.rank_and_scaling(path)
        out_features, in_features = get(base, path)["weight"].shape
        bound = 1 / np.sqrt(in_features)
        # A ~ U(−1/√in, 1/√in), B = 0: BA = 0, but ∂L/∂B ≠ 0   (PEFT; Gaussian in LoRA, Sec. 4.1).
        # With both at zero, every gradient would be zero as well, and nothing would ever change.
        A = rng.uniform(-bound, bound, (r, in_features)).astype(np.float32)
        set_leaf(adapters, f"{path}.lora_A", A)
        set_leaf(adapters, f"{path}.lora_B", np.zeros((out_features, r), np.float32))
        set_leaf(frozen, f"{path}.lora_scaling", scaling)
        set_leaf(frozen, f"{path}.lora_dropout", config.lora_dropout)
    return adapters, frozen


def target_paths(base: Tree, config: LoraConfig) -> list[str]:
    """Return the paths of the projections that `config` adapts, in the order of the tree."""
    leaves = (path for path, _ in named_leaves(base) if layer_of(path) >= 0)
    paths = [p for p in (path.removesuffix(".weight") for path in leaves) if p.endswith(ALL_LINEAR)]
    names = ALL_LINEAR if "all-linear" in config.target_modules else config.target_modules
    for name in names:
        require(
            any(names_module(name, path) for path in paths),
            f"--target-modules {name} matches nothing in this model: choose from "
            f"{', '.join(ALL_LINEAR)} or all-linear",
        )
    depth, chosen = len(base["model"]["layers"]), config.layers_to_transform
    layers = tuple(range(depth)) if chosen is None else chosen
    require(names and len(layers), "the adapter has no target: give --target-modules a name")
    for layer in layers:
        inside = 0 <= layer < depth
        require(inside, f"--layers-to-transform {layer}: this model has layers 0 to {depth - 1}")
    paths = [path for path in paths if layer_of(path) in layers]
    return [path for path in paths if any(names_module(name, path) for name in names)]


def adapted_paths(adapters: Tree) -> list[str]:
    """Return the paths of the projections that have a low-rank update."""
    paths = (path for path, _ in named_leaves(adapters))
    return [path.removesuffix(".lora_A") for path in paths if path.endswith(".lora_A")]


def delta(trained: Tree, frozen: Tree) -> Array:
    """Compute ΔW = (α/r)·BA of one projection: (out, in), float32."""
    require(trained["lora_A"].ndim == 2, "adapters that differ from row to row cannot be merged")
    return np.float32(frozen["lora_scaling"]) * (trained["lora_B"] @ trained["lora_A"])


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def merge(adapters: Tree, base: Tree, dtype: Any = np.float32) -> Tree:
    """Return a dense tree that computes alone what `base` computes with `adapters`.

    Quantized weights are dequantized. Quantizing the result again would lose much of the update;
    that is a separate step, see `quantize`. Raises InputError, with the path, for a leaf that is
    not LoRA's and for a weight that is not finite.
    """
    weights = {path: w for path, w in named_leaves(base) if not path.endswith(FIXED)}
    trained = flatten(adapters)
    for path in weights | trained:
        known = path in weights or path.rpartition(".")[2] in LEAVES[1:] or path == "lm_head.weight"
        plain = known and ".lora_stack." not in path
        require(plain, f"lora.merge does not know {path}: see methods.merging")
    # trained leaves replace frozen ones, or are new
    replaced = {path: w for path, w in trained.items() if not path.endswith(FACTORS)}
    merged = {path: dense(w) for path, w in (weights | replaced).items()}
    for path in adapted_paths(adapters):
        # W' = W₀ + (α/r)·BA   (LoRA, Sec. 4)
        name = f"{path}.weight"
        merged[name] = merged[name] + delta(get(adapters, path), get(base, path))
    merged = {path: w.astype(dtype) for path, w in merged.items()}
    for path, w in merged.items():
        finite = np.isfinite(w).all()
        require(finite, f"merging would make {path} not finite: the adapter has diverged")
    return unflatten(merged)

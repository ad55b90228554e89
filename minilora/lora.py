"""LoRA (Hu et al. 2021): W' = W₀ + (α/r)·BA, on chosen projections of a frozen model.

Part 3 of `lessons/00_qlora_in_one_file.py`, made general: any choice of projections, layers and
ranks; part 7 for merging.

An adapter is a small tree beside the base's: at the path of an adapted projection stand `lora_A`
(r, in) and `lora_B` (out, r). What is fixed about it, its scaling and its dropout, stands in the
frozen tree next to the weight, where `nn.linear` reads both.
"""

from functools import reduce

import numpy as np

from .config import ALL_LINEAR, InputError, names_module, require
from .methods.siblings import row_norms
from .products import dense
from .tree import child, flatten, get, leaf, put, tree_map, unflatten, walk


def init(base, config, rng):
    """A fresh adapter that changes nothing yet.

    Returns (adapters, frozen): the tree to train, and the base with a `lora_scaling` and a
    `lora_dropout` beside each adapted weight (the weights themselves are shared, not copied).
    Raises InputError when a target matches no projection of the base.
    """
    adapters: dict = {}
    frozen = tree_map(lambda w: w, base)
    require(
        config.init_lora_weights is True,
        f"init_lora_weights {config.init_lora_weights!r} changes the base, too: see starts.init",
    )
    for path in targets(base, config):
        r, scaling = config.at(path)
        out_features, in_features = get(base, path)["weight"].shape
        bound = 1 / np.sqrt(in_features)
        # A ~ U(−1/√in, 1/√in), B = 0: so BA = 0, and yet ∂L/∂B ≠ 0   (PEFT; LoRA, Sec. 4.1, has
        # a Gaussian A). With both at zero each gradient is zero too, and nothing ever moves.
        put(adapters, f"{path}.lora_A", rng.uniform(-bound, bound, (r, in_features)).astype("f4"))
        put(adapters, f"{path}.lora_B", np.zeros((out_features, r), "f4"))
        put(frozen, f"{path}.lora_scaling", scaling)
        put(frozen, f"{path}.lora_dropout", config.lora_dropout)
        if config.use_dora:
            require("lora_stack" not in get(base, path), "DoRA cannot stand upon another adapter")
            norms = row_norms(get(adapters, path), get(frozen, path))  # m = ‖W₀‖: DoRA, Sec. 4.1
            put(adapters, f"{path}.lora_magnitude_vector", norms)
    return adapters, frozen


def targets(base, config):
    """Paths of the projections that `config` adapts, in the order of the tree."""
    paths = [path.removesuffix(".weight") for path, _ in walk(base["model"]["layers"])]
    paths = [f"model.layers.{p}" for p in paths if p.endswith(ALL_LINEAR)]
    names = ALL_LINEAR if "all-linear" in config.target_modules else config.target_modules
    for name in names:
        require(
            any(names_module(name, path) for path in paths),
            f"--target-modules {name} matches nothing in this model: choose from "
            f"{', '.join(ALL_LINEAR)} or all-linear",
        )
    paths = [path for path in paths if any(names_module(name, path) for name in names)]
    layers = config.layers_to_transform
    require(names and layers != (), "the adapter has no target: give --target-modules a name")
    if layers is None:
        return paths
    depth = len(base["model"]["layers"])
    for layer in config.layers_to_transform:
        require(
            0 <= layer < depth,
            f"--layers-to-transform {layer}: this model has layers 0 to {depth - 1}",
        )
    return [path for path in paths if int(path.split(".")[2]) in config.layers_to_transform]


# Leaves that merging turns into another weight, and those that no weight can stand for.
MERGED = ("lora_A", "lora_B", "lora_magnitude_vector", "ia3_l")
UNMERGED = {
    "prompt_embeddings": "a prompt or P-tuning", "prompt_encoder": "P-tuning",
    "prefix_k": "prefix tuning", "prefix_v": "prefix tuning", "bottleneck_down": "a bottleneck",
}  # fmt: skip


def delta(trained, frozen):
    """ΔW = (α/r)·BA: (out, in), float32."""
    require(trained["lora_A"].ndim == 2, "adapters that differ from row to row cannot be merged")
    return np.float32(frozen["lora_scaling"]) * (trained["lora_B"] @ trained["lora_A"])


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def merge(adapters, base, dtype=np.float32):
    """A new dense tree that computes what `base` with `adapters` computes.

    Quantized weights are dequantized: merging *into* 4 bits would round the update away (see
    `quantize` for that separate step). Replaced and added leaves move in as they are. Raises
    InputError, naming the weight, when the result is not finite, and naming the method when it
    does more than change weights.
    """
    merged = {}
    trained = flatten(adapters)
    for path in trained:
        for name in set(path.split(".")) & set(UNMERGED):
            raise InputError(f"{UNMERGED[name]} cannot be merged: {path} is part of no weight")
    for path, w in walk(base):
        if path.endswith(("lora_scaling", "lora_dropout")) or ".lora_stack." in path:
            continue
        merged[path] = _finite(path, _merged(path, w, adapters, base).astype(dtype))
    added = {p: w for p, w in trained.items() if not p.endswith(MERGED)}
    return unflatten({**{p: _finite(p, w.astype(dtype)) for p, w in added.items()}, **merged})


def _merged(path, w, adapters, base):
    """The leaf at `path`, w in the base, dense, with what is trained there and beside it."""
    node, _, name = path.rpartition(".")
    trained, frozen = reduce(child, node.split("."), adapters), get(base, node)
    if name == "weight":
        return merged_weight(trained, frozen)
    w = dense(trained.get(name, w))
    return trained["ia3_l"][:, 0] * w if name == "bias" and len(trained.get("ia3_l", ())) > 1 else w


def merged_weight(trained, frozen):
    """The weight (out, in), dense, of a projection with what stands beside its own.

    Leaves as in `nn.linear`, which computes with them what this weight computes without.
    """
    w = dense(leaf(trained, frozen, "weight"))
    # W' = W₀ + (α/r)·BA   (LoRA, Sec. 4), upon the adapters that are frozen below it
    for under in frozen.get("lora_stack", {}).values():
        w = w + delta(under, under)
    if "lora_A" in trained:
        w = w + delta(trained, frozen)
    if "lora_magnitude_vector" in trained:
        # W' = m∘(W₀ + (α/r)·BA)/‖W₀ + (α/r)·BA‖   (DoRA, Eq. 5)
        w = (trained["lora_magnitude_vector"] / row_norms(trained, frozen))[:, None] * w
    if "ia3_l" in trained:
        w = trained["ia3_l"] * w  # (out, 1): rows, (1, in): columns
    return w


def unmerge(adapters, base, merged):
    """The weights before merging: W₀ = W' − (α/r)·BA, for the projections that have an adapter.

    `base` gives the scalings. Exact up to the rounding of W' (LoRA, Sec. 4, "No Additional
    Inference Latency"); replaced leaves cannot be had back from `merged` alone.
    """
    for path, _ in walk(adapters):
        require(not path.endswith(MERGED[2:]), f"{path} was multiplied in: take the base instead")
    restored = tree_map(lambda w: w, merged)
    for path in adapted(adapters):
        w = get(merged, path)["weight"]
        put(restored, f"{path}.weight", w - delta(get(adapters, path), get(base, path)))
    return restored


def adapted(adapters):
    """Paths of the projections that carry a low-rank update."""
    return [path.removesuffix(".lora_A") for path, _ in walk(adapters) if path.endswith(".lora_A")]


def _finite(path, w):
    if not np.isfinite(w).all():
        raise InputError(f"merging would make {path} not finite: the adapter has diverged")
    return w


def also_train(adapters, base, groups):
    """`adapters` with further leaves of the base beside the low-rank updates.

    groups: any of `norm` (the gains of every RMSNorm), `bias` (a new bias, zero, on every adapted
    projection, or the base's own where it has one), `head` (a copy of the output matrix, untied
    from the embedding). They learn at `TrainConfig.also_train_lr_scale` times the rate.
    """
    adapters, trained = tree_map(lambda w: w, adapters), flatten(adapters)
    for group in groups:
        for path, w in _GROUPS[group](adapters, base):
            if path not in trained:  # else the adapter started from has trained it already
                put(adapters, path, np.array(dense(w), "f4"))
    return adapters


def _norms(adapters, base):
    return [(path, w) for path, w in walk(base) if path.endswith("norm.weight")]


def _biases(adapters, base):
    return biases(adapted(adapters), base)


def biases(paths, base):
    """(path, bias) of the projections at `paths`: the base's own, or zeros."""
    nodes = {path: get(base, path) for path in paths}
    return [
        (f"{path}.bias", node["bias"] if "bias" in node else np.zeros(node["weight"].shape[0]))
        for path, node in nodes.items()
    ]


def _head(adapters, base):
    tied = base["model"]["embed_tokens"]["weight"]
    return [("lm_head.weight", child(base, "lm_head").get("weight", tied))]


_GROUPS = {"norm": _norms, "bias": _biases, "head": _head}
ALSO_TRAIN = tuple(_GROUPS)

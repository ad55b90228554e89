"""The methods: the parameters that each trains in addition to, or instead of, the frozen ones.

A method is defined by the parameters it adds, their initialization, and the line that uses them:

| method | leaves | read in |
|---|---|---|
| lora | `lora_A`, `lora_B` | `layers.linear` |
| bitfit, norm, head, full | `bias`, `weight`, instead of the base's | `tree.trained_or_frozen` |
| dora, ia3 | `lora_magnitude_vector`, `ia3_l` | `MethodOps.linear` |
| bottleneck | `bottleneck_down`, `bottleneck_up` and their biases | `MethodOps.linear` |
| prompt, p-tuning | `prompt_embeddings`, `prompt_encoder` | `MethodOps.embed` |
| prefix | `prefix_k`, `prefix_v` | `MethodOps.self_attention` |

Each function of METHODS is init(base, adapter_config, rng) -> (adapters, base), like `lora.init`,
with a LoraConfig for lora and dora and a MethodConfig for the others. A new adapter does not change
the outputs, except those of prompt, p-tuning and prefix, because tokens see the virtual tokens.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import lora
from ..config import (
    ALL_LINEAR,
    INITIALIZERS,
    POSITIVE_INT,
    LoraConfig,
    check_number,
    flag,
    require,
)
from ..layers import dense
from ..tree import Tree, flatten, get, named_leaves, set_leaf, subtree, tree_map, unflatten
from . import initializers
from .operations import row_norms


@dataclass(frozen=True)
class MethodConfig:
    """The settings of a method other than LoRA: its name in METHODS, and its size."""

    method: str
    num_virtual_tokens: int = 16  # of prompt, p-tuning and prefix
    bottleneck_size: int = 8

    def __post_init__(self):
        for name in ("num_virtual_tokens", "bottleneck_size"):
            check_number(flag(name), getattr(self, name), POSITIVE_INT)


EVERY_LINEAR = LoraConfig(target_modules=ALL_LINEAR)


def low_rank(base, adapter_config, rng):
    """Create an adapter of LoRA, or of DoRA with `use_dora`."""
    return (dora if adapter_config.use_dora else lora.init)(base, adapter_config, rng)


def dora(base, adapter_config, rng):
    """Create an adapter of DoRA: LoRA's factors and m, the norms of W₀'s rows (Liu et al. 2024)."""
    adapters, base = lora.init(base, replace(adapter_config, use_dora=False), rng)
    for path in lora.adapted_paths(adapters):
        node = get(base, path)
        require(
            "lora_stack" not in node,
            "DoRA cannot be trained on a stacked adapter: merge that adapter first",
        )
        norms = row_norms(get(adapters, path), node)  # m = ‖W₀‖   (DoRA, Sec. 4.1)
        set_leaf(adapters, f"{path}.lora_magnitude_vector", norms)
    return lora.AdaptedModel(adapters, base)


def full(base, adapter_config, rng):
    """Copy all leaves of the base; raise InputError if one is quantized."""
    advice = "use --quantize none, because --method full trains every weight"
    for path, w in named_leaves(base):
        require(isinstance(w, np.ndarray), f"{path} is quantized: {advice}")
    return unflatten({path: np.array(w) for path, w in named_leaves(base)}), base


def bitfit(base, adapter_config, rng):
    """Create a bias per projection (BitFit, Ben Zaken et al. 2022), zero or that of the base."""
    paths = lora.target_paths(base, EVERY_LINEAR)
    return unflatten({path: np.array(b, "f4") for path, b in biases(paths, base)}), base


def ia3(base, adapter_config, rng):
    """Create scales of keys, values and hidden units, all one (IA³, Liu et al. 2022)."""
    adapters: dict = {}
    for path in lora.target_paths(base, EVERY_LINEAR):
        out_features, in_features = get(base, path)["weight"].shape
        if path.endswith(("k_proj", "v_proj")):
            set_leaf(adapters, f"{path}.ia3_l", np.ones((out_features, 1), "f4"))
        elif path.endswith("down_proj"):
            set_leaf(adapters, f"{path}.ia3_l", np.ones((1, in_features), "f4"))
    return adapters, base


def bottleneck(base, adapter_config, rng):
    """Create a bottleneck after o_proj and down_proj, its up matrix zero (Houlsby et al. 2019)."""
    adapters: dict = {}
    m = adapter_config.bottleneck_size
    for path in lora.target_paths(base, LoraConfig(target_modules=("o_proj", "down_proj"))):
        D = get(base, path)["weight"].shape[0]
        set_leaf(adapters, f"{path}.bottleneck_down", _uniform(rng, (m, D), D))
        set_leaf(adapters, f"{path}.bottleneck_down_bias", np.zeros(m, "f4"))
        set_leaf(adapters, f"{path}.bottleneck_up", np.zeros((D, m), "f4"))
        set_leaf(adapters, f"{path}.bottleneck_up_bias", np.zeros(D, "f4"))
    return adapters, base


def prompt(base, adapter_config, rng):
    """Create virtual tokens from random rows of the embedding (Lester et al. 2021)."""
    embedding, n = base["model"]["embed_tokens"]["weight"], adapter_config.num_virtual_tokens
    rows = rng.choice(embedding.shape[0], n, replace=n > embedding.shape[0])
    return unflatten({"model.prompt_embeddings": np.array(embedding[rows], "f4")}), base


def p_tuning(base, adapter_config, rng):
    """Create virtual tokens N(0, 1) and an MLP of U(−1/√D, 1/√D) for them (Liu et al. 2021)."""
    adapters: dict = {}
    node, D = "model.prompt_encoder", base["model"]["embed_tokens"]["weight"].shape[1]
    embedding = rng.standard_normal((adapter_config.num_virtual_tokens, D), "f4")
    set_leaf(adapters, f"{node}.embedding.weight", embedding)
    for layer in ("0", "2", "4"):
        set_leaf(adapters, f"{node}.mlp_head.{layer}.weight", _uniform(rng, (D, D), D))
        set_leaf(adapters, f"{node}.mlp_head.{layer}.bias", _uniform(rng, (D,), D))
    return adapters, base


def prefix(base, adapter_config, rng):
    """Create keys and values N(0, 1) of virtual tokens for each layer (Li and Liang 2021)."""
    adapters: dict = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=("k_proj",))):
        shape = adapter_config.num_virtual_tokens, get(base, path)["weight"].shape[0]
        node = path.removesuffix(".k_proj")
        for name in ("prefix_k", "prefix_v"):
            set_leaf(adapters, f"{node}.{name}", rng.standard_normal(shape, "f4"))
    return adapters, base


def _uniform(rng, shape, in_features):
    bound = 1 / np.sqrt(in_features)
    return rng.uniform(-bound, bound, shape).astype("f4")


def also_train(adapters, base, groups):
    """Return `adapters` with copies of other leaves of the base, which are trained as well.

    groups: any of `norm` (all RMSNorms), `bias` (of adapted projections) and `head` (the output
    matrix, untied from the embedding). `TrainConfig.also_train_lr_scale` scales their rate.
    """
    adapters, trained = tree_map(lambda w: w, adapters), flatten(adapters)
    for group in groups:
        for path, w in GROUPS[group](adapters, base):
            if path not in trained:  # a resumed adapter has trained it already
                set_leaf(adapters, path, np.array(dense(w), "f4"))
    return adapters


def norms(adapters, base):
    """Return [(path, weight)] of the norms."""
    return [(path, w) for path, w in named_leaves(base) if path.endswith("norm.weight")]


def biases(paths, base):
    """Yield (path, bias) of the projections at `paths`: that of the base, or zeros."""
    for path in paths:
        node = get(base, path)
        yield f"{path}.bias", node.get("bias", np.zeros(node["weight"].shape[0]))


def output_matrix(adapters, base):
    """Return [(path, output matrix)], which is the embedding if they are tied."""
    tied = base["model"]["embed_tokens"]["weight"]
    return [("lm_head.weight", subtree(base, "lm_head").get("weight", tied))]


GROUPS = {
    "norm": norms, "head": output_matrix,
    "bias": lambda adapters, base: biases(lora.adapted_paths(adapters), base),
}  # fmt: skip

METHODS = {
    "lora": low_rank, "dora": dora, "ia3": ia3, "bitfit": bitfit,
    "norm": lambda base, adapter_config, rng: (also_train({}, base, ["norm"]), base),
    "head": lambda base, adapter_config, rng: (also_train({}, base, ["head"]), base),
    "bottleneck": bottleneck, "prompt": prompt, "p-tuning": p_tuning, "prefix": prefix,
    "full": full,
}  # fmt: skip


def get_peft_model(
    base: Tree, adapter_config: LoraConfig | MethodConfig, rng: Any = 0, scheme: str = "none",
    block_size: int = 64,
) -> lora.AdaptedModel:  # fmt: skip
    """Create an adapter of any method: AdaptedModel(adapters, base).

    base: dense or quantized. It is not modified; the returned base shares its arrays.
    adapter_config: a LoraConfig or a MethodConfig. rng: a NumPy generator or a seed.
    scheme, block_size: see `minilora.quantize`; only for PiSSA and LoftQ, which need a dense base.
    Raises InputError if a target matches nothing, if the base must be dense, or if it has the
    scalings of another adapter.
    """
    lora.check_unadapted(base)
    rng = np.random.default_rng(rng)
    if isinstance(adapter_config, MethodConfig):
        return lora.AdaptedModel(*METHODS[adapter_config.method](base, adapter_config, rng))
    if adapter_config.init_lora_weights in INITIALIZERS:
        return initializers.init(base, adapter_config, rng, scheme, block_size)
    return low_rank(base, adapter_config, rng)

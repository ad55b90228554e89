"""Prefix tuning (Li and Liang 2021): trained keys and values before those of the tokens.

`layers.with_prefix` uses them.
"""

import autograd.numpy as np

from ..layers import PREFIX
from ..tree import get, set_leaf, unflatten
from .method import Method, projections
from .prompt import PROMPT


def init(base, config, rng):
    """Create keys and values N(0, 1) of virtual tokens for each layer, (n, K·hd) each."""
    adapters: dict = {}
    for path, (width, _) in projections(base, ("k_proj",)).items():
        node = path.removesuffix(".k_proj")
        shape = config.num_virtual_tokens, width
        for name in PREFIX:
            set_leaf(adapters, f"{node}.{name}", rng.standard_normal(shape, "f4"))
    return adapters


def paths(tree):
    """Return the paths of the keys and values, from the first layer to the last."""
    layers = range(len(tree["model"]["layers"]))
    return [f"model.layers.{i}.self_attn.{name}" for i in layers for name in PREFIX]


def pack(adapters):
    """Return the tensor of PEFT's file, (n, L·2·K·hd): keys and values of each layer."""
    return {PROMPT: np.concatenate([get(adapters, path) for path in paths(adapters)], axis=1)}


def unpack(tensors, base, config):
    """Return the adapter in the tensors of a file."""
    parts = np.split(tensors[PROMPT], len(paths(base)), axis=1)
    return unflatten(dict(zip(paths(base), parts)))


METHOD = Method(
    "prefix",
    init,
    size="num_virtual_tokens",
    pack=pack,
    unpack=unpack,
    peft_fields={"peft_type": "PREFIX_TUNING", "num_transformer_submodules": 1},
    free_fields=("num_attention_heads", "encoder_hidden_size", "prefix_projection", "init_weights"),
)

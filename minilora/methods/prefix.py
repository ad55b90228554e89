"""Prefix tuning (Li and Liang 2021): trained keys and values before those of the tokens."""

import autograd.numpy as np

from ..layers import LayerCache
from ..tree import get, set_leaf, unflatten
from .method import Method, projections
from .prompt import PROMPT, SHAPE

NAMES = ("prefix_k", "prefix_v")


def init(base, config, rng):
    """Create keys and values N(0, 1) of virtual tokens for each layer, (n, K·hd) each."""
    adapters: dict = {}
    for path, (width, _) in projections(base, ("k_proj",)).items():
        node = path.removesuffix(".k_proj")
        shape = config.num_virtual_tokens, width
        for name in NAMES:
            set_leaf(adapters, f"{node}.{name}", rng.standard_normal(shape, "f4"))
    return adapters


def embed(embed, tokens, node, ctx):
    """Look up token ids, whose positions begin after the prefix."""
    x, positions, starts = embed(tokens, node, ctx)
    if not (ctx.cache and ctx.cache.length):  # a cache counts the prefix, too
        positions = positions + len(node["layers"]["0"]["self_attn"]["prefix_k"])
    return x, positions, starts


def self_attention(self_attention, x, node, ctx):
    """Apply the attention sublayer; the prefix comes first in the cache of its keys and values."""
    cache = ctx.cache or LayerCache()
    if not cache.length:
        # [P_k; K] and [P_v; V]   (Li and Liang 2021, Sec. 4.2); P_k is not rotated
        shape = (1, -1, ctx.config.num_key_value_heads, ctx.config.head_dim)
        cache.extend(*(np.repeat(np.reshape(node[n], shape), len(x), axis=0) for n in NAMES))
    return self_attention(x, node, ctx._replace(cache=cache))


def paths(tree):
    """Return the paths of the keys and values, from the first layer to the last."""
    layers = range(len(tree["model"]["layers"]))
    return [f"model.layers.{i}.self_attn.{name}" for i in layers for name in NAMES]


def pack(adapters):
    """Return the tensor of PEFT's file, (n, L·2·K·hd): keys and values of each layer."""
    return {PROMPT: np.concatenate([get(adapters, path) for path in paths(adapters)], axis=1)}


def unpack(tensors, base, config):
    """Return the adapter in the tensors of a file."""
    parts = np.split(tensors[PROMPT], len(paths(base)), axis=1)
    return unflatten(dict(zip(paths(base), parts)))


METHOD = Method(
    "prefix", init,
    entries={"self_attn": NAMES}, wraps=(embed, self_attention),
    size="num_virtual_tokens", pack=pack, unpack=unpack,
    peft_fields={"peft_type": "PREFIX_TUNING", "num_transformer_submodules": 1},
    free_fields=(*SHAPE, "encoder_hidden_size", "prefix_projection", "init_weights"),
)  # fmt: skip

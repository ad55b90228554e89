"""Prefix tuning (Li and Liang 2021): trained keys and values before those of the tokens."""

import autograd.numpy as np

from .. import lora
from ..config import LoraConfig
from ..layers import LayerCache
from ..tree import get, set_leaf, unflatten
from .method import Method
from .prompt import PROMPT, SHAPE, VIRTUAL

NAMES = ("prefix_k", "prefix_v")


def init(base, config, rng):
    """Create keys and values N(0, 1) of virtual tokens for each layer, (n, K·hd) each."""
    adapters: dict = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=("k_proj",))):
        shape = config.num_virtual_tokens, get(base, path)["weight"].shape[0]
        node = path.removesuffix(".k_proj")
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
    """Apply the attention sublayer, with the prefix before the other keys."""
    if ctx.cache is None or ctx.cache.length == 0:
        ctx = ctx._replace(cache=Prefix(node["prefix_k"], node["prefix_v"], ctx.cache))
    return self_attention(x, node, ctx)


class Prefix(LayerCache):
    """Trained keys and values (n, K·hd), not rotated, that come before those of all tokens."""

    def __init__(self, k, v, cache=None):
        self.k = k
        self.v = v
        self.cache = cache
        self.length = 0

    def extend(self, k, v, window=None):
        """Put the prefix before k and v (B, T, K, hd); return both as (B, n + T, K, hd)."""
        # [P_k; K] and [P_v; V]   (Li and Liang 2021, Sec. 4.2)
        shape = (1, -1, *k.shape[2:])
        rows = len(k)
        p_k, p_v = (np.repeat(np.reshape(p, shape), rows, axis=0) for p in (self.k, self.v))
        k, v = np.concatenate([p_k, k], axis=1), np.concatenate([p_v, v], axis=1)
        return (k, v) if self.cache is None else self.cache.extend(k, v, window)


def paths(tree):
    """Return the paths of the keys and values, from the first layer to the last."""
    layers = range(len(tree["model"]["layers"]))
    return [f"model.layers.{i}.self_attn.{name}" for i in layers for name in NAMES]


def pack(adapters):
    """Return the tensor of PEFT's file, (n, L·2·K·hd): keys and values of each layer."""
    return {PROMPT: np.concatenate([get(adapters, path) for path in paths(adapters)], axis=1)}


def unpack(tensors, base):
    """Return the adapter in the tensors of a file."""
    parts = np.split(tensors[PROMPT], len(paths(base)), axis=1)
    return unflatten(dict(zip(paths(base), map(np.ascontiguousarray, parts))))


METHOD = Method(
    "prefix", init,
    entries={"self_attn": NAMES}, wraps={"embed": embed, "self_attention": self_attention},
    size="num_virtual_tokens", pack=pack, unpack=unpack,
    peft_fields=VIRTUAL | {"peft_type": "PREFIX_TUNING"},
    free_fields=SHAPE | {
        "encoder_hidden_size": None, "prefix_projection": False, "init_weights": None,
    },
)  # fmt: skip

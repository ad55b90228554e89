"""A Llama-type decoder as a function of two trees: what is trained, and what is frozen.

Part 4 of `lessons/00_qlora_in_one_file.py`, made general: any Llama, with a cache, packing, and a
choice of `ops`.

    loss(adapters, base, batch, config) -> scalar

The gradient is taken with respect to argument 0. That is the whole freeze: `base` is argument 1.
A leaf of `adapters` stands at the path of the weight that it adapts or replaces.

`ops` is `nn`, the text to read, or `fused`, the same functions made fast.
"""

import os
from contextlib import contextmanager
from functools import partial

import autograd.numpy as np
from autograd.tracer import isbox

from . import nn
from .config import ALL_LINEAR
from .kernels import fused
from .kernels.tape import opened, recomputed
from .methods import siblings
from .products import matmul
from .tree import child, leaf

OPS = nn if os.environ.get("MINILORA_PLAIN") else fused  # where a caller does not choose


@contextmanager
def operations(ops):
    """Use `ops`, nn or fused, inside the block wherever a caller does not choose."""
    global OPS
    before, OPS = OPS, ops
    try:
        yield
    finally:
        OPS = before


def loss(adapters, base, batch, config, ops=None, rng=None, checkpointing=False):
    """Mean cross-entropy over the target tokens of a batch, in nats.

    batch: `tokens`, `targets`, `mask` and `starts`, each (B, T); see `batching.collate`.
    """
    ops, adapters = ops or OPS, opened(adapters)
    x = hidden(adapters, base, batch["tokens"], batch["starts"], config, ops, rng, checkpointing)
    return ops.cross_entropy(x, head(adapters, base), batch["targets"], batch["mask"])


def forward(adapters, base, tokens, config, ops=None):
    """Logits (B, T, V) for tokens (B, T)."""
    ops = ops or OPS
    x = hidden(adapters, base, tokens, np.zeros_like(tokens), config, ops)
    weight = head(adapters, base)
    return matmul(x, weight) if isbox(weight) else ops.product(x, weight)


def hidden(
    adapters, base, tokens, starts, config, ops=None, rng=None, checkpointing=False, cache=None
):
    """The normed state above the last block: (B, T, D).

    `starts` (B, T) says where each token's example begins (0 unless packed). With a `cache`, the
    tokens continue those that it holds. `rng`, NumPy's or a `nn.RowRng`, turns dropout on. A
    trained prompt or prefix takes the first positions; its own states are not returned.
    """
    ops, rng = ops or OPS, nn.row_rng(rng, len(tokens))
    trained, frozen = child(adapters, "model"), base["model"]
    layers = child(trained, "layers")
    past = 0 if cache is None else cache.length
    x = leaf(child(trained, "embed_tokens"), frozen["embed_tokens"], "weight")[tokens]
    prompt = None if past else siblings.prompt(trained)
    n = 0
    if prompt is not None:
        n = prompt.shape[0]
        # [P; E(x)]   (Lester et al. 2021, Sec. 2)
        x = np.concatenate([np.repeat(prompt[None], len(tokens), axis=0), x], axis=1)
        starts = np.pad(starts, ((0, 0), (n, 0)))  # other than 0 only for padding: not packed
    first = past or prefix_length(layers)
    angles = nn.rotation(first + np.arange(x.shape[1]) - starts, config, x.dtype)

    def run(i, trained, x):
        layer_rng = None if rng is None else rng.child(i)
        layer_cache = None if cache is None else cache.layer(i)
        attend = partial(ops.attention, angles=angles, starts=starts, cache=layer_cache)
        return block(trained, frozen["layers"][str(i)], x, attend, config, ops, layer_rng)

    for i in range(config.num_hidden_layers):
        step, node = partial(run, i), child(layers, str(i))
        x = recomputed(step, node, x) if checkpointing else step(node, x)
    if cache is not None:
        cache.length = first + x.shape[1]
    norm = leaf(child(trained, "norm"), frozen["norm"], "weight")
    return ops.rms_norm(x[:, n:] if n else x, norm, config.rms_norm_eps)


def virtual_tokens(adapters):
    """How many positions a trained prompt or prefix takes before the tokens."""
    trained = child(adapters, "model")
    prompt = siblings.prompt(trained)
    return (0 if prompt is None else len(prompt)) + prefix_length(child(trained, "layers"))


def prefix_length(layers):
    """How many keys stand before the first token's, in every layer alike."""
    prefix = prefix_of(child(child(layers, "0"), "self_attn"))
    return 0 if prefix is None else prefix[0].shape[0]


def prefix_of(trained):
    """(prefix_k, prefix_v), each (n, K·hd), of a layer's `self_attn` node, or None."""
    return (trained["prefix_k"], trained["prefix_v"]) if "prefix_k" in trained else None


def block(trained, frozen, x, attend, config, ops, rng=None):
    """One decoder layer: x (B, T, D) plus what attention and the feed-forward layer add to it."""

    def norm(x, name):
        weight = leaf(child(trained, name), frozen[name], "weight")
        return ops.rms_norm(x, weight, config.rms_norm_eps)

    def at(part, name):
        own_rng = None if rng is None else rng.child(ALL_LINEAR.index(name))
        return child(child(trained, part), name), frozen[part][name], own_rng

    h = norm(x, "input_layernorm")
    q, k, v = (ops.linear(h, *at("self_attn", name)) for name in ("q_proj", "k_proj", "v_proj"))
    mixed = attend(q, k, v, prefix=prefix_of(child(trained, "self_attn")))
    x = x + ops.linear(mixed, *at("self_attn", "o_proj"))

    h = norm(x, "post_attention_layernorm")
    gate, up = (ops.linear(h, *at("mlp", name)) for name in ("gate_proj", "up_proj"))
    return x + ops.down(gate, up, *at("mlp", "down_proj"))


def head(adapters, base):
    """The output matrix (V, D): a trained one, the base's own, or the embedding when tied."""
    for tree in (adapters, base):
        if "lm_head" in tree:
            return tree["lm_head"]["weight"]
    embedding = child(child(adapters, "model"), "embed_tokens")
    return leaf(embedding, base["model"]["embed_tokens"], "weight")

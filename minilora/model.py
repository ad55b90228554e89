"""A Llama-type decoder as a function of two trees: an adapter and its base.

This file generalizes part 4 of `lessons/00_qlora_in_one_file.py` to any Llama. It adds a cache,
packed rows, gradient checkpointing, and a choice of operations (`ops`).

    loss(adapters, base, batch, model_config, ops) -> scalar

The gradient is taken with respect to the first argument, `adapters`. So `base`, the second one, is
frozen. A leaf of `adapters` is in the node of its projection, or at the path of the weight that it
replaces.
"""

from functools import partial
from typing import Any

import autograd.numpy as np

from .batching import token_array
from .config import InputError, ModelConfig
from .layers import Context, LayerCache, Ops, checkpoint, decoder_layer, norm, rope_cos_sin, row_rng
from .tree import Array, Tree, is_node, overlay


def loss(
    adapters: Tree, base: Tree, batch: dict[str, Array], model_config: ModelConfig, ops: Ops,
    rng: Any = None, checkpointing: bool = False,
) -> Any:  # fmt: skip
    """Compute the mean cross-entropy of a batch, in nats per target token.

    batch: `tokens`, `targets`, `mask` and `segment_starts`, each (B, T); see `batching.collate`.
    Raises InputError for a token or target outside the vocabulary, also where the mask is 0.
    rng: a NumPy generator, a seed or a `layers.RowRng` for dropout; None for no dropout.
    checkpointing: keep only the input of each layer, and recompute the layer in the backward pass.
    """
    tokens = token_array("tokens", batch["tokens"], model_config.vocab_size, 2)
    targets = token_array("targets", batch["targets"], model_config.vocab_size, 2)
    params = parameters(adapters, base, ops)
    starts = batch["segment_starts"]
    x = hidden_states(params, tokens, starts, model_config, ops, None, rng, checkpointing)
    return ops.cross_entropy(x, lm_head(params), targets, batch["mask"])


def forward(
    adapters: Tree, base: Tree, tokens: Array, model_config: ModelConfig, ops: Ops,
) -> Array:  # fmt: skip
    """Compute the logits (B, T, V) of token ids (B, T), an array or lists."""
    tokens = token_array("tokens", tokens, model_config.vocab_size, 2)
    params = parameters(adapters, base, ops)
    x = hidden_states(params, tokens, np.zeros_like(tokens), model_config, ops)
    return logits(x, params, ops)


def hidden_states(
    params: Tree, tokens: Array, segment_starts: Array, model_config: ModelConfig, ops: Ops,
    caches: list[LayerCache] | None = None, rng: Any = None, checkpointing: bool = False,
) -> Array:  # fmt: skip
    """Compute the normalized hidden states after the last layer: (B, T, D).

    params: the tree of `parameters`. segment_starts (B, T): the first token of each token's
    example, 0 unless rows are packed. caches: one `LayerCache` per layer, with the tokens before
    these. rng, checkpointing: see `loss`.
    """
    node = params["model"]
    rng = row_rng(rng, len(tokens))
    first = caches[0] if caches else None  # it knows the number of earlier tokens
    ctx = Context(model_config, ops, None, segment_starts, first)
    x, positions, segment_starts = ops.embed(tokens, node, ctx)
    # per layer: all the same in a Llama, and two kinds if only some layers have a window
    kinds = model_config.layer_types or ("",) * model_config.num_hidden_layers
    configs = {kind: model_config.of_layers(kind) for kind in kinds}
    ropes = {kind: rope_cos_sin(positions, config, x.dtype) for kind, config in configs.items()}
    for i, kind in enumerate(kinds):
        cache = caches[i] if caches else None
        layer_rng = rng.child(i) if rng else None
        ctx = Context(configs[kind], ops, ropes[kind], segment_starts, cache, layer_rng)
        layer = partial(decoder_layer, ctx=ctx)
        layer_node = node["layers"][str(i)]
        x = checkpoint(layer, x, layer_node) if checkpointing else layer(x, layer_node)
    if x.shape[1] > tokens.shape[1]:  # a trained prompt comes first; its states are not returned
        x = x[:, -tokens.shape[1] :]
    return norm(x, node, "norm", ctx)  # with the last layer's ctx: all have the same norm


def lm_head(params: Tree) -> Any:
    """Return the output matrix (V, D): the head, or the embedding if the head is tied to it."""
    node = params["lm_head"] if "lm_head" in params else params["model"]["embed_tokens"]
    return node["weight"]


def logits(x: Array, params: Tree, ops: Ops) -> Array:
    """Compute the logits (..., V) of hidden states (..., D)."""
    return ops.linear(x, {"weight": lm_head(params)})


def parameters(adapters: Tree, base: Tree, ops: Ops) -> Tree:
    """Return the one tree that the layers read: `base` with the leaves of `adapters` laid over it.

    Raises InputError, with the path, for an entry that `ops` does not read, and for an adapter
    without its scaling or without a weight to adapt.
    """
    params = overlay(base, adapters)
    layers = tuple(base["model"]["layers"])  # a layer that only the adapter has is an error
    check_entries(params, base, ops.ENTRIES | {"layers": layers})
    return params


def check_entries(
    node: Tree, base: Tree, entries: dict[str, tuple[str, ...]], kind: str = "", place: str = ""
) -> None:
    """Raise InputError for an entry of a node that is not read, or that needs a node of the base.

    base: the node of the base at the same place. entries: {kind of node: the names that are read in
    it}. The root has the kind "", each of layers.0, layers.1, … has the kind "layer", and every
    other node has its name as its kind. A node whose kind is not a key of `entries` is not checked
    further: a method of `minilora.methods` reads it.
    """
    for name, value in node.items():
        path = f"{place}.{name}" if place else name
        if name not in entries[kind]:
            advice = "remove it, or use minilora.operations, which reads other methods"
            raise InputError(f"these operations do not read {path}: {advice}")
        child_kind = "layer" if kind == "layers" else name
        if is_node(value) and child_kind in entries:
            if name not in base and name != "lm_head":  # an adapter may add a head to a tied model
                raise InputError(f"the base has no {path} that the adapter could adapt or replace")
            check_entries(value, base.get(name, {}), entries, child_kind, path)
    if "lora_A" in node and "lora_scaling" not in node:
        raise InputError(f"{place} has no lora_scaling: get_peft_model and load_adapter set it")

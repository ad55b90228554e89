"""A Llama-type decoder as a function of two trees: trained parameters and frozen parameters.

This file generalizes part 4 of `lessons/00_qlora_in_one_file.py` to any Llama. It adds a cache,
packed rows, gradient checkpointing, and a choice of operations (`ops`).

    loss(adapters, base, batch, model_config, ops) -> scalar

The gradient is taken with respect to the first argument, `adapters`. So `base`, the second one, is
frozen. A leaf of `adapters` is at the path of its projection, or of the weight that it replaces.
"""

from functools import partial
from typing import Any

import autograd.numpy as np

from .batching import token_array
from .config import ModelConfig
from .layers import LayerCache, Rope, RowRng, norm_weight, rope_cos_sin, row_rng
from .ops import Ops
from .tree import Array, Tree, check_leaves, subtree, trained_or_frozen


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
    starts = batch["segment_starts"]
    x = hidden_states(adapters, base, tokens, starts, model_config, ops, None, rng, checkpointing)
    return ops.cross_entropy(x, lm_head(adapters, base), targets, batch["mask"])


def forward(
    adapters: Tree, base: Tree, tokens: Array, model_config: ModelConfig, ops: Ops,
) -> Array:  # fmt: skip
    """Compute the logits (B, T, V) of token ids (B, T), an array or lists."""
    tokens = token_array("tokens", tokens, model_config.vocab_size, 2)
    x = hidden_states(adapters, base, tokens, np.zeros_like(tokens), model_config, ops)
    return logits(x, adapters, base, ops)


def logits(x: Array, adapters: Tree, base: Tree, ops: Ops) -> Array:
    """Compute the logits (..., V) of hidden states (..., D) with the trained or frozen head."""
    weight, frozen = lm_head(adapters, base), lm_head({}, base)
    trained = {} if weight is frozen else {"weight": weight}
    return ops.linear(x, trained, {"weight": frozen})


def hidden_states(
    adapters: Tree, base: Tree, tokens: Array, segment_starts: Array, model_config: ModelConfig,
    ops: Ops, cache: list[LayerCache] | None = None, rng: Any = None, checkpointing: bool = False,
) -> Array:  # fmt: skip
    """Compute the normalized hidden states after the last layer: (B, T, D).

    segment_starts (B, T): the first token of each token's example, 0 unless rows are packed. cache:
    one `LayerCache` per layer, with the tokens before these. rng, checkpointing: see `loss`.
    """
    check_leaves(adapters, ("model", "lm_head"), "the model")
    trained, frozen, T = subtree(adapters, "model"), base["model"], tokens.shape[1]
    rng = row_rng(rng, len(tokens))
    past = cache[0].length if cache else 0
    x, positions, segment_starts = ops.embed(trained, frozen, tokens, segment_starts, past)
    rope = rope_cos_sin(positions, model_config, x.dtype)
    layers = subtree(trained, "layers")
    numbers = [str(i) for i in range(model_config.num_hidden_layers)]
    check_leaves(layers, tuple(numbers), "the model")
    for i, number in enumerate(numbers):
        layer = partial(
            decoder_layer, frozen=frozen["layers"][number], segment_starts=segment_starts,
            rope=rope, model_config=model_config, ops=ops, cache=cache[i] if cache else None,
            rng=rng.child(i) if rng else None,
        )  # fmt: skip
        node = subtree(layers, number)
        x = ops.checkpoint(layer, x, node) if checkpointing else layer(x, node)
    if x.shape[1] > T:  # a trained prompt comes first; its states are not returned
        x = x[:, -T:]
    return ops.rms_norm(x, norm_weight(trained, frozen, "norm"), model_config.rms_norm_eps)


def decoder_layer(
    x: Array, trained: Tree, frozen: Tree, rope: Rope, segment_starts: Array,
    model_config: ModelConfig, ops: Ops,
    cache: LayerCache | None = None, rng: RowRng | None = None,
) -> Array:  # fmt: skip
    """Apply one layer to x (B, T, D): add attention, then the MLP."""
    norms = ("input_layernorm", "post_attention_layernorm")
    check_leaves(trained, ("self_attn", "mlp", *norms), "decoder_layer")
    attention, mlp = subtree(trained, "self_attn"), subtree(trained, "mlp")
    before_attention, before_mlp = (norm_weight(trained, frozen, name) for name in norms)
    eps, window = model_config.rms_norm_eps, model_config.sliding_window

    h = ops.rms_norm(x, before_attention, eps)
    x = x + ops.self_attention(
        h, attention, frozen["self_attn"], rope, segment_starts, cache, rng, eps, window
    )
    h = ops.rms_norm(x, before_mlp, eps)
    return x + ops.mlp(h, mlp, frozen["mlp"], rng)


def lm_head(adapters: Tree, base: Tree) -> Any:
    """Return the output matrix (V, D): trained, or of the base, or the embedding if it is tied."""
    for tree in (adapters, base):
        if "lm_head" in tree:
            check_leaves(tree["lm_head"], ("weight",), "lm_head")
            return tree["lm_head"]["weight"]
    embedding = subtree(subtree(adapters, "model"), "embed_tokens")
    return trained_or_frozen(embedding, base["model"]["embed_tokens"], "weight")

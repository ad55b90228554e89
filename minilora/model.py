"""A Llama-type decoder as a function of an adapter and a frozen model.

This file generalizes part 4 of `lessons/00_qlora_in_one_file.py` to any Llama. It adds a cache,
packed rows, gradient checkpointing, and a choice of operations (`Model.ops`).

    loss(adapters, model, batch) -> scalar

The gradient is taken with respect to the first argument, `adapters`. So the weights of the second
one, `model.base`, are frozen. A leaf of `adapters` belongs to the node of the projection that it
adapts, or has the path of the weight that it replaces.
"""

from functools import partial
from typing import Any, NamedTuple

import autograd.numpy as np

from . import layers
from .batching import token_array
from .config import INITIALIZERS, InputError, ModelConfig
from .layers import Context, LayerCache, Ops, checkpoint, decoder_layer, norm, rope_cos_sin, row_rng
from .tree import Array, Tree, is_node, named_leaves, overlay


class Source(NamedTuple):
    """The origin of a base: its files, and the storage of its projections."""

    name: str = ""  # a built-in name, or the absolute path of a folder or file; "": unknown
    scheme: str = "none"  # of quant.schemes.SCHEMES
    block_size: int | None = None  # weights per absmax; None: stored without blocks
    digest: str = (
        ""  # SHA-256 of the files; after PiSSA or LoftQ, "pissa-…:" or "loftq-…:" before it
    )
    compute_dtype: str = "float32"  # of the products with frozen matrices

    @property
    def init_lora_weights(self) -> str | bool:
        """`pissa` or `loftq` if it has moved a part of these weights to an adapter, else True."""
        start = self.digest.partition("-")[0]
        return start if start in INITIALIZERS else True


class Model(NamedTuple):
    """A frozen model: its settings, its weights, the operations that it uses, and its source."""

    config: ModelConfig
    base: Tree
    ops: Ops = layers
    source: Source = Source()


def loss(
    adapters: Tree,
    model: Model,
    batch: dict[str, Array],
    rng: Any = None,
    checkpointing: bool = False,
) -> Any:
    """Compute the mean cross-entropy of a batch, in nats per target token.

    batch: `tokens`, `targets`, `mask` and `segment_starts`, each (B, T); see `batching.collate`.
    Raises InputError for a token or target outside the vocabulary, also where the mask is 0, for a
    mask of zeros, and for packed rows with a trained prompt, which only the first row would see.
    rng: a NumPy generator, a seed or a `layers.RowRng` for dropout; None for no dropout.
    checkpointing: keep only the input of each layer, and recompute the layer in the backward pass.
    """
    targets = token_array("targets", batch["targets"], model.config.vocab_size, 2)
    if not np.any(batch["mask"]):
        raise InputError("`mask` is zero everywhere: no token counts in the loss")
    model = with_adapters(adapters, model)
    is_packed = np.any(batch["mask"] * batch["segment_starts"])
    if is_packed and layers.virtual_tokens(model.base["model"]) is not None:
        raise InputError("only the first of packed rows would see the trained prompt: unpack them")
    x = hidden_states(model, batch["tokens"], batch["segment_starts"], None, rng, checkpointing)
    return model.ops.cross_entropy(x, lm_head(model.base), targets, batch["mask"])


def forward(adapters: Tree, model: Model, tokens: Array) -> Array:
    """Compute the logits (B, T, V) of token ids (B, T), an array or lists."""
    tokens = token_array("tokens", tokens, model.config.vocab_size, 2)
    model = with_adapters(adapters, model)
    return logits(hidden_states(model, tokens, np.zeros_like(tokens, int)), model)


def with_adapters(adapters: Tree, model: Model) -> Model:
    """Return `model` with the leaves of `adapters` laid over its base.

    Its source is unknown, because no file has these weights. Raises InputError, with the path, for
    an entry that no layer reads, for an adapter without its settings or a weight to adapt, and for
    one of PiSSA or LoftQ on another model than the one that they returned.
    """
    check_entries(adapters, model.base)
    for path, leaf in named_leaves(adapters):
        if path.endswith("lora_start") and model.source.digest != leaf:
            kind = leaf.partition("-")[0]
            raise InputError(f"{path}: {kind} needs the model that came with the adapter")
    return model._replace(base=overlay(model.base, adapters), source=Source())


def hidden_states(
    model: Model,
    tokens: Array,
    segment_starts: Array,
    caches: list[LayerCache] | None = None,
    rng: Any = None,
    checkpointing: bool = False,
) -> Array:
    """Compute the normalized hidden states after the last layer: (B, T, D).

    model: see `with_adapters`. segment_starts (B, T): the first token of each token's example, 0
    unless rows are packed. caches: one `LayerCache` per layer, which has the keys and values of the
    earlier tokens. rng, checkpointing: see `loss`.
    """
    config = model.config
    tokens = token_array("tokens", tokens, config.vocab_size, 2)
    node = model.base["model"]
    rng = row_rng(rng, len(tokens))
    x = layers.embed(tokens, node, config)
    past = caches[0].length if caches else 0  # tokens in the cache, including virtual ones
    if not past:
        prompt = layers.virtual_tokens(node)
        if prompt is not None:
            # [P; E(x)]   (Lester et al. 2021, Sec. 2); rows are not packed
            x = np.concatenate([np.repeat(prompt[None], len(tokens), axis=0), x], axis=1)
            segment_starts = np.zeros(x.shape[:2], int)
        past = layers.prefix_length(node["layers"]["0"]["self_attn"])
    positions = past + np.arange(x.shape[1]) - segment_starts
    # the kind of each layer: one in a Llama, two if only some layers have a window
    kinds = config.layer_types or ("",) * config.num_hidden_layers
    configs = {kind: config.of_layers(kind) for kind in kinds}
    ropes = {kind: rope_cos_sin(positions, configs[kind], x.dtype) for kind in configs}
    for i, kind in enumerate(kinds):
        cache = caches[i] if caches else None
        layer_rng = rng.child(i) if rng else None
        ctx = Context(configs[kind], model.ops, ropes[kind], segment_starts, cache, layer_rng)
        layer = partial(decoder_layer, ctx=ctx)
        layer_node = node["layers"][str(i)]
        x = checkpoint(layer, x, layer_node) if checkpointing else layer(x, layer_node)
    if x.shape[1] > tokens.shape[1]:  # the states of virtual tokens are not returned
        x = x[:, -tokens.shape[1] :]
    return norm(x, node, "norm", ctx)  # with the last layer's ctx: all have the same norm


def lm_head(base: Tree) -> Any:
    """Return the output matrix (V, D): the head, or the embedding if the head is tied to it."""
    node = base["lm_head"] if "lm_head" in base else base["model"]["embed_tokens"]
    return node["weight"]


def logits(x: Array, model: Model) -> Array:
    """Compute the logits (..., V) of hidden states (..., D)."""
    return model.ops.linear(x, {"weight": lm_head(model.base)})


def check_entries(adapters: Tree, base: Tree, place: str = "") -> None:
    """Raise InputError for an entry of an adapter that no layer would read.

    An entry replaces one of the base at the same place, or is one that an adapter may add there:
    see `layers.added_entries`. base: the node of the base at `place`.
    """
    allowed = {*base, *layers.added_entries(place.rpartition(".")[2])}
    for name, value in adapters.items():
        path = f"{place}.{name}" if place else name
        if name not in allowed:
            raise InputError(f"the model has no {path} that an adapter could replace or add")
        if is_node(value) and name in {*base, "lm_head"}:
            check_entries(value, base.get(name, {}), path)
    for first, *others in (layers.LORA, layers.PREFIX, *(hook.entries for hook in layers.HOOKS)):
        has_others = any(name in adapters for name in others)
        if has_others and first not in adapters and first not in base:
            raise InputError(f"{place} has no {first}, without which the others have no effect")
    for name in ("lora_scaling", "lora_dropout"):
        if "lora_A" in adapters and name not in {*adapters, *base}:
            raise InputError(f"{place} has no {name}: get_peft_model and load_adapter set it")

"""The whole model: by hand, by finite differences, on both paths, packed, recomputed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from autograd.tracer import isbox
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    PATHS,
    TINY,
    U32,
    adapted,
    as_dtype,
    bits,
    close,
    configs,
    fast_model,
    random_base,
    random_batch,
    random_examples,
    random_model,
    seeds,
    spying,
    vector,
)
from outcomes import refused

from minilora import layers
from minilora.batching import collate
from minilora.config import ALL_LINEAR, GEMMA_NORMS
from minilora.layers import value_and_grad
from minilora.methods.replaced import GROUPS, also_train
from minilora.model import Source, forward, hidden_states, loss, with_adapters
from minilora.optim import global_norm
from minilora.tree import arrays, flatten, get, overlay, tree_map, unflatten

few = settings(max_examples=15)


# ---------------------------------------------------------------------------------- by hand


GEMMA = {
    "hidden_act": "gelu_pytorch_tanh", "norms": GEMMA_NORMS, "norm_offset": 0.5,
    "embedding_scale": 3.0, "sliding_window": 2, "rope_local_base_freq": 5000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}  # fmt: skip
KINDS = ("sliding_attention", "full_attention", "sliding_attention")


def logits_by_hand(base, tokens, config):
    """One head after the other, with complex numbers for the rotation: (T,) -> (T, V)."""
    before_attention, after_attention, before_mlp, after_mlp = config.norms
    hd, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    embedding, t = base["model"]["embed_tokens"]["weight"], np.arange(len(tokens))
    root = math.sqrt(config.query_pre_attn_scalar or hd)
    distance = t[:, None] - t

    def norm(x, node, name):
        if name not in node:  # the norms of heads are Qwen3's, those after a sublayer Gemma's
            return x
        size = np.sqrt((x * x).mean(1, keepdims=True) + config.rms_norm_eps)
        return x / size * (node[name]["weight"] + config.norm_offset)

    def activation(z):
        if config.hidden_act == "silu":
            return z / (1 + np.exp(-z))
        return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    def project(x, node, name):
        return x @ node[f"{name}_proj"]["weight"].T

    def turned(x, attn, name, t, theta):
        """The heads of x, each normalized and rotated."""
        turns = np.exp(1j * np.outer(t, [theta ** (-2 * j / hd) for j in range(hd // 2)]))
        for head in np.split(x, x.shape[1] // hd, axis=1):
            real, imaginary = np.split(norm(head, attn, name), 2, axis=1)
            z = (real + 1j * imaginary) * turns
            yield np.hstack([z.real, z.imag])

    x = embedding[tokens] * config.embedding_scale
    for i, node in enumerate(base["model"]["layers"].values()):
        attn, mlp = node["self_attn"], node["mlp"]
        angles, window = (t, 10000), config.sliding_window or len(t)
        if config.layer_types:  # Gemma 3 scales the angles only in the layers without a window
            is_full = config.layer_types[i] == "full_attention"
            angles, window = ((t / 4, 10000), len(t)) if is_full else ((t, 5000), window)
        q, k, v = (project(norm(x, node, before_attention), attn, name) for name in "qkv")
        keys = [*turned(k, attn, "k_norm", *angles)]
        values, out = np.split(v, len(keys), axis=1), []
        for n, query in enumerate(turned(q, attn, "q_norm", *angles)):
            p = np.exp(query @ keys[n // group].T / root) * (distance >= 0) * (distance < window)
            out.append(p / p.sum(1, keepdims=True) @ values[n // group])
        x = x + norm(project(np.hstack(out), attn, "o"), node, after_attention)
        h = norm(x, node, before_mlp)
        hidden = activation(project(h, mlp, "gate")) * project(h, mlp, "up")
        x = x + norm(project(hidden, mlp, "down"), node, after_mlp)
    head = embedding if config.tie_word_embeddings else base["lm_head"]["weight"]
    return norm(x, base["model"], "norm") @ head.T


@PATHS
@few
@given(configs(), seeds, st.sampled_from([{}, GEMMA]))
def test_logits_and_loss_by_hand(ops, config, seed, family):
    if family:
        config = replace(config, **family, layer_types=KINDS[: config.num_hidden_layers])
    model = random_model(config, seed, np.float64, ops=ops)
    batch = random_batch(config, seed, packed=False)
    logits = forward({}, model, batch["tokens"])
    exact = np.array([logits_by_hand(model.base, row, config) for row in batch["tokens"]])
    # the model's angles are float32, up to 5 here: the only float32 numbers in it
    close(logits, exact, 20 * 5 / 10, U32)
    # the loss is the mean over the kept targets
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = [-log_p[b, t, batch["targets"][b, t]] for b, t in zip(*np.nonzero(batch["mask"]))]
    close(loss({}, model, batch), np.mean(nll))


# -------------------------------------------------------------------------------- gradients


def slope_agrees(loss, tree, seed):
    """The gradient of loss(tree) gives the slope along a random direction.

    A central difference with step h errs by c·h², and by 100 roundings of the loss over h. With
    h = 2⁻²¹, both are below 1e-6 of a gradient, because the norms of these models have ε = 0.1. At
    a width of one, such a norm is nearly a step, and the first error is 4e5·h² of the slope.
    """
    _, grads = value_and_grad(loss)(tree)
    weights, rng = arrays(tree), np.random.default_rng([6, seed])
    along = tree_map(lambda w: rng.standard_normal(w.shape), weights)
    h = 2.0**-21 / global_norm(along)

    def at(s):
        return loss(overlay(tree, tree_map(lambda w, d: w + s * d, weights, along)))

    slope = vector(grads) @ vector(along)
    assert abs(slope * 2 * h - (at(h) - at(-h))) < 2 * 2.0**-21 * 1e-6 * (1 + global_norm(grads))


@PATHS
@pytest.mark.parametrize("checkpointing", [False, True])
@settings(max_examples=8)
@given(configs(max_layers=2), seeds, st.sampled_from([0.0, 0.3]))
def test_finite_differences(ops, checkpointing, config, seed, p):
    config = replace(config, rms_norm_eps=0.1)
    model, batch = random_model(config, seed, np.float64, ops=ops), random_batch(config, seed)
    adapters, model = adapted(model, seed, target_modules=ALL_LINEAR, r=2, lora_dropout=p)
    adapters = as_dtype(also_train(adapters, model.base, GROUPS), np.float64)
    rng = layers.RowRng([[5, 0], [5, 1]])  # the same masks at each call
    slope_agrees(lambda tree: loss(tree, model, batch, rng, checkpointing), adapters, seed)
    # full fine-tuning: everything is argument 0; a tied embedding is used twice and sums up
    slope_agrees(lambda tree: loss(tree, model, batch), model.base, seed)


# ---------------------------------------------------------------------------------- packing


@PATHS
@few
@given(configs(), seeds, st.integers(2, 5))
def test_packed_and_padded_examples_equal_the_same_alone(ops, config, seed, n):
    adapters, model = adapted(random_model(config, seed, np.float64, ops=ops), seed)
    examples = random_examples(config, n, seed)
    rows = [examples, examples[:1]]  # the second row is padded

    def states(batch):
        return hidden_states(
            with_adapters(adapters, model), batch["tokens"], batch["segment_starts"]
        )

    batch = collate(rows)
    losses, counts = [], []
    for row, together in zip(rows, states(batch), strict=True):
        for example in row:
            alone = collate([[example]])
            x = states(alone)[0]
            close(together[: len(x)], x)
            together = together[len(x) :]
            losses.append(loss(adapters, model, alone))
            counts.append(alone["mask"].sum())
    close(loss(adapters, model, batch), np.average(losses, weights=counts))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_computes_in_its_own_dtype(dtype):
    assert forward({}, random_model(dtype=dtype), np.arange(4)[None]).dtype == dtype


# ----------------------------------------------------------------------------------- freeze


@PATHS
@pytest.mark.parametrize("first", [0, 1, 2])
def test_nothing_below_the_first_adapted_layer_is_differentiated(ops, first):
    config, seen = replace(TINY, num_hidden_layers=3), []
    model = random_model(config, ops=spying(ops, seen))
    adapters, model = adapted(model, layers_to_transform=tuple(range(first, 3)))
    batch = random_batch(config)
    value_and_grad(loss)(adapters, model, batch)

    def followed(name):
        return [isbox(args[0]) for n, args in seen if n == name]

    # the input of the first adapted layer is not followed, and the base never is
    assert followed("linear")[:: len(ALL_LINEAR)] == [False] * (first + 1) + [True] * (2 - first)
    assert followed("swiglu") == [False] * first + [True] * (3 - first)
    nodes = [flatten(args[1]) for name, args in seen if name == "linear"]
    assert {path for node in nodes for path in node if isbox(node[path])} == {"lora_A", "lora_B"}


def test_an_array_without_effect_has_a_gradient_of_zeros():
    tree = {"a": np.ones(2), "b": np.ones(3, np.float32)}
    _, grads = value_and_grad(lambda tree: tree["a"].sum())(tree)
    assert tree_map(np.ndarray.tolist, grads) == {"a": [1, 1], "b": [0, 0, 0]}
    assert grads["b"].dtype == np.float32


def test_a_batch_without_a_target_is_refused():
    batch = random_batch()
    with refused("`mask` is zero everywhere"):
        loss({}, fast_model(), batch | {"mask": 0 * batch["mask"]})


# ----------------------------------------------------------------------- leaves and switches


@PATHS
def test_a_trained_leaf_replaces_the_frozen_one_wherever_it_stands(ops):
    model, tokens = random_model(ops=ops), np.arange(6).reshape(2, 3)
    before = forward({}, model, tokens)
    for path, leaf in flatten(random_base(TINY, 1)).items():
        got = forward(unflatten({path: leaf}), model, tokens)
        mixed = model._replace(base=unflatten(flatten(model.base) | {path: leaf}))
        assert bits(got) == bits(forward({}, mixed, tokens)) != bits(before)
    # no file has the weights
    assert with_adapters({}, model._replace(source=Source("tiny"))).source == Source()


L0 = "model.layers.0"
UNREAD = [  # a place of every kind of node
    "other", "model.other", "model.lm_head.weight", "model.layers.2.mlp.x.bias",
    "model.embed_tokens.bias", "lm_head.bias", f"{L0}.q_proj.lora_A", f"{L0}.mlp.lora_A",
    f"{L0}.self_attn.up_proj.lora_A", f"{L0}.self_attn.q_proj.other",
]  # fmt: skip


@pytest.mark.parametrize("path", UNREAD)
def test_a_leaf_of_an_adapter_that_nothing_reads_is_refused_wherever_it_stands(path):
    adapters, model = adapted(random_model(), target_modules=ALL_LINEAR)
    adapters = overlay(adapters, unflatten({path: np.ones(3, np.float32)}))
    with refused(r"^the model has no .* adapter could replace") as error:
        forward(adapters, model, np.arange(4)[None])
    assert f"{path}.".startswith(f"{str(error.value).split()[4]}.")


@pytest.mark.parametrize("entry", ["v_proj.lora_scaling", "v_proj.lora_dropout", "v_proj"])
def test_an_adapter_needs_its_scaling_its_dropout_and_a_weight(entry):
    adapters, model = adapted(random_model())
    node, _, name = f"model.layers.1.self_attn.{entry}".rpartition(".")
    del get(model.base if name == "v_proj" else adapters, node)[name]
    with refused(f"{node} has no {name}|^the model has no {node}.v_proj that"):
        forward(adapters, model, np.arange(4)[None])

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
    adapted,
    as_dtype,
    assert_near,
    bits,
    configs,
    fast_model,
    random_base,
    random_batch,
    random_examples,
    random_model,
    seeds,
    spying,
)
from numpy.testing import assert_allclose
from outcomes import refused

from minilora import layers
from minilora.batching import collate
from minilora.config import ALL_LINEAR, GEMMA_NORMS
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.model import Model, Source, forward, hidden_states, loss, with_adapters
from minilora.tree import arrays, flatten, get, overlay, unflatten

U32, U64 = 2.0**-24, 2.0**-53
WORST = 1e4  # how much a random tiny model may amplify an error: an RMSNorm near zero, by 1/√ε each

few = settings(max_examples=15)


def close(a, b, roundings=1000):
    """Equal in float64 but for `roundings` of them, each amplified as badly as can be."""
    scale = max(1.0, np.abs(b).max())
    assert_allclose(a, b, rtol=0, atol=roundings * WORST * U64 * scale)


# ---------------------------------------------------------------------------------- by hand


GEMMA = {
    "hidden_act": "gelu_pytorch_tanh", "norms": GEMMA_NORMS, "norm_offset": 0.5,
    "embedding_scale": 3.0,
}  # fmt: skip


def logits_by_hand(base, tokens, config):
    """One token after the other, one head after the other: (T,) -> (T, V)."""
    before_attention, after_attention, before_mlp, after_mlp = config.norms
    hd, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    half, embedding = hd // 2, base["model"]["embed_tokens"]["weight"]
    root = math.sqrt(config.query_pre_attn_scalar or hd)
    head = embedding if config.tie_word_embeddings else base["lm_head"]["weight"]
    speeds = np.array([config.rope_theta ** (-2 * j / hd) for j in range(half)])
    memory = [([], []) for _ in range(config.num_hidden_layers)]  # keys and values so far
    logits = []

    def norm(x, node, name):
        if name not in node:  # the norms of heads are Qwen3's, those after a sublayer Gemma's
            return x
        weight = node[name]["weight"] + config.norm_offset
        return x / np.sqrt(x @ x / len(x) + config.rms_norm_eps) * weight

    def activation(z):
        if config.hidden_act == "silu":
            return z / (1 + np.exp(-z))
        return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    def turned(x, attn, name, t):
        """The heads of x, each normalized and rotated."""
        for start in range(0, len(x), hd):
            head = norm(x[start : start + hd], attn, name)
            z = (head[:half] + 1j * head[half:]) * np.exp(1j * t * speeds)
            yield np.concatenate([z.real, z.imag])

    for t, token in enumerate(tokens):
        x = embedding[token] * config.embedding_scale
        for i, (keys, values) in enumerate(memory):
            node = base["model"]["layers"][str(i)]
            attn, mlp = node["self_attn"], node["mlp"]
            h = norm(x, node, before_attention)
            q, k, v = (attn[f"{n}_proj"]["weight"] @ h for n in "qkv")
            keys.append(list(turned(k, attn, "k_norm", t)))
            values.append(v.reshape(-1, hd))
            if config.sliding_window and len(keys) > config.sliding_window:
                del keys[0], values[0]
            out = []
            for n, query in enumerate(turned(q, attn, "q_norm", t)):
                p = np.exp([query @ key[n // group] / root for key in keys])
                out.append(sum(w * value[n // group] for w, value in zip(p / p.sum(), values)))
            x = x + norm(attn["o_proj"]["weight"] @ np.concatenate(out), node, after_attention)
            h = norm(x, node, before_mlp)
            hidden = activation(mlp["gate_proj"]["weight"] @ h) * (mlp["up_proj"]["weight"] @ h)
            x = x + norm(mlp["down_proj"]["weight"] @ hidden, node, after_mlp)
        logits.append(head @ norm(x, base["model"], "norm"))
    return np.array(logits)


@PATHS
@few
@given(configs(), seeds, st.sampled_from([{}, GEMMA]))
def test_logits_and_loss_by_hand(ops, config, seed, family):
    config = replace(config, **family)
    model = random_model(config, seed, np.float64, ops=ops)
    batch = random_batch(config, seed, packed=False)
    logits = forward({}, model, batch["tokens"])
    for row, got in zip(batch["tokens"], logits):
        exact = logits_by_hand(model.base, row, config)
        # the model's angles are float32, up to 5 here: the only float32 numbers in it
        scale = max(1.0, np.abs(exact).max())
        assert np.abs(got - exact).max() < 20 * U32 * 5 * WORST / 10 * scale
    # the loss is the mean over the kept targets
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = [-log_p[b, t, batch["targets"][b, t]] for b, t in zip(*np.nonzero(batch["mask"]))]
    close(loss({}, model, batch), np.mean(nll))


def test_layers_of_one_rotary_base_can_differ_in_its_scaling():
    """Gemma 3 scales the rotary frequencies only in the layers without a window."""
    config = replace(
        TINY, sliding_window=9, layer_types=("sliding_attention", "full_attention"),
        rope_scaling={"rope_type": "linear", "factor": 4.0}, rope_local_base_freq=TINY.rope_theta,
    )  # fmt: skip
    # another base, of which at most the last bit of a frequency is another
    nearly = replace(config, rope_local_base_freq=TINY.rope_theta * (1 + 1e-12))
    model, tokens = random_model(config), np.arange(6)[None]
    ours, expected = (forward({}, model._replace(config=c), tokens) for c in (config, nearly))
    assert_near(ours, expected, 1e-5)


# -------------------------------------------------------------------------------- gradients


def slope_agrees(loss, tree, seed):
    """The gradient of loss(tree) gives the slope along a random direction.

    A central difference with step h errs by c·h², and by 100 roundings of the loss over h. With
    h = 2⁻²¹, both are below 1e-6 of a gradient, because the norms of these models have ε = 0.1. At
    a width of one, such a norm is nearly a step, and the first error is 4e5·h² of the slope.
    """
    _, grads = value_and_grad(loss)(tree)
    weights, grads, rng = flatten(arrays(tree)), flatten(grads), np.random.default_rng([6, seed])
    along = {path: rng.standard_normal(w.shape) for path, w in weights.items()}
    h = 2.0**-21 / math.sqrt(sum(np.vdot(d, d) for d in along.values()))
    ends = ({path: w + s * along[path] for path, w in weights.items()} for s in (h, -h))
    above, below = (loss(overlay(tree, unflatten(end))) for end in ends)
    slope = sum(np.vdot(g, along[path]) for path, g in grads.items())
    size = math.sqrt(sum(np.vdot(g, g) for g in grads.values()))
    assert abs(slope * 2 * h - (above - below)) < 2 * 2.0**-21 * 1e-6 * (1 + size)


@PATHS
@pytest.mark.parametrize("checkpointing", [False, True])
@settings(max_examples=8)
@given(configs(max_layers=2), seeds, st.sampled_from([0.0, 0.3]))
def test_finite_differences(ops, checkpointing, config, seed, p):
    config = replace(config, rms_norm_eps=0.1)
    model, batch = random_model(config, seed, np.float64, ops=ops), random_batch(config, seed)
    adapters, model = adapted(model, seed, target_modules=ALL_LINEAR, r=2, lora_dropout=p)
    adapters = as_dtype(also_train(adapters, model.base, ("norm", "bias", "head")), np.float64)

    def loss_of(adapters):
        rng = layers.RowRng([[5, 0], [5, 1]])  # the same masks at each call
        return loss(adapters, model, batch, rng, checkpointing)

    slope_agrees(loss_of, adapters, seed)
    # full fine-tuning: everything is argument 0; a tied embedding is used twice and sums up
    slope_agrees(lambda tree: loss(tree, model, batch), model.base, seed)
    # of logits, which take the head in an operation of their own
    head = {"lm_head": adapters["lm_head"]}
    tokens, weights = batch["tokens"], np.random.default_rng(seed).random(config.vocab_size)
    slope_agrees(lambda head: (forward(head, model, tokens) @ weights).sum(), head, seed)


# ---------------------------------------------------------------------------------- packing


@PATHS
@few
@given(configs(), seeds, st.integers(2, 5))
def test_packed_and_padded_examples_equal_the_same_alone(ops, config, seed, n):
    adapters, model = adapted(random_model(config, seed, np.float64, ops=ops), seed)
    examples = random_examples(config, n, seed)
    batch = collate([examples, examples[:1]])  # the second row is padded
    both = with_adapters(adapters, model)
    together = hidden_states(both, batch["tokens"], batch["segment_starts"])
    losses, counts = [], []
    for i, row in enumerate((examples, examples[:1])):
        at = 0
        for example in row:
            alone = collate([[example]])
            x = hidden_states(both, alone["tokens"], alone["segment_starts"])
            close(together[i : i + 1, at : at + x.shape[1]], x)
            at += x.shape[1]
            losses.append(loss(adapters, model, alone))
            counts.append(alone["mask"].sum())
    expected = np.dot(counts, losses) / sum(counts)
    close(loss(adapters, model, batch), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_computes_in_its_own_dtype(dtype):
    assert forward({}, random_model(TINY, dtype=dtype), np.arange(4)[None]).dtype == dtype


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
    for name, args in seen:
        if name == "linear":
            traced = {path for path, w in flatten(args[1]).items() if isbox(w)}
            assert traced <= {"lora_A", "lora_B"}
    # with checkpoints, what is followed is computed once more: autograd's own `checkpoint`
    # recomputes a layer once per traced argument
    value_and_grad(loss)(adapters, model, batch, checkpointing=True)
    assert len(followed("attention")) == len(followed("swiglu")) == 3 + 3 + (3 - first)


@pytest.mark.filterwarnings("ignore:Output seems independent")
def test_a_frozen_model_has_an_empty_gradient():
    _, grads = value_and_grad(loss)({}, fast_model(), random_batch(TINY))
    assert grads == {}


def test_an_array_without_effect_has_a_gradient_of_zeros():
    tree = {"a": np.ones(2), "b": {"c": np.ones(3, np.float32), "lora_scaling": 2.0}}
    _, grads = value_and_grad(lambda tree: tree["a"].sum())(tree)
    assert flatten(grads).keys() == {"a", "b.c"}
    assert grads["a"].tolist() == [1, 1] and bits(grads["b"]["c"]) == bytes(3 * 4)


@PATHS
def test_a_batch_without_a_target_is_refused(ops):
    batch = random_batch(TINY)
    batch["mask"] = 0 * batch["mask"]
    with refused("`mask` is zero everywhere"):
        loss({}, Model(TINY, random_base(TINY), ops), batch)


# ----------------------------------------------------------------------- leaves and switches


@PATHS
def test_a_trained_leaf_replaces_the_frozen_one_wherever_it_stands(ops):
    base, other = random_base(TINY, 0), random_base(TINY, 1)
    tokens = np.arange(6).reshape(2, 3)
    model = Model(TINY, base, ops)
    before = forward({}, model, tokens)
    from_files = model._replace(source=Source("tiny"))
    assert with_adapters({}, from_files).source == Source()  # no file has its weights
    for path, leaf in flatten(other).items():
        got = forward(unflatten({path: leaf}), model, tokens)
        mixed = model._replace(base=unflatten(flatten(base) | {path: leaf}))
        assert bits(got) == bits(forward({}, mixed, tokens)) != bits(before)


L0 = "model.layers.0"
UNREAD = [  # a place of every kind of node
    "other", "model.other", "model.lm_head.weight", "model.layers.2.mlp.x.bias",
    "model.embed_tokens.bias", "lm_head.bias", "model.norm.bias", f"{L0}.q_proj.lora_A",
    f"{L0}.self_attn.up_proj.lora_A", f"{L0}.self_attn.lora_A", f"{L0}.mlp.q_proj.lora_A",
    f"{L0}.input_layernorm.bias", *(f"{L0}.self_attn.{name}.other" for name in ALL_LINEAR[:4]),
    *(f"{L0}.mlp.{name}.other" for name in ALL_LINEAR[4:]),
]  # fmt: skip


@pytest.mark.parametrize("path", UNREAD)
def test_a_leaf_of_an_adapter_that_nothing_reads_is_refused_wherever_it_stands(path):
    adapters, model = adapted(random_model(TINY), target_modules=ALL_LINEAR)
    adapters = overlay(adapters, unflatten({path: np.ones(3, np.float32)}))
    with refused(r"^the model has no .* adapter could replace") as error:
        forward(adapters, model, np.arange(4)[None])
    assert f"{path}.".startswith(f"{str(error.value).split()[4]}.")


@pytest.mark.parametrize(
    "entry, message",
    [
        ("v_proj.lora_scaling", r"^model.layers.1.self_attn.v_proj has no lora_scaling"),
        ("v_proj.lora_dropout", r"^model.layers.1.self_attn.v_proj has no lora_dropout"),
        ("v_proj", r"^the model has no model\.layers\.1.*v_proj that"),
    ],
)
def test_an_adapter_needs_its_scaling_its_dropout_and_a_weight(entry, message):
    adapters, model = adapted(random_model(TINY))
    *nodes, name = f"model.layers.1.self_attn.{entry}".split(".")
    del get(model.base if name == "v_proj" else adapters, ".".join(nodes))[name]
    with refused(message):
        forward(adapters, model, np.arange(4)[None])

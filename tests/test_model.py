"""The whole model: by hand, by finite differences, on both paths, packed, recomputed."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from autograd.tracer import isbox
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    as_dtype,
    bits,
    configs,
    random_base,
    random_batch,
    random_examples,
    seeds,
    spying,
    target_sets,
)

import minilora
from minilora import layers, model
from minilora.batching import collate
from minilora.config import ALL_LINEAR, InputError, LoraConfig
from minilora.kernels import fused
from minilora.layers import value_and_grad
from minilora.methods.method import MethodConfig
from minilora.methods.registry import get_peft_model
from minilora.methods.replaced import also_train
from minilora.tree import arrays, flatten, named_leaves, overlay, set_leaf, unflatten

U32, U64 = 2.0**-24, 2.0**-53
PATHS = pytest.mark.parametrize("ops", [layers, fused], ids=["plain", "fused"])
WORST = 1e4  # how much a random tiny model may amplify an error: an RMSNorm near zero, by 1/√ε each

few = settings(max_examples=15)


def close(a, b, roundings=1000):
    """Equal in float64 but for `roundings` of them, each amplified as badly as can be."""
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=roundings * WORST * U64 * scale)


# ---------------------------------------------------------------------------------- by hand


def logits_by_hand(base, tokens, config):
    """One token after the other, one head after the other: (T,) -> (T, V)."""
    hd, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    half, embedding = config.head_dim // 2, base["model"]["embed_tokens"]["weight"]
    head = embedding if config.tie_word_embeddings else base["lm_head"]["weight"]
    speeds = np.array([config.rope_theta ** (-2 * j / hd) for j in range(half)])
    memory = [([], []) for _ in range(config.num_hidden_layers)]  # keys and values so far
    logits = []

    def norm(x, w):
        return x / np.sqrt(x @ x / len(x) + config.rms_norm_eps) * w

    def head_norm(x, attn, name):  # of one head, in Qwen3
        return norm(x, attn[name]["weight"]) if name in attn else x

    def turn(x, t):
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * t * speeds)
        return np.concatenate([z.real, z.imag])

    for t, token in enumerate(tokens):
        x = embedding[token]
        for i, (keys, values) in enumerate(memory):
            node = base["model"]["layers"][str(i)]
            attn, mlp = node["self_attn"], node["mlp"]
            h = norm(x, node["input_layernorm"]["weight"])
            q, k, v = (attn[f"{n}_proj"]["weight"] @ h for n in "qkv")
            heads = [head_norm(k[a : a + hd], attn, "k_norm") for a in range(0, len(k), hd)]
            keys.append([turn(head, t) for head in heads])
            values.append(v.reshape(-1, hd))
            if config.sliding_window and len(keys) > config.sliding_window:
                del keys[0], values[0]
            out = []
            for n in range(config.num_attention_heads):
                turned = turn(head_norm(q[n * hd : (n + 1) * hd], attn, "q_norm"), t)
                p = np.exp([turned @ key[n // group] / math.sqrt(hd) for key in keys])
                out.append(sum(w * value[n // group] for w, value in zip(p / p.sum(), values)))
            x = x + attn["o_proj"]["weight"] @ np.concatenate(out)
            h = norm(x, node["post_attention_layernorm"]["weight"])
            gate = mlp["gate_proj"]["weight"] @ h
            up = mlp["up_proj"]["weight"] @ h
            x = x + mlp["down_proj"]["weight"] @ (gate / (1 + np.exp(-gate)) * up)
        logits.append(head @ norm(x, base["model"]["norm"]["weight"]))
    return np.array(logits)


@PATHS
@few
@given(configs(), seeds)
def test_logits_by_hand(ops, config, seed):
    base = random_base(config, seed, np.float64)
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(2, 6))
    logits = model.forward({}, base, tokens, config, ops)
    for row, got in zip(tokens, logits):
        exact = logits_by_hand(base, row, config)
        # the model's angles are float32, up to 5 here: the only float32 numbers in it
        scale = max(1.0, np.abs(exact).max())
        assert np.abs(got - exact).max() < 20 * U32 * 5 * WORST / 10 * scale


def test_layers_of_one_rotary_base_can_differ_in_its_scaling():
    """Gemma 3 scales the rotary frequencies only in the layers without a window."""
    config = replace(
        TINY, sliding_window=9, layer_types=("sliding_attention", "full_attention"),
        rope_scaling={"rope_type": "linear", "factor": 4.0}, rope_local_base_freq=TINY.rope_theta,
    )  # fmt: skip
    # another base, of which at most the last bit of a frequency is another
    nearly = replace(config, rope_local_base_freq=TINY.rope_theta * (1 + 1e-12))
    base, tokens = random_base(config), np.arange(6)[None]
    ours, expected = (minilora.forward({}, base, tokens, c) for c in (config, nearly))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@PATHS
@few
@given(configs(), seeds)
def test_loss_is_the_mean_over_the_kept_targets(ops, config, seed):
    base, batch = random_base(config, seed, np.float64), random_batch(config, seed, packed=False)
    logits = model.forward({}, base, batch["tokens"], config, ops)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = [-log_p[b, t, batch["targets"][b, t]] for b, t in zip(*np.nonzero(batch["mask"]))]
    close(model.loss({}, base, batch, config, ops), np.mean(nll))


# -------------------------------------------------------------------------------- gradients


def everything(config, seed, **lora_fields):
    """Adapters in float64, together with trained norms, biases and head."""
    base = random_base(config, seed)
    adapters, frozen = adapted(base, seed, target_modules=ALL_LINEAR, r=2, **lora_fields)
    adapters = also_train(adapters, frozen, ("norm", "bias", "head"))
    return as_dtype(adapters, np.float64), as_dtype(frozen, np.float64)


def slope_agrees(loss, tree, seed):
    """The gradient of loss(tree) gives the slope along a random direction, within a derived bound.

    The central difference D(h) is the slope + c₂h² + c₄h⁴ + …; Richardson's extrapolation takes c₂
    away. That leaves c₄h⁴, of which the halved step has 1/16: two extrapolations differ by 15 times
    what the second one errs by. A loss has some 100 roundings above each other, each of which moves
    it by what the same rounding of the weights would, at most; D(h/4) divides them by h/2, and the
    extrapolation makes 5/3 of them. Where a norm is steep, and its slope may be 1/√ε = 316 upon
    that of another one, only a small h is in the range of the series: the smallest bound tells.
    """
    value, grads = value_and_grad(loss)(tree)
    weights, grads, rng = flatten(arrays(tree)), flatten(grads), np.random.default_rng([6, seed])
    along = {path: rng.standard_normal(w.shape) for path, w in weights.items()}
    moved = value + sum(np.abs(g * weights[path]).sum() for path, g in grads.items())

    def difference(h):
        ends = ({p: w + s * along[p] for p, w in weights.items()} for s in (h, -h))
        above, below = (loss(overlay(tree, unflatten(end))) for end in ends)
        return (above - below) / (2 * h)

    def extrapolated(h):
        slopes = [difference(h), difference(h / 2), difference(h / 4)]
        coarse, fine = ((4 * half - full) / 3 for full, half in pairwise(slopes))
        return abs(fine - coarse) + 5 / 3 * 100 * U64 * moved / (h / 4), fine

    bound, slope = min(extrapolated(h) for h in (2.0**-12, 2.0**-15, 2.0**-18))
    assert abs(sum(np.vdot(g, along[path]) for path, g in grads.items()) - slope) < bound


@PATHS
@pytest.mark.parametrize("checkpointing", [False, True])
@settings(max_examples=8)
@given(configs(max_layers=2), seeds, st.sampled_from([0.0, 0.3]))
def test_finite_differences(ops, checkpointing, config, seed, p):
    adapters, frozen = everything(config, seed, lora_dropout=p)
    batch = random_batch(config, seed)

    def loss(adapters):
        rng = layers.RowRng([[5, 0], [5, 1]])  # the same masks at each call
        return model.loss(adapters, frozen, batch, config, ops, rng, checkpointing)

    slope_agrees(loss, adapters, seed)


@PATHS
@settings(max_examples=8)
@given(configs(max_layers=2), seeds)
def test_finite_differences_of_the_whole_tree(ops, config, seed):
    # full fine-tuning: everything is argument 0; a tied embedding is used twice and sums up
    base, batch = random_base(config, seed, np.float64), random_batch(config, seed)

    def loss(tree):
        return model.loss(tree, base, batch, config, ops)

    slope_agrees(loss, base, seed)


@few
@given(configs(), seeds, target_sets, st.booleans(), st.sampled_from([0.0, 0.5]))
def test_both_paths_agree_in_float64(config, seed, names, checkpointing, p):
    base = random_base(config, seed, np.float64)
    adapters, frozen = adapted(base, seed, target_modules=names, lora_dropout=p)
    batch = random_batch(config, seed)
    results = [
        value_and_grad(model.loss)(
            adapters, frozen, batch, config, ops, layers.RowRng([[3, 0], [3, 1]]), checkpointing
        )
        for ops in (layers, fused)
    ]
    (plain, plain_grads), (fast, fast_grads) = results
    close(fast, plain)
    plain_grads, fast_grads = flatten(plain_grads), flatten(fast_grads)
    assert plain_grads.keys() == fast_grads.keys() == flatten(arrays(adapters)).keys()
    for path, g in plain_grads.items():
        close(fast_grads[path], g, roundings=10_000)


def test_in_float32_the_fused_path_is_no_noisier_than_the_plain_one():
    # Noise: a path in float32 against plain float64. In one model a few ill-conditioned numbers
    # make it, so the ratio of two noises is within a factor of four of one at best; the geometric
    # mean of twelve such ratios is within two (three standard deviations).
    ratios = []
    for seed in range(12):
        adapters, frozen = adapted(random_base(TINY, seed), seed, target_modules=ALL_LINEAR)
        batch = random_batch(TINY, seed, B=4, T=9)

        def gradient(ops, dtype, trees=(adapters, frozen), batch=batch):
            adapters, frozen = (as_dtype(tree, dtype) for tree in trees)
            loss, grads = value_and_grad(model.loss)(adapters, frozen, batch, TINY, ops)
            return float(loss), np.concatenate([g.ravel() for _, g in named_leaves(grads)])

        loss, exact = gradient(layers, np.float64)
        noises = [np.linalg.norm(gradient(ops, np.float32)[1] - exact) for ops in (layers, fused)]
        ratios.append(noises[1] / noises[0])
        # a loss near ln 11 has some hundred roundings above it, most of which cancel
        assert abs(gradient(fused, np.float32)[0] - loss) < 100 * U32 * loss
    assert np.exp(np.mean(np.log(ratios))) < 2


@PATHS
def test_gradients_have_the_paths_and_dtypes_of_what_is_trained(ops):
    base = random_base(TINY)
    adapters, frozen = adapted(base)
    adapters = also_train(adapters, frozen, ("norm", "bias", "head"))
    _, grads = value_and_grad(model.loss)(adapters, frozen, random_batch(TINY), TINY, ops)
    trained, grads = flatten(arrays(adapters)), flatten(grads)
    assert trained.keys() == grads.keys()
    for path, g in grads.items():
        assert g.shape == trained[path].shape and g.dtype == np.float32, path
        assert np.abs(g).max() > 0, path


# ----------------------------------------------------------------------- causality, packing


@PATHS
@few
@given(configs(), seeds, st.integers(0, 6))
def test_a_later_token_never_changes_an_earlier_logit(ops, config, seed, t):
    adapters, frozen = adapted(random_base(config, seed), seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(config.vocab_size, size=(2, 7))
    changed = tokens.copy()
    changed[:, t:] = rng.integers(config.vocab_size, size=(2, 7 - t))
    a, b = (model.forward(adapters, frozen, x, config, ops) for x in (tokens, changed))
    assert bits(a[:, :t]) == bits(b[:, :t])


@PATHS
def test_every_token_changes_its_own_and_later_logits(ops):
    # the other half of causality: without any attention, the test above would pass too
    base, tokens = random_base(TINY), np.arange(7)[None]
    before = model.forward({}, base, tokens, TINY, ops)
    for t in range(7):
        changed = tokens.copy()
        changed[0, t] = 9
        after = model.forward({}, base, changed, TINY, ops)
        assert (np.abs(after - before).max(-1)[0, t:] > 1e-3).all()


@PATHS
@few
@given(configs(), seeds, st.integers(2, 5))
def test_packed_examples_equal_the_same_alone(ops, config, seed, n):
    base = random_base(config, seed, np.float64)
    adapters, frozen = adapted(base, seed)
    examples = random_examples(config, n, seed)
    packed = collate([examples])
    params = model.parameters(adapters, frozen, ops)
    together = model.hidden_states(params, packed["tokens"], packed["segment_starts"], config, ops)
    loss, total, at = 0.0, 0.0, 0
    for example in examples:
        alone = collate([[example]])
        x = model.hidden_states(params, alone["tokens"], alone["segment_starts"], config, ops)
        close(together[:, at : at + x.shape[1]], x)
        count = alone["mask"].sum()
        loss += count * model.loss(adapters, frozen, alone, config, ops)
        total, at = total + count, at + x.shape[1]
    close(model.loss(adapters, frozen, packed, config, ops), loss / total)


@PATHS
def test_a_packed_neighbour_is_invisible_to_the_last_bit(ops):
    base, (first, second) = random_base(TINY), random_examples(TINY, 2, longest=6)
    other = first._replace(tokens=[(t + 1) % TINY.vocab_size for t in first.tokens])
    a, b = (collate([[e, second]]) for e in (first, other))
    at = len(first.tokens) - 1
    x, y = (
        model.hidden_states(base, c["tokens"], c["segment_starts"], TINY, ops)[:, at:]
        for c in (a, b)
    )
    assert bits(x) == bits(y)


@PATHS
@few
@given(configs(), seeds)
def test_padding_does_not_count(ops, config, seed):
    base = random_base(config, seed, np.float64)
    short, long = random_examples(config, 1, seed, longest=4) + random_examples(config, 1, seed + 1)
    together = model.loss({}, base, collate([[short], [long]]), config, ops)
    alone = [collate([[e]]) for e in (short, long)]
    counts = [b["mask"].sum() for b in alone]
    parts = [model.loss({}, base, b, config, ops) for b in alone]
    close(together, np.dot(counts, parts) / sum(counts))


# ------------------------------------------------------------------- dropout, checkpointing


def run(ops, seed=None, checkpointing=False, p=0.4):
    adapters, frozen = adapted(random_base(TINY), target_modules=ALL_LINEAR, lora_dropout=p)
    rng = None if seed is None else layers.RowRng([[seed, 0], [seed, 1]])
    loss, grads = value_and_grad(model.loss)(
        adapters, frozen, random_batch(TINY), TINY, ops, rng, checkpointing
    )
    return [bits(loss), *map(bits, flatten(grads).values())]


@pytest.mark.parametrize("seed", [None, 0])
def test_recomputing_changes_no_bit(seed):
    assert run(fused, seed, checkpointing=True) == run(fused, seed)
    # On the plain path autograd adds the three gradients that meet at a block's input in another
    # order: the loss keeps its bits, the gradients are equal to rounding (`close`, below).
    assert run(layers, seed, checkpointing=True)[0] == run(layers, seed)[0]


@few
@given(configs(), seeds)
def test_recomputing_on_the_plain_path(config, seed):
    adapters, frozen = adapted(random_base(config, seed, np.float64), seed, lora_dropout=0.2)

    def gradient(checkpointing):
        rng, batch = layers.RowRng([[seed, 0], [seed, 1]]), random_batch(config, seed)
        f = value_and_grad(model.loss)
        return f(adapters, frozen, batch, config, layers, rng, checkpointing)

    (loss, grads), (same_loss, same_grads) = gradient(False), gradient(True)
    assert loss == same_loss
    for (path, a), (same_path, b) in zip(
        named_leaves(grads), named_leaves(same_grads), strict=True
    ):
        assert path == same_path
        close(b, a)


@PATHS
def test_dropout_is_a_function_of_its_generator(ops):
    assert run(ops, seed=1) == run(ops, seed=1)
    assert run(ops, seed=1)[0] != run(ops, seed=2)[0] != run(ops)[0]
    assert run(ops) == run(ops, p=0.0) == run(ops, seed=1, p=0.0)
    adapters, frozen = adapted(random_base(TINY), lora_dropout=0.5)
    losses = [
        model.loss(adapters, frozen, random_batch(TINY), TINY, ops, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_layers_have_masks_of_their_own(monkeypatch):
    # layers must not share a mask
    masks = []
    monkeypatch.setattr(
        layers, "dropout", lambda x, p, rng: masks.append(rng.random((2, 9), "f4").tolist()) or x
    )
    adapters, frozen = adapted(random_base(TINY), target_modules=ALL_LINEAR, lora_dropout=0.5)
    model.loss(adapters, frozen, random_batch(TINY), TINY, layers, layers.RowRng([[0], [1]]))
    rows = [tuple(row) for mask in masks for row in mask]
    assert len(rows) == len(set(rows)) == 2 * 14


@PATHS
def test_recomputing_costs_one_more_forward_pass(ops):
    # autograd's own `checkpoint` recomputes a layer once per traced argument
    adapters, frozen = adapted(random_base(replace(TINY, num_hidden_layers=3)))
    for checkpointing, calls in ((False, 3), (True, 6)):
        seen = []
        config, spy = replace(TINY, num_hidden_layers=3), spying(ops, seen)
        value_and_grad(model.loss)(
            adapters, frozen, random_batch(TINY), config, spy, None, checkpointing
        )
        assert sum(name == "self_attention" for name, _ in seen) == calls


@PATHS
def test_nothing_is_recomputed_unless_asked(ops):
    adapters, frozen = adapted(random_base(TINY))
    batch, seen = random_batch(TINY), []
    model.loss(adapters, frozen, batch, TINY, spying(ops, seen))
    model.forward(adapters, frozen, batch["tokens"], TINY, spying(ops, seen))
    params = model.parameters(adapters, frozen, ops)
    model.hidden_states(params, batch["tokens"], batch["segment_starts"], TINY, spying(ops, seen))
    names = [name for name, _ in seen]
    assert names.count("mlp") == 3 * TINY.num_hidden_layers


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_computes_in_its_own_dtype(dtype):
    base, tokens = random_base(TINY, dtype=dtype), np.arange(4)[None]
    assert model.forward({}, base, tokens, TINY, layers).dtype == dtype


# ----------------------------------------------------------------------------------- freeze


@PATHS
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_nothing_below_the_first_adapted_layer_is_differentiated(ops, checkpointing, first):
    config, seen = replace(TINY, num_hidden_layers=3), []
    adapters, frozen = adapted(random_base(config), layers_to_transform=tuple(range(first, 3)))
    value_and_grad(model.loss)(
        adapters, frozen, random_batch(config), config, spying(ops, seen), None, checkpointing
    )

    def followed(name):
        return [isbox(args[0]) for n, args in seen if n == name][: 7 if name == "rms_norm" else 3]

    if not checkpointing:  # else the backward pass computes the followed layers once more, traced
        # the first one to be followed comes after q and v of the first adapted layer
        assert followed("self_attention") == [False] * (first + 1) + [True] * (2 - first)
        assert followed("mlp") == [False] * first + [True] * (3 - first)
        # two norms per layer and the last one
        assert followed("rms_norm") == [False] * (2 * first + 1) + [True] * (6 - 2 * first)
    for name, args in seen:
        if name in ("self_attention", "mlp"):  # autograd never traces the base
            leaves = flatten(args[1])
            traced = {path.rpartition(".")[2] for path, w in leaves.items() if isbox(w)}
            assert traced <= {"lora_A", "lora_B"}
    layers_of = [sum(n == name for n, _ in seen) for name in ("self_attention", "mlp")]
    assert layers_of == [3 + (3 - first if checkpointing else 0)] * 2


@pytest.mark.filterwarnings("ignore:Output seems independent")
def test_a_frozen_model_has_an_empty_gradient():
    _, grads = value_and_grad(minilora.loss)({}, random_base(TINY), random_batch(TINY), TINY)
    assert grads == {}


# ----------------------------------------------------------------------- leaves and switches


@PATHS
def test_a_trained_leaf_replaces_the_frozen_one_wherever_it_stands(ops):
    base, other = random_base(TINY, 0), random_base(TINY, 1)
    tokens = np.arange(6).reshape(2, 3)
    for path, leaf in flatten(other).items():
        adapters, mixed = {}, as_dtype(base, np.float32)
        set_leaf(adapters, path, leaf)
        set_leaf(mixed, path, leaf)
        got = model.forward(adapters, base, tokens, TINY, ops)
        assert bits(got) == bits(model.forward({}, mixed, tokens, TINY, ops))
        assert bits(got) != bits(model.forward({}, base, tokens, TINY, ops))


L0 = "model.layers.0"
UNREAD = [  # a place of every node of the trained tree
    "other", "other.weight", "model.other", "model.lm_head.weight", "model.layers.2.mlp.x.bias",
    "model.embed_tokens.bias", "lm_head.bias",
    "model.layers.-1.mlp.x.bias", "model.layers.other", f"{L0}.other", f"{L0}.q_proj.lora_A",
    f"{L0}.self_attn.up_proj.lora_A", f"{L0}.self_attn.lora_A", f"{L0}.mlp.q_proj.lora_A",
    f"{L0}.mlp.other", f"{L0}.input_layernorm.bias", f"{L0}.post_attention_layernorm.bias",
    "model.norm.bias", *(f"{L0}.self_attn.{name}.other" for name in ALL_LINEAR[:4]),
    *(f"{L0}.mlp.{name}.other" for name in ALL_LINEAR[4:]),
]  # fmt: skip


@PATHS
@pytest.mark.parametrize("path", UNREAD)
def test_a_leaf_that_nothing_reads_is_refused_wherever_it_stands(ops, path):
    adapters, frozen = adapted(random_base(TINY), target_modules=ALL_LINEAR)
    tokens = np.arange(4)[None]
    model.forward(adapters, frozen, tokens, TINY, ops)
    set_leaf(adapters, path, np.ones(3, np.float32))
    with pytest.raises(InputError, match=r"do not read (.*): remove it") as error:
        model.forward(adapters, frozen, tokens, TINY, ops)
    named = re.search("do not read (.*):", str(error.value))[1]
    assert f"{path}.".startswith(f"{named}.")


@PATHS
def test_an_adapter_needs_its_scaling_and_a_weight(ops):
    base, tokens = random_base(TINY), np.arange(4)[None]
    adapters, _ = adapted(base)
    node = adapters["model"]["layers"]["1"]["self_attn"]["v_proj"]
    scaling = node.pop("lora_scaling")
    with pytest.raises(InputError, match=r"^model.layers.1.self_attn.v_proj has no lora_scaling"):
        model.forward(adapters, base, tokens, TINY, ops)
    node["lora_scaling"] = scaling
    del base["model"]["layers"]["1"]["self_attn"]["v_proj"]["weight"]
    with pytest.raises(InputError, match=r"^the base has no model\.layers\.1.*weight that"):
        model.forward(adapters, base, tokens, TINY, ops)


@PATHS
@pytest.mark.parametrize("name", ALL_LINEAR)
def test_a_frozen_leaf_that_nothing_reads_is_refused(ops, name):
    adapters, frozen = adapted(random_base(TINY), target_modules=ALL_LINEAR)
    part = "self_attn" if name in ALL_LINEAR[:4] else "mlp"
    set_leaf(frozen, f"{L0}.{part}.{name}.other", 1.0)
    with pytest.raises(InputError, match=f"do not read {L0}.{part}.{name}.other:"):
        model.forward(adapters, frozen, np.arange(4)[None], TINY, ops)


@PATHS
@pytest.mark.parametrize("method", ["dora", "ia3", "bottleneck", "prompt", "p-tuning", "prefix"])
def test_the_bare_operations_refuse_the_leaves_of_other_methods(ops, method):
    config = LoraConfig(use_dora=True) if method == "dora" else MethodConfig(method)
    adapters, frozen = get_peft_model(random_base(TINY), config, 0)
    with pytest.raises(InputError, match=r"do not read .*: remove it"):
        model.forward(adapters, frozen, np.arange(4)[None], TINY, ops)


@PATHS
def test_logits_have_a_gradient_for_a_trained_head(ops):
    base, tokens = random_base(TINY, dtype=np.float64), np.arange(4)[None]
    head = as_dtype(also_train({}, base, ["head"]), np.float64)
    f = value_and_grad(lambda adapters: model.forward(adapters, base, tokens, TINY, ops).sum())
    states = model.hidden_states(
        model.parameters(head, base, ops), tokens, np.zeros_like(tokens), TINY, ops
    )
    # every logit is the product of a state with a row of the head: each row gets their sum
    expected = np.broadcast_to(states.sum(axis=(0, 1)), head["lm_head"]["weight"].shape)
    close(f(head)[1]["lm_head"]["weight"], expected)


def test_the_head_is_the_trained_one_or_the_bases_or_the_embedding():
    tied, untied = random_base(TINY), random_base(replace(TINY, tie_word_embeddings=False))
    embedding, own, new = tied["model"]["embed_tokens"]["weight"], untied["lm_head"]["weight"], 7
    assert model.lm_head(tied) is embedding
    assert model.lm_head(untied) is own
    for base in (tied, untied):
        assert model.lm_head(overlay(base, {"lm_head": {"weight": new}})) is new
    assert model.lm_head(overlay(tied, {"model": {"embed_tokens": {"weight": new}}})) is new


def test_the_environment_chooses_the_path_for_a_whole_run():
    ask = "from minilora import kernels, layers; print(kernels.ops is layers)"
    for value, answer in (("1", "True"), ("", "False")):
        env = {**os.environ, "MINILORA_PLAIN": value}
        out = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
        assert out.stdout.strip() == answer, out.stderr

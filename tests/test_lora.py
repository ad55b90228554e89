"""LoRA: the initialization, the targets, and merging as an equation."""

import math
import re
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from models import (
    EVERY_BASE,
    PATHS,
    TINY,
    U64,
    adapted,
    bits,
    configs,
    fast_model,
    fingerprint,
    moved,
    quantized,
    random_base,
    random_batch,
    random_model,
    read_only,
    seeds,
    target_sets,
    weightless,
)
from outcomes import refused

import minilora
from minilora import lora
from minilora.config import ALL_LINEAR, LoraConfig, ModelConfig
from minilora.formats.hf_folder import shapes
from minilora.layers import value_and_grad
from minilora.methods.replaced import GROUPS, also_train
from minilora.model import Model, Source, forward, loss
from minilora.tree import flatten, get, layer_of, named_leaves, without

Q = [f"model.layers.{i}.self_attn.q_proj" for i in range(TINY.num_hidden_layers)]


def fresh(base, seed=0, **lora_fields):
    return lora.init(base, LoraConfig(**lora_fields), seed)


# --------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    "names, r, expected",
    [(("q_proj", "v_proj"), 8, 4_194_304), (("all-linear",), 64, 159_907_840)],
)
def test_llama_7b(names, r, expected):
    # Σ r·(in + out) over the shapes of LLaMA-7B
    base = weightless(ModelConfig(32000, 4096, 11008, 32, 32, 32, 128))
    paths = lora.target_paths(base, LoraConfig(target_modules=names))
    assert sum(r * sum(get(base, path)["weight"].shape) for path in paths) == expected


# ------------------------------------------------------------------------------------ start


@EVERY_BASE
@PATHS
@settings(max_examples=10)
@given(configs(), seeds, target_sets)
def test_a_fresh_adapter_changes_no_bit(scheme, ops, config, seed, names):
    model = quantized(random_model(config, seed, ops=ops), scheme)
    adapters = fresh(model.base, seed, target_modules=names)
    more = also_train(adapters, model.base, GROUPS)
    tokens = random_batch(config, seed)["tokens"]
    before, *after = (bits(forward(tree, model, tokens)) for tree in ({}, adapters, more))
    assert after == [before, before]


def test_a_is_uniform_and_b_is_zero():
    base = {"model": {"layers": {"0": {"q_proj": {"weight": np.zeros((3, 100))}}}}}
    node = get(fresh(base, target_modules=("q_proj",), r=1000), "model.layers.0.q_proj")
    a, b = node["lora_A"], node["lora_B"]
    assert a.dtype == b.dtype == np.float32 and a.shape == (1000, 100)
    assert np.array_equal(b, np.zeros((3, 1000))) and np.abs(a).max() <= np.float32(1 / 10)
    u, n = (a.ravel() * 10 + 1) / 2, a.size  # in [0, 1]
    # Kolmogorov and Smirnov: the largest distance exceeds 3/√n once in 2e^18 runs
    assert np.abs(np.sort(u) - (np.arange(n) + 0.5) / n).max() < 3 / math.sqrt(n)
    assert abs(np.corrcoef(u[:-100], u[100:])[0, 1]) < 5 / math.sqrt(n)


def test_every_projection_has_its_own_a_and_the_generator_decides_it():
    base, config = random_base(), LoraConfig(target_modules=ALL_LINEAR)
    one, other = (lora.init(base, config, seed) for seed in (0, 1))
    again, _ = minilora.get_peft_model(Model(TINY, read_only(base)), config)
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    firsts = {w[0, 0] for path, w in named_leaves(one) if path.endswith("lora_A")}
    assert len(firsts) == 14


def test_at_the_start_only_b_has_a_gradient():
    # ∂L/∂A is a multiple of B, which is zero: the first step changes only B.
    model = random_model()
    adapters = fresh(model.base, target_modules=ALL_LINEAR)
    _, grads = value_and_grad(loss)(adapters, model, random_batch())
    for path, g in named_leaves(grads):
        assert (np.abs(g).max() > 0) == path.endswith("lora_B"), path


def test_plain_lora_has_no_magnitude_and_no_other_start():
    for fields in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with refused("use get_peft_model for DoRA, PiSSA and LoftQ"):
            lora.init(random_base(), LoraConfig(**fields), 0)


# ---------------------------------------------------------------------------------- targets


NAMES = (*ALL_LINEAR, "self_attn.q_proj", "mlp.up_proj", Q[1])
# a string is an expression that matches a whole path, as in PEFT
EXPRESSIONS = (r".*\.(q|v)_proj", ".*_proj", r".*layers\.0\..*_proj", ".*(all-linear|up_proj)")
LAYERS = {None: (0, 1), 1: (1,), (0,): (0,), (0, 1): (0, 1)}  # layers_to_transform: the layers


def lists_or_expressions(*more):
    names = st.lists(st.sampled_from((*NAMES, *more)), min_size=1)
    return names | st.sampled_from(EXPRESSIONS)


def is_named(path, rule):
    if isinstance(rule, str):
        return rule == "all-linear" or re.fullmatch(rule, path)
    return any(name == "all-linear" or f".{path}".endswith(f".{name}") for name in rule)


@given(
    st.sampled_from(["all-linear", ["all-linear"]]) | lists_or_expressions(),
    st.just([]) | lists_or_expressions("lm_head", "mlp", "model"),  # no projections
    st.sampled_from([*LAYERS]),
)
@example(["q_proj", Q[1]], [], (0,))
def test_the_targets(targets, excluded, chosen):
    assume(chosen is None or targets not in EXPRESSIONS)
    base = random_base(biases=("q_proj",))
    config = LoraConfig(
        target_modules=targets, exclude_modules=excluded or None, layers_to_transform=chosen
    )
    paths = [path.removesuffix(".weight") for path in shapes(TINY) if "_proj" in path]
    there = [path for path in paths if layer_of(path) in LAYERS[chosen]]
    named = [path for path in there if is_named(path, targets)]
    expected = [path for path in named if not is_named(path, excluded)]
    if not expected:
        with refused("no targets: name a module and a layer"):
            lora.target_paths(base, config)
        return
    assert lora.target_paths(base, config) == expected
    rules = [] if isinstance(targets, str) else targets
    nowhere = [rule for rule in rules if not any(is_named(path, [rule]) for path in there)]
    with (
        refused("`exclude_modules` has no effect") if excluded and named == expected
        else refused(f"`target_modules` has '{nowhere[0]}', which is in no layer") if nowhere
        else nullcontext()
    ):  # fmt: skip
        lora.check_patterns(base, config)


REFUSED = [
    *(
        ({"target_modules": ("q_proj", name)}, f"`target_modules` has '{name}', which matches no")
        for name in ("query", "proj", r".*v_proj")
    ),
    ({"target_modules": ("q_proj", "lm_head")}, "matches lm_head, .*not a projection"),
    ({"target_modules": ".*mlp.*"}, "matches model.layers.0.mlp, "),
    ({"rank_pattern": {"(": 1}}, "is not a regular expression"),
    *(
        ({"layers_to_transform": (0, n)}, f"`layers_to_transform` has {n}: .* layers 0 to 1")
        for n in (-1, 2)
    ),
    # re.fullmatch of the whole path finds no q_proj in "q_proj"; a list compares the end
    ({"target_modules": "q_proj"}, r"'q_proj'.* whole path.* such as '\.\*q_proj'"),
    ({"target_modules": ["all-linear", "q_proj"]}, "all-linear and 'q_proj': give one"),
    ({"exclude_modules": ("q_proj", "vproj")}, "exclude_modules.* 'vproj'.* matches nothing"),
]


@pytest.mark.parametrize("fields, message", REFUSED)
def test_what_would_adapt_other_modules_than_meant_is_refused(fields, message):
    with refused(message):
        fresh(random_base(), **fields)


# ---------------------------------------------------------------------------------- merging


@EVERY_BASE
@settings(max_examples=20)
@given(configs(), seeds, target_sets, st.sampled_from([1, 2, 4]))
def test_merging_is_an_equation_between_two_calls(scheme, config, seed, names, r):
    # in float64, where a model's ill-conditioned places do not matter; α/r is a power of two,
    # because ΔW takes the scaling in float32
    model = quantized(fast_model(config, seed, np.float64), scheme)
    adapters, model = adapted(model, seed, target_modules=names, r=r, lora_alpha=1)
    rng, tokens = np.random.default_rng(seed), random_batch(config, seed)["tokens"]
    more = also_train(adapters, model.base, GROUPS)
    more = moved(more, lambda w: w + rng.standard_normal(w.shape) / 4)
    before = forward({}, model, tokens)
    for trained in (adapters, more):
        apart = forward(trained, model, tokens)
        together = forward({}, minilora.merge(trained, model, np.float64), tokens)
        assert np.abs(before - apart).max() > 0
        # a thousand roundings, each amplified by no more than an RMSNorm near zero, 1/√ε, squared
        bound = 1e8 * U64 * max(1, np.abs(apart).max())
        np.testing.assert_allclose(together, apart, rtol=0, atol=bound)


@EVERY_BASE
def test_merging_makes_a_dense_tree_with_memory_of_its_own(scheme):
    model = quantized(fast_model(), scheme)._replace(source=Source("micro"))
    base, adapters = model.base, adapted(model)[0]
    adapters = also_train(adapters, base, GROUPS)
    before = fingerprint(base), fingerprint(adapters)
    merged = minilora.merge(adapters, model, np.float16)
    assert merged == model._replace(base=merged.base, source=Source())  # no file has its weights
    biases = [f"{path}.bias" for path in lora.adapted_paths(adapters)]
    assert flatten(merged.base).keys() == {*flatten(base), "lm_head.weight", *biases}
    for path, w in named_leaves(merged.base):
        assert type(w) is np.ndarray and w.dtype == np.float16, path
        w += 1
    assert before == (fingerprint(base), fingerprint(adapters))


def test_what_is_trained_with_the_factors_starts_from_what_is_there():
    base = random_base(biases=("q_proj",))
    once = also_train(fresh(base), base, ("bias", "norm"))
    own, copy = (get(tree, Q[0])["bias"] for tree in (base, once))
    assert bits(own) == bits(copy) and copy is not own
    assert not once["model"]["layers"]["0"]["self_attn"]["v_proj"]["bias"].any()
    # what an adapter has trained already is not reset
    trained = moved(once, lambda w: w + 1)
    again = also_train(trained, base, GROUPS)
    assert fingerprint(without(again, "lm_head")) == fingerprint(trained) and "lm_head" in again
    full, _ = minilora.get_peft_model(Model(TINY, base), minilora.MethodConfig("full"))
    assert not any(np.shares_memory(w, get(base, path)) for path, w in named_leaves(full))


@pytest.mark.parametrize(
    "leaf, merged, bad, dtype",
    [
        ("lora_B", "weight", np.inf, np.float32), ("lora_B", "weight", 1e5, np.float16),
        ("bias", "bias", np.nan, np.float32),
    ],
)  # fmt: skip
def test_a_merge_that_is_not_finite_is_refused_by_name(leaf, merged, bad, dtype):
    adapters, model = adapted(random_model())
    adapters = also_train(adapters, model.base, ("bias",))
    get(adapters, Q[1])[leaf].flat[:2] = bad
    with refused(f"make {Q[1]}.{merged} not finite"):
        minilora.merge(adapters, model, dtype)


@pytest.mark.parametrize("dtype", ["int8", "half precision"])
def test_a_merge_in_another_type_than_a_float_is_refused(dtype):
    with refused("`dtype` must be a float type of NumPy, got"):
        minilora.merge({}, random_model(), dtype)


def test_a_merge_rounds_once_after_the_sum():
    """If W₀ were rounded before the sum, to 1, the result would be 1, too."""
    unit, one = float(np.finfo(np.float32).eps), np.ones((1, 1))
    base = {"q_proj": {"weight": (1 + 3 / 8 * unit) * one}}
    adapter = {"lora_A": one, "lora_B": 2 / 8 * unit * one, "lora_scaling": 1, "lora_dropout": 0}
    merged = minilora.merge({"q_proj": adapter}, Model(TINY, base)).base["q_proj"]["weight"]
    assert merged.dtype == np.float32 and merged == 1 + unit  # to which the sum is nearer

"""LoRA: counts of parameters, the initialization, and merging as an equation of two calls."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    as_dtype,
    bits,
    configs,
    fingerprint,
    projection_shapes,
    quantized,
    random_base,
    random_batch,
    read_only,
    seeds,
    target_sets,
)

import minilora
from minilora import layers, lora, model
from minilora.config import ALL_LINEAR, ATTENTION, InputError, LoraConfig
from minilora.kernels import fused
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.tree import arrays, flatten, get, named_leaves, num_parameters, set_leaf

U32, U64 = 2.0**-24, 2.0**-53
EVERY_BASE = pytest.mark.parametrize("scheme", ["none", "int8", "fp4", "nf4", "nf4-dq"])

few = settings(max_examples=25)


def fresh(base, seed=0, **lora_fields):
    return lora.init(base, LoraConfig(**lora_fields), seed)


# --------------------------------------------------------------------------------- counting


@given(configs(), target_sets, st.integers(1, 9), st.booleans())
def test_parameter_counts(config, names, r, four_bit):
    base = quantized(random_base(config)) if four_bit else random_base(config)
    adapters = fresh(base, target_modules=names, r=r)
    L, shapes = config.num_hidden_layers, projection_shapes(config)
    # a projection of (out, in) gets r·(out + in)
    assert num_parameters(adapters) == L * sum(r * sum(shapes[name]) for name in names)
    assert num_parameters(base) == num_parameters(random_base(config))


@given(configs(), st.integers(1, 9))
def test_the_usual_counts_in_closed_form(config, r):
    # where the heads together are as wide as the model: q and v, L·r·(3d + k); all seven,
    # L·r·(9d + 2k + 3f)
    d = config.num_attention_heads * config.head_dim
    config = config.__class__(**{**vars(config), "hidden_size": d})
    L, k = config.num_hidden_layers, config.num_key_value_heads * config.head_dim
    base, f = random_base(config), config.intermediate_size
    assert num_parameters(fresh(base, r=r)) == L * r * (3 * d + k)
    for names in (ALL_LINEAR, ("all-linear",), ("q_proj", "all-linear")):
        assert num_parameters(fresh(base, r=r, target_modules=names)) == L * r * (
            9 * d + 2 * k + 3 * f
        )


@pytest.mark.parametrize(
    "names, r, expected",
    [(("q_proj", "v_proj"), 8, 4_194_304), (("all-linear",), 64, 159_907_840)],
)
def test_llama_7b(names, r, expected):
    # Σ r·(in + out) over the shapes of LLaMA-7B; weights without memory, as only shapes count
    def empty(out, into):
        return {"weight": np.broadcast_to(np.float32(0), (out, into))}

    layer = {
        "self_attn": {name: empty(4096, 4096) for name in ATTENTION},
        "mlp": {
            "gate_proj": empty(11008, 4096),
            "up_proj": empty(11008, 4096),
            "down_proj": empty(4096, 11008),
        },
    }
    base = {"model": {"layers": {str(i): layer for i in range(32)}}}
    config = LoraConfig(target_modules=names, r=r)
    shapes = [get(base, path)["weight"].shape for path in lora.target_paths(base, config)]
    assert sum(r * (out + into) for out, into in shapes) == expected


@given(configs(), st.sets(st.sampled_from(["norm", "bias", "head"])))
def test_counts_of_leaves_trained_with_the_factors(config, groups):
    base = random_base(config)
    adapters = fresh(base, target_modules=ALL_LINEAR)
    L, D, shapes = config.num_hidden_layers, config.hidden_size, projection_shapes(config)
    expected = {
        "norm": (2 * L + 1) * D + config.qk_norm * L * 2 * config.head_dim,
        "bias": L * sum(out for out, _ in shapes.values()),
        "head": config.vocab_size * D,
    }
    more = also_train(adapters, base, groups)
    assert num_parameters(more) - num_parameters(adapters) == sum(expected[g] for g in groups)


# ------------------------------------------------------------------------------------ start


@EVERY_BASE
@pytest.mark.parametrize("ops", [layers, fused], ids=["plain", "fused"])
@settings(max_examples=10)
@given(configs(), seeds, target_sets)
def test_a_fresh_adapter_changes_no_bit(scheme, ops, config, seed, names):
    base = quantized(random_base(config, seed), scheme)
    adapters = fresh(base, seed, target_modules=names)
    tokens = random_batch(config, seed)["tokens"]
    before = model.forward({}, base, tokens, config, ops)
    assert bits(before) == bits(model.forward(adapters, base, tokens, config, ops))
    more = also_train(adapters, base, ("norm", "bias", "head"))
    assert bits(before) == bits(model.forward(more, base, tokens, config, ops))


@given(configs(), seeds, st.integers(1, 8))
def test_a_is_uniform_and_b_is_zero(config, seed, r):
    adapters = fresh(random_base(config), seed, target_modules=ALL_LINEAR, r=r)
    for path, w in named_leaves(arrays(adapters)):
        assert w.dtype == np.float32
        if path.endswith("lora_B"):
            assert w.shape[1] == r and bits(w) == bytes(w.nbytes)
        else:
            assert w.shape[0] == r and (np.abs(w) <= np.float32(1 / math.sqrt(w.shape[1]))).all()


def test_a_fills_its_range_evenly():
    base = {"model": {"layers": {"0": {"q_proj": {"weight": np.zeros((1, 100), np.float32)}}}}}
    a = fresh(base, target_modules=("q_proj",), r=1000)["model"]["layers"]["0"]["q_proj"]["lora_A"]
    u = np.sort((a.ravel() * 10 + 1) / 2)  # in [0, 1]
    n = u.size
    # Kolmogorov and Smirnov: the largest distance exceeds 3/√n once in 2e^18 runs
    assert np.abs(u - (np.arange(n) + 0.5) / n).max() < 3 / math.sqrt(n)
    assert abs(np.corrcoef(a[:-1].ravel(), a[1:].ravel())[0, 1]) < 5 / math.sqrt(n)


def test_every_projection_has_its_own_a_and_the_generator_decides_it():
    base = random_base(TINY)
    one, same, other = (fresh(base, s, target_modules=ALL_LINEAR) for s in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    firsts = [w[0, 0] for path, w in named_leaves(one) if path.endswith("lora_A")]
    assert len(set(firsts)) == len(firsts) == 14


def test_at_the_start_only_b_has_a_gradient():
    # ∂L/∂A is a multiple of B, which is zero: the first step changes only B.
    base = random_base(TINY)
    adapters = fresh(base, target_modules=ALL_LINEAR)
    _, grads = value_and_grad(minilora.loss)(adapters, base, random_batch(TINY), TINY)
    for path, g in named_leaves(grads):
        assert (np.abs(g).max() > 0) == path.endswith("lora_B"), path


def test_init_leaves_the_base_alone():
    base = read_only(random_base(TINY))
    before = fingerprint(base)
    fresh(base)
    assert fingerprint(base) == before


@given(st.integers(1, 64), st.floats(0.5, 64), st.booleans())
def test_the_scaling_is_next_to_the_factors(r, alpha, rs):
    config = {"r": r, "lora_alpha": alpha, "use_rslora": rs, "lora_dropout": 0.25}
    node = get(fresh(random_base(TINY), **config), "model.layers.1.self_attn.v_proj")
    assert node["lora_scaling"] == alpha / (math.sqrt(r) if rs else r)
    assert node["lora_dropout"] == 0.25


def test_exceptions_in_rank_and_alpha():
    adapters = fresh(
        random_base(TINY), r=4, lora_alpha=8, rank_pattern={"v_proj": 2},
        alpha_pattern={"model.layers.0.self_attn.v_proj": 32},
    )  # fmt: skip
    for layer, name, r, scaling in (
        ("0", "q_proj", 4, 2), ("1", "q_proj", 4, 2), ("0", "v_proj", 2, 16), ("1", "v_proj", 2, 4),
    ):  # fmt: skip
        node = get(adapters, f"model.layers.{layer}.self_attn.{name}")
        assert node["lora_A"].shape[0] == r
        assert node["lora_scaling"] == scaling


# ---------------------------------------------------------------------------------- targets


def test_targets_are_names_or_paths_or_all():
    base = random_base(TINY)
    path = "model.layers.1.mlp.up_proj"
    assert lora.target_paths(base, LoraConfig(target_modules=(path,))) == [path]
    assert len(lora.target_paths(base, LoraConfig(target_modules=(path, "q_proj")))) == 3
    every = lora.target_paths(base, LoraConfig(target_modules=("all-linear",)))
    assert len(every) == 14 and not any("head" in p or "embed" in p for p in every)
    one = LoraConfig(target_modules=("self_attn.q_proj",), layers_to_transform=(1,))
    assert lora.target_paths(base, one) == ["model.layers.1.self_attn.q_proj"]


def test_only_the_layers_have_projections():
    base = random_base(TINY)
    set_leaf(base, "model.extra.q_proj.weight", np.ones((2, 2), np.float32))
    for name in ("q_proj", "all-linear"):
        paths = lora.target_paths(base, LoraConfig(target_modules=(name,)))
        assert paths and all(path.startswith("model.layers.") for path in paths)
    with pytest.raises(InputError, match=r"extra\.q_proj, which matches nothing"):
        lora.target_paths(base, LoraConfig(target_modules=("extra.q_proj",)))


def test_targets_come_in_the_order_of_the_tree_and_each_once():
    base = random_base(TINY, biases=("q_proj",))
    config = LoraConfig(target_modules=("up_proj", "q_proj", "self_attn.q_proj"))
    paths = [
        f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    ]
    assert lora.target_paths(base, config) == paths


@pytest.mark.parametrize(
    "name", ["query", "proj", "lm_head", "model.layers.2.self_attn.q_proj", ""]
)
def test_a_target_that_matches_nothing_is_refused(name):
    with pytest.raises(
        InputError, match=f"`target_modules` has {name}, which matches nothing.*q_proj, k_proj"
    ):
        fresh(random_base(TINY), target_modules=("q_proj", name))


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(InputError, match=f"`layers_to_transform` has {layer}: .* layers 0 to 1"):
        fresh(random_base(TINY), layers_to_transform=(0, layer))


@pytest.mark.parametrize("empty", [{"target_modules": ()}, {"layers_to_transform": ()}])
def test_an_adapter_on_nothing_is_refused(empty):
    with pytest.raises(InputError):
        fresh(random_base(TINY), **empty)


# ---------------------------------------------------------------------------------- merging


def sum_bound(n, *terms):
    """n roundings of a sum whose terms are `terms` in size, and as much again to be safe."""
    return 2 * n * U32 * sum(terms)


@EVERY_BASE
@few
@given(configs(), seeds, st.integers(1, 4), st.booleans())
def test_a_merged_projection_equals_the_unmerged_one(scheme, config, seed, r, rs):
    base = quantized(random_base(config, seed), scheme)
    adapters, frozen = adapted(base, seed, target_modules=ALL_LINEAR, r=r, use_rslora=rs)
    merged, rng = minilora.merge(adapters, frozen), np.random.default_rng(seed)
    for path in lora.adapted_paths(adapters):
        node = get(frozen, path) | get(adapters, path)
        w, s = layers.dense(node["weight"]), node["lora_scaling"]
        x = rng.standard_normal((3, w.shape[1]), dtype=np.float32)
        apart, together = layers.linear(x, node), layers.linear(x, get(merged, path))
        # Each side is |x||W| and s|x||A||B| in size at most. A number passes through two sums of
        # in and r terms, one scaling, and the sum of both; merged, through the rounding of W'.
        n, a, b = w.shape[1] + r + 5, np.abs(node["lora_A"]), np.abs(node["lora_B"])
        size = np.abs(x) @ np.abs(w).T, s * (np.abs(x) @ a.T @ b.T)
        assert (np.abs(apart - together) <= sum_bound(n, *size)).all()


@few
@given(configs(), seeds, target_sets, st.sampled_from([1, 2, 4]))
def test_merging_is_an_equation_between_two_calls(config, seed, names, r):
    # in float64, where a model's ill-conditioned places do not matter; α/r is a power of two,
    # because ΔW takes the scaling in float32
    base = random_base(config, seed, np.float64)
    adapters, frozen = adapted(base, seed, target_modules=names, r=r, lora_alpha=1)
    tokens = random_batch(config, seed)["tokens"]
    apart = minilora.forward(adapters, frozen, tokens, config)
    together = minilora.forward({}, minilora.merge(adapters, frozen, np.float64), tokens, config)
    assert np.abs(minilora.forward({}, frozen, tokens, config) - apart).max() > 0
    # a thousand roundings, each amplified by no more than an RMSNorm near zero, 1/√ε, squared
    np.testing.assert_allclose(
        together, apart, rtol=0, atol=1e8 * U64 * max(1, np.abs(apart).max())
    )


@EVERY_BASE
@pytest.mark.parametrize("seed", range(5))
def test_a_merged_model_equals_the_unmerged_one_in_float32(scheme, seed):
    # TINY's weights are of order one and its norms not near zero: an error grows by less than ten
    # from layer to layer. A logit has 2 layers of 4 sums in a row above it, each of 12 + 8 terms.
    base = quantized(random_base(TINY, seed), scheme)
    adapters, frozen = adapted(base, seed, target_modules=ALL_LINEAR)
    tokens = random_batch(TINY, seed)["tokens"]
    apart = minilora.forward(adapters, frozen, tokens, TINY)
    together = minilora.forward({}, minilora.merge(adapters, frozen), tokens, TINY)
    bound = 2 * 4 * 20 * U32 * 10 * np.abs(apart).max()
    np.testing.assert_allclose(together, apart, rtol=0, atol=bound)


@EVERY_BASE
def test_merging_makes_a_new_dense_tree(scheme):
    base = quantized(random_base(TINY), scheme)
    adapters, frozen = adapted(base)
    adapters = also_train(adapters, frozen, ("norm", "bias", "head"))
    adapters["lm_head"]["weight"] += 1
    before = fingerprint(frozen), fingerprint(adapters)
    merged = minilora.merge(adapters, frozen)
    assert before == (fingerprint(frozen), fingerprint(adapters))
    biases = [f"{path}.bias" for path in lora.adapted_paths(adapters)]
    assert flatten(merged).keys() == {*flatten(base), "lm_head.weight", *biases}
    for path, w in named_leaves(merged):
        assert type(w) is np.ndarray and w.dtype == np.float32, path


def test_the_merged_tree_has_memory_of_its_own():
    adapters, frozen = adapted(random_base(TINY))
    adapters = also_train(adapters, frozen, ("norm", "bias", "head"))
    before = fingerprint(frozen), fingerprint(adapters)
    for _, w in named_leaves(minilora.merge(adapters, frozen)):
        w += 1
    assert before == (fingerprint(frozen), fingerprint(adapters))


def test_what_is_not_adapted_merges_to_its_own_bits():
    base = random_base(TINY)
    adapters, frozen = adapted(base)
    merged = flatten(minilora.merge(adapters, frozen))
    for path, w in named_leaves(base):
        same = bits(merged[path]) == bits(w)
        assert same != path.endswith(("q_proj.weight", "v_proj.weight"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_merging_to_another_dtype_casts_every_leaf(dtype):
    adapters, frozen = adapted(random_base(TINY))
    adapters = also_train(adapters, frozen, ("norm", "bias", "head"))
    for path, w in named_leaves(minilora.merge(adapters, frozen, dtype)):
        assert w.dtype == dtype, path


def test_replaced_leaves_move_in_and_biases_add():
    base = random_base(TINY, biases=("q_proj",))
    adapters, frozen = adapted(base)
    adapters = as_dtype(also_train(adapters, frozen, ("norm", "bias", "head")), np.float32)
    rng, tokens = np.random.default_rng(0), random_batch(TINY)["tokens"]
    for path, w in named_leaves(arrays(adapters)):
        set_leaf(adapters, path, w + rng.standard_normal(w.shape, dtype=np.float32) / 4)
    apart = minilora.forward(adapters, frozen, tokens, TINY)
    together = minilora.forward({}, minilora.merge(adapters, frozen), tokens, TINY)
    np.testing.assert_allclose(together, apart, rtol=0, atol=1600 * U32 * np.abs(apart).max())


def test_a_trained_bias_starts_from_the_bases_own():
    base = random_base(TINY, biases=("q_proj",))
    attn = also_train(fresh(base), base, ("bias",))["model"]["layers"]["0"]["self_attn"]
    own = get(base, "model.layers.0.self_attn.q_proj.bias")
    assert bits(attn["q_proj"]["bias"]) == bits(own) and attn["q_proj"]["bias"] is not own
    assert not attn["v_proj"]["bias"].any()


@pytest.mark.parametrize(
    "leaf, bad",
    [
        ("self_attn.q_proj.lora_B", np.nan),
        ("self_attn.q_proj.lora_B", np.inf),
        ("self_attn.q_proj.bias", np.nan),
        ("self_attn.q_proj.bias", np.inf),
    ],
)
def test_a_merge_that_is_not_finite_is_refused_by_name(leaf, bad):
    adapters, frozen = adapted(random_base(TINY))
    adapters = also_train(adapters, frozen, ("bias",))
    get(adapters, f"model.layers.1.{leaf}").flat[0] = bad
    path = f"model.layers.1.{leaf.replace('lora_B', 'weight')}"
    with pytest.raises(InputError, match=f"make {path} not finite"):
        minilora.merge(adapters, frozen)


Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "path",
    [
        "model.other.weight", "model.layers.9.input_layernorm.weight", f"{Q0}.ia3_l",
        f"{Q0}.lora_magnitude_vector", f"{Q0}.bottleneck_up", "model.prompt_embeddings",
        "lm_head.bottleneck_up", "model.layers.0.self_attn.prefix_k", f"{Q0}.lora_stack.0.lora_A",
    ],
)  # fmt: skip
def test_a_leaf_that_merging_does_not_know_is_refused_by_name(path):
    adapters, base = adapted(random_base(TINY))
    set_leaf(adapters, path, np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match=r"do not read (.*): remove it") as error:
        lora.merge(adapters, base, layers)
    named = re.search("do not read (.*):", str(error.value))[1]
    assert f"{path}.".startswith(f"{named}.")


@pytest.mark.parametrize("ops", [layers, fused])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_merge_rounds_once_after_the_sum(ops, dtype):
    """If W₀ were rounded before the sum, to 1, the result would be 1, too."""
    adapters, frozen = adapted(random_base(TINY, dtype=np.float64), r=1, lora_alpha=1)
    unit = float(np.finfo(dtype).eps)
    weight, trained = get(frozen, Q0)["weight"], get(adapters, Q0)
    weight[:] = 1 + 3 / 8 * unit
    trained["lora_A"][:] = 1
    trained["lora_B"][:] = 2 / 8 * unit  # the sum is nearer to 1 + unit
    merged = get(lora.merge(adapters, frozen, ops, dtype), Q0)["weight"]
    assert merged.dtype == dtype and (merged == 1 + unit).all()


def test_a_merge_that_overflows_half_precision_is_refused():
    adapters, frozen = adapted(random_base(TINY))
    get(adapters, "model.layers.0.self_attn.q_proj")["lora_B"][:] = 1e5
    path = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(InputError, match=f"make {path} not finite"):
        minilora.merge(adapters, frozen, np.float16)


def test_what_an_adapter_has_trained_already_is_not_reset():
    adapters, frozen = adapted(random_base(TINY))
    once = also_train(adapters, frozen, ("norm",))
    gain = once["model"]["norm"]["weight"] = once["model"]["norm"]["weight"] + 1
    again = also_train(once, frozen, ("norm", "head"))
    assert np.array_equal(again["model"]["norm"]["weight"], gain)
    assert "lm_head" in again


def test_the_modules_of_a_model():
    """PyTorch's named_modules, from the decoder to a projection, and a tied head, too."""
    found = lora.modules(random_base(TINY))
    assert {"model", "model.layers", "model.layers.0", Q0, "model.norm", "lm_head"} <= found
    # model, layers, embedding, norm, head; in a layer itself, two sublayers, two norms, projections
    assert len(found) == 5 + 2 * (1 + 2 + 2 + 7)

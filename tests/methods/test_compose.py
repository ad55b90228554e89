"""Several adapters on one base: shared, stacked, one per row, combined, and their interference."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from autograd.test_util import check_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    bits,
    configs,
    fingerprint,
    moved,
    quantized,
    random_base,
    random_batch,
    read_only,
    seeds,
    target_sets,
)

import minilora
from minilora import data, layers, lora
from minilora.config import ALL_LINEAR, InputError, LoraConfig, TrainConfig
from minilora.evaluation.memory import nbytes
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.generation import generate
from minilora.kernels import fused
from minilora.layers import value_and_grad
from minilora.methods import compose
from minilora.methods.method import MethodConfig
from minilora.methods.registry import get_peft_model
from minilora.methods.replaced import also_train
from minilora.methods.several import per_row, rows_linear, stack, stacked_linear
from minilora.tree import arrays, flatten, get, named_leaves, num_parameters, set_leaf

U32, U64 = 2.0**-24, 2.0**-53
EVERY_BASE = pytest.mark.parametrize("scheme", ["none", "int8", "nf4-dq"])

few = settings(max_examples=25)


def several(base, n=3, **fields):
    """n random adapters of different ranks on the same projections, each as large as the weight."""
    return [adapted(base, seed=i, r=i + 1, lora_alpha=3, **fields)[0] for i in range(n)]


def deltas(adapters):
    """{path: ΔW} in float64."""
    return {
        path: get(adapters, path)["lora_scaling"]
        * (np.float64(get(adapters, path)["lora_B"]) @ get(adapters, path)["lora_A"])
        for path in lora.adapted_paths(adapters)
    }


def weighted(adapters, weights):
    """{path: Σ wᵢ·ΔWᵢ} in float64."""
    total: dict = {}
    for tree, w in zip(adapters, weights):
        for path, dw in deltas(tree).items():
            total[path] = total.get(path, 0) + w * dw
    return total


# -------------------------------------------------------------------------------- switching


@EVERY_BASE
def test_another_adapter_shares_the_base_and_none_is_the_base(scheme):
    base = quantized(random_base(TINY), scheme)
    tokens, before = random_batch(TINY)["tokens"], fingerprint(base)
    outputs = {bits(minilora.forward({}, base, tokens, TINY))}
    for adapters in several(base):
        outputs.add(bits(minilora.forward(adapters, base, tokens, TINY)))
    assert len(outputs) == 4 and fingerprint(base) == before


# --------------------------------------------------------------------------------- stacking


@EVERY_BASE
@few
@given(configs(), seeds, target_sets)
def test_a_stacked_adapter_computes_what_it_did_bit_for_bit(scheme, config, seed, names):
    base = quantized(random_base(config, seed), scheme)
    adapters, frozen = adapted(base, seed, target_modules=names, lora_alpha=3)
    tokens = random_batch(config, seed)["tokens"]
    stacked = stack(adapters, frozen)
    alone = minilora.forward(adapters, frozen, tokens, config)
    assert bits(minilora.forward({}, stacked, tokens, config)) == bits(alone)
    # and a fresh adapter on top, whose B is zero, adds exactly nothing
    fresh, on_top = minilora.get_peft_model(stacked, LoraConfig(r=2), np.random.default_rng(0))
    assert bits(minilora.forward(fresh, on_top, tokens, config)) == bits(alone)


def test_what_stands_in_a_stack_is_shared_counted_and_not_in_the_pair_it_came_from():
    base = random_base(TINY)
    adapters, frozen = adapted(base)
    before = fingerprint(frozen)
    stacked = stack(adapters, frozen)
    assert fingerprint(frozen) == before
    assert num_parameters(stacked) == num_parameters(base) + num_parameters(adapters)
    assert nbytes(stacked) == nbytes(base) + nbytes(adapters)
    shared = [w for path, w in named_leaves(arrays(stacked)) if ".lora_stack." in path]
    assert {id(w) for w in shared} == {id(w) for _, w in named_leaves(arrays(adapters))}


def test_training_on_a_stack_moves_the_new_adapter_and_nothing_under_it():
    base = read_only(random_base(TINY))  # to write any frozen array would raise
    adapters, frozen = adapted(base, target_modules=ALL_LINEAR)
    stacked = stack(read_only(adapters), frozen)
    fresh, on_top = minilora.get_peft_model(stacked, LoraConfig(r=2), np.random.default_rng(0))
    before, batch = fingerprint(on_top), random_batch(TINY)
    _, gradient = value_and_grad(minilora.loss)(fresh, on_top, batch, TINY)
    assert flatten(gradient).keys() == flatten(arrays(fresh)).keys()
    examples = [data.Example([1, 2, 3, 4], [0, 1, 1, 1])]
    config = TrainConfig(iters=3, learning_rate=1e-2, warmup_ratio=0)
    trained, _ = minilora.train(fresh, on_top, examples, TINY, config)
    assert fingerprint(on_top) == before
    assert all(bits(w) != bits(flatten(fresh)[path]) for path, w in named_leaves(arrays(trained)))


def test_an_adapter_upon_a_stack_is_saved_alone_and_loaded_onto_it(tmp_path):
    base, tokens = random_base(TINY), random_batch(TINY)["tokens"]
    stacked = stack(*adapted(base))
    adapters, frozen = adapted(stacked, seed=1, r=3, target_modules=("q_proj", "up_proj"))
    save_adapter(tmp_path, adapters, frozen, compose.config_of_adapter(adapters), "tiny")
    again, on_top, _ = load_adapter(tmp_path, stacked)
    assert flatten(again).keys() == flatten(adapters).keys()
    ours, theirs = (
        minilora.forward(*pair, tokens, TINY) for pair in ((adapters, frozen), (again, on_top))
    )
    assert bits(ours) == bits(theirs)


def test_the_gradient_passes_through_a_stack():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    under = {"lora_A": normal((2, 4)), "lora_B": normal((3, 2)), "lora_scaling": 1.5}
    node = {"weight": normal((3, 4)), "lora_stack": {"0": under, "1": under}}
    check_grads(lambda x: stacked_linear(layers.linear, x, node), modes=["rev"], order=1)(
        normal((2, 5, 4))
    )


@EVERY_BASE
def test_a_stack_of_three_merges_and_is_the_sum_of_the_three(scheme):
    base = quantized(random_base(TINY), scheme)
    fields = [{"target_modules": names, "r": 4} for names in (ALL_LINEAR, ALL_LINEAR, ("q_proj",))]
    frozen = base
    for seed in range(2):
        frozen = stack(*adapted(frozen, seed, **fields[seed]))
    adapters, frozen = adapted(frozen, 2, **fields[2])
    tokens = random_batch(TINY)["tokens"]
    apart = minilora.forward(adapters, frozen, tokens, TINY)
    merged = minilora.merge(adapters, frozen)
    assert flatten(merged).keys() == flatten(base).keys()
    each = [adapted(base, seed, **fields[seed])[0] for seed in range(3)]
    summed, _ = compose.combine(each, [1, 1, 1])
    # the bound of test_lora's merged model, with three updates of rank 4 on a projection
    bound = 2 * 4 * (12 + 12) * U32 * 10 * np.abs(apart).max()
    for trees in (({}, merged), (summed, base)):
        together = minilora.forward(*trees, tokens, TINY)
        np.testing.assert_allclose(together, apart, rtol=0, atol=bound)


def test_replaced_leaves_are_stacked_in_the_bases_place_and_others_refused():
    base = random_base(TINY, biases=("q_proj",))
    adapters, frozen = adapted(base)
    adapters = also_train(adapters, frozen, ("norm", "bias", "head"))
    adapters = moved(adapters, lambda w: w + np.float32(0.25))
    tokens = random_batch(TINY)["tokens"]
    alone = minilora.forward(adapters, frozen, tokens, TINY)
    stacked = stack(adapters, frozen)
    assert bits(minilora.forward({}, stacked, tokens, TINY)) == bits(alone)
    set_leaf(adapters, "model.layers.0.mlp.up_proj.ia3_l", np.ones(10))
    with pytest.raises(InputError, match=r"up_proj.ia3_l cannot be stacked"):
        stack(adapters, frozen)


# --------------------------------------------------------------------------- an adapter a row


@few
@given(seeds, st.integers(1, 6), st.integers(1, 6), st.sampled_from([1.0, 1.7]))
def test_a_projection_of_rows_is_each_row_with_its_own_adapter(seed, out, into, alpha):
    rng = np.random.default_rng(seed)
    base = {"weight": rng.standard_normal((out, into), np.float32)}
    adapters: list = []
    for r in (1, 3):
        node = {
            "lora_A": rng.standard_normal((r, into), np.float32),
            "lora_B": rng.standard_normal((out, r), np.float32),
            "lora_scaling": alpha / r, "lora_dropout": 0.0,
        }  # fmt: skip
        adapters.append({"q_proj": node})
    adapters.append({})
    rows = [1, 0, 2, 1]
    x = rng.standard_normal((4, 2, into), np.float32)
    together = rows_linear(layers.linear, x, base | per_row(adapters, rows)["q_proj"])
    for b, i in enumerate(rows):
        node = adapters[i].get("q_proj", {})
        alone = layers.linear(x[b : b + 1], base | node)[0]
        size = np.abs(x[b]) @ np.abs(base["weight"]).T
        if node:
            a, c = np.abs(node["lora_A"]), np.abs(node["lora_B"])
            size = size + node["lora_scaling"] * (np.abs(x[b]) @ a.T @ c.T)
        # on either side a number passes through two sums of `into` and 3 terms (the zeros that
        # fill up a rank add exactly nothing), one scaling, rounded to float32, and the sum of both
        assert (np.abs(together[b] - alone) <= 2 * (into + 3 + 3) * U32 * size).all()


@EVERY_BASE
@pytest.mark.parametrize("ops", ["plain", "fused"])
def test_a_batch_of_rows_is_each_row_alone(scheme, ops):
    ops = {"plain": layers, "fused": fused}[ops]
    base = quantized(random_base(TINY), scheme)
    adapters = [*several(base, 2), adapted(base, 7, target_modules=ALL_LINEAR)[0], {}]
    rows, tokens = [2, 0, 3, 1, 2], random_batch(TINY, B=5)["tokens"]
    together = minilora.forward(per_row(adapters, rows), base, tokens, TINY, ops)
    # the bound of test_lora's merged model: the same sums, in another order
    bound = 2 * 4 * 20 * U32 * 10 * np.abs(together).max()
    for b, i in enumerate(rows):
        alone = minilora.forward(adapters[i], base, tokens[b : b + 1], TINY, ops)[0]
        np.testing.assert_allclose(together[b], alone, rtol=0, atol=bound)
        others = [minilora.forward(tree, base, tokens[b : b + 1], TINY)[0] for tree in adapters]
        assert min(np.abs(o - alone).max() for j, o in enumerate(others) if j != i) > 100 * bound


def test_rows_train_apart():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    fixed = {"weight": normal((3, 4)), "rows_scaling": normal((2, 1, 1))}
    factors = {"rows_A": normal((2, 2, 4)), "rows_B": normal((2, 3, 2))}
    check_grads(lambda x, t: rows_linear(layers.linear, x, {**fixed, **t}), modes=["rev"], order=1)(
        normal((2, 5, 4)), factors
    )


def test_rows_cannot_be_merged():
    base = random_base(TINY)
    with pytest.raises(InputError, match=r"q_proj\.rows_A cannot be merged"):
        minilora.merge(per_row(several(base), [0, 1]), base)


# -------------------------------------------------------------------------------- combining


@few
@given(configs(), seeds, st.lists(st.floats(-2, 2), min_size=2, max_size=2))
def test_concatenated_ranks_are_the_exact_sum(config, seed, weights):
    base = random_base(config, seed)
    each = [
        adapted(base, seed, r=2, lora_alpha=3, target_modules=("q_proj", "up_proj"))[0],
        adapted(base, seed + 1, r=3, lora_alpha=5, target_modules=("q_proj", "down_proj"))[0],
    ]
    adapters, errors = compose.combine(each, weights)
    exact, ours = weighted(each, weights), deltas(adapters)
    assert ours.keys() == exact.keys() == errors.keys()
    sizes = weighted([moved(tree, np.abs) for tree in each], np.abs(weights))
    for path, dw in exact.items():
        # one product, w·s·B, is rounded to float32; and float32 ends at 2⁻¹⁴⁹
        assert (np.abs(ours[path] - dw) <= 2 * U32 * sizes[path] + 1e-44).all()
        assert (
            len(get(adapters, path)["lora_A"]) == {"q": 5, "u": 2, "d": 3}[path.split(".")[-1][0]]
        )


@few
@given(configs(), seeds)
def test_the_svd_is_exact_at_full_rank_and_nearest_below(config, seed):
    base = random_base(config, seed)
    each = several(base)  # ranks 1, 2 and 3
    exact = weighted(each, [0.7, -0.4, 1.2])
    for r in (1, 3, 6):
        adapters, errors = compose.combine(each, [0.7, -0.4, 1.2], "svd", r)
        for path, dw in deltas(adapters).items():
            sigma = np.linalg.svd(exact[path], compute_uv=False)
            # Eckart–Young: what is left is the rest of the singular values. A and B are rounded
            # to float32 once each: of relative size 2·U32·√r at most, and U32 for w·s·B.
            rest, size = np.linalg.norm(sigma[r:]), np.linalg.norm(sigma)
            error = np.linalg.norm(dw - exact[path])
            assert abs(error - rest) <= 4 * U32 * r**0.5 * size + 1e-12
            assert errors[path] == pytest.approx(error / size, rel=1e-6, abs=1e-9)


def test_the_default_rank_of_svd_is_the_largest():
    """As in PEFT; ranks 1, 2 and 3 on the same projections."""
    three = several(random_base(TINY))
    adapters, errors = compose.combine(three, [0.7, -0.4, 1.2], "svd")
    third, with_three = compose.combine(three, [0.7, -0.4, 1.2], "svd", 3)
    assert errors == with_three and fingerprint(adapters) == fingerprint(third)
    for path in lora.adapted_paths(adapters):
        assert len(get(adapters, path)["lora_A"]) == 3


@pytest.mark.parametrize("combination_type", ["cat", "svd", "linear"])
def test_a_negative_weight_subtracts(combination_type):
    """−½·ΔW of one adapter: `linear`, too, is exact for one, and its sign is that of A."""
    one = several(random_base(TINY), 1)
    adapters, errors = compose.combine(one, [-0.5], combination_type)
    assert max(errors.values()) < 1e-6
    exact = weighted(one, [-0.5])
    for path, dw in deltas(adapters).items():
        # A and B have a square root and a rounding each, of 2⁻²⁴ of themselves
        np.testing.assert_allclose(dw, exact[path], rtol=0, atol=1e-6 * np.abs(exact[path]).max())


def test_averaging_the_factors_is_not_averaging_the_updates():
    base = random_base(TINY)
    each = [adapted(base, seed, r=4)[0] for seed in range(2)]
    apart = [compose.combine(each, [0.5, 0.5], how) for how in ("cat", "svd", "linear")]
    cat, svd, linear = (list(errors.values()) for _, errors in apart)
    assert max(cat) <= U32  # the halves are exact, and so is the sum
    # Half of the terms of (½B₁ + ½B₂)(A₁ + A₂) are cross terms, which belong to no adapter; with
    # independent factors they are as large as the other terms: an error around 1.
    assert min(linear) > 0.5
    assert min(svd) > 0.01  # rank 4 of 8: not exact either,
    assert max(svd) < min(linear)  # and better everywhere
    # `linear` is right only for an adapter and itself
    _, errors = compose.combine([each[0], each[0]], [0.5, 0.5], "linear")
    assert min(errors.values()) > 0.9  # even then: √½·√½ four times over, ΔW twice


def test_a_combined_adapter_is_saved_and_loaded(tmp_path):
    base = random_base(TINY)
    one, _ = adapted(base, 0, r=2)
    two, _ = adapted(base, 1, r=3, target_modules=("q_proj", "down_proj"))
    adapters, _ = compose.combine([one, two], [0.5, 0.25])
    save_adapter(tmp_path, adapters, base, compose.config_of_adapter(adapters), "tiny")
    again, _, _ = load_adapter(tmp_path, base)
    tokens = random_batch(TINY)["tokens"]
    ours, theirs = (minilora.forward(tree, base, tokens, TINY) for tree in (adapters, again))
    assert bits(ours) == bits(theirs)


def test_linear_is_no_average():
    """Two equal adapters with weight ½ give 2·ΔW; `cat` gives ΔW."""
    one = several(random_base(TINY), 1)[0]
    exact, _ = compose.combine([one, one], [0.5, 0.5])
    linear, errors = compose.combine([one, one], [0.5, 0.5], combination_type="linear")
    for path in lora.adapted_paths(linear):
        one, two = (
            get(tree, path)["lora_B"] @ get(tree, path)["lora_A"] for tree in (exact, linear)
        )
        np.testing.assert_allclose(two, 2 * one, rtol=1e-5, atol=1e-6 * np.abs(one).max())
        assert abs(errors[path] - 1) < 1e-5


@given(configs(max_layers=2), seeds, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_batch_generates_what_every_prompt_generates_alone(config, seed, lengths):
    """In float64 no rounding comes near to the difference of the two most probable tokens."""
    config = replace(config, eos_token_id=(2,))
    base = random_base(config, seed, np.float64)
    each = [{}, *(adapted(base, seed=i, r=2**i, lora_alpha=4)[0] for i in range(2))]
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(config.vocab_size, size=n).tolist() for n in lengths]
    chosen = [each[i] for i in rng.integers(3, size=len(lengths))]
    together = minilora.generate_batch(chosen, base, prompts, config, max_tokens=6)
    for tree, prompt, found in zip(chosen, prompts, together, strict=True):
        assert found == list(minilora.generate(tree, base, prompt, config, max_tokens=6))
    drawn = minilora.generate_batch(chosen, base, prompts, config, max_tokens=6, temp=1.0, rng=seed)
    rngs = np.random.default_rng(seed).spawn(len(prompts))
    for tree, prompt, found, child in zip(chosen, prompts, drawn, rngs, strict=True):
        alone = minilora.generate(tree, base, prompt, config, max_tokens=6, temp=1.0, rng=child)
        assert found == list(alone)


@EVERY_BASE
def test_a_batch_on_a_quantized_base(scheme):
    """Each token is the most probable one after the row's own tokens, up to rounding."""
    base = quantized(random_base(TINY), scheme)
    each = [*several(base, 2), {}]
    prompts = [[1, 2, 3, 4, 5], [3], [2, 4]]
    found = minilora.generate_batch(each, base, prompts, TINY, max_tokens=5)
    for tree, prompt, ids in zip(each, prompts, found, strict=True):
        assert len(ids) == 5
        for n, token in enumerate(ids):
            logits = minilora.forward(tree, base, np.array([prompt + ids[:n]]), TINY)[0, -1]
            assert logits[token] >= logits.max() - 1e-4  # as for one prompt
    assert len({tuple(ids) for ids in found}) == 3


@pytest.mark.parametrize("method", ["dora", "ia3", "prompt", "prefix", "bottleneck"])
def test_all_prompts_can_share_an_adapter_of_any_method(method):
    base, rng = random_base(TINY), np.random.default_rng(3)
    config = LoraConfig(use_dora=True) if method == "dora" else MethodConfig(method)
    adapters, base = get_peft_model(base, config)
    adapters = moved(adapters, lambda w: w + 0.3 * rng.standard_normal(w.shape, np.float32))
    prompts = [[1, 2, 3, 4, 5], [3], [2, 4]]
    found = minilora.generate_batch([adapters] * 3, base, prompts, TINY, max_tokens=5)
    # the seed is one without a near tie
    assert found == [
        list(minilora.generate(adapters, base, p, TINY, max_tokens=5)) for p in prompts
    ]
    if method != "dora":
        with pytest.raises(InputError, match="is no low-rank factor"):
            minilora.generate_batch([adapters, {}], base, prompts[:2], TINY)


def test_a_batch_has_the_defaults_of_one_prompt():
    one, batch = (inspect.signature(f).parameters for f in (generate, compose.generate_batch))
    for name in ("max_tokens", "temp", "top_p", "rng"):
        assert batch[name].default == one[name].default


def test_what_a_batch_refuses():
    base = random_base(TINY)
    for adapters, prompts in (([{}], []), ([], []), ([{}, {}], [[1]])):
        with pytest.raises(InputError, match="prompts need as many adapters"):
            minilora.generate_batch(adapters, base, prompts, TINY)
    with pytest.raises(InputError, match="a prompt is empty"):
        minilora.generate_batch([{}, {}], base, [[1], []], TINY)


@pytest.mark.parametrize("together", [
    lambda each: compose.combine(each, [1, 1]), lambda each: per_row(each, [0, 1]),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(together):
    base = random_base(TINY)
    a, b = several(base, 2)
    with pytest.raises(InputError, match=r"norm\.weight is no low-rank factor"):
        together([a, also_train(b, base, ("norm",))])


def test_combine_names_what_it_cannot_do():
    each = several(random_base(TINY), 2)
    with pytest.raises(InputError, match="one of cat, svd, linear, not 'ties'"):
        compose.combine(each, [1, 1], "ties")
    with pytest.raises(InputError, match="2 adapters need as many weights"):
        compose.combine(each, [1])
    with pytest.raises(InputError, match="factors of equal rank"):
        compose.combine(each, [1, 1], "linear")

"""Several adapters on one base: stacked, one per row, combined, and generating together."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    as_dtype,
    assert_near,
    bits,
    configs,
    fast_model,
    fingerprint,
    moved,
    quantized,
    random_batch,
    random_model,
    seeds,
    up_to,
    usual_config,
)
from outcomes import refused

from minilora import evaluate, forward, generate, generate_batch, layers, loss, merge, train
from minilora.config import ALL_LINEAR, LoraConfig, TrainConfig
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.kernels import fused
from minilora.layers import value_and_grad
from minilora.lora import adapted_paths
from minilora.methods import compose, several
from minilora.methods.registry import get_peft_model
from minilora.methods.replaced import also_train
from minilora.model import Source
from minilora.quant.schemes import with_compute_dtype
from minilora.tree import arrays, flatten, get, num_parameters

U32 = 2.0**-24
EVERY_BASE = pytest.mark.parametrize("scheme", ["none", "int8", "nf4-dq"])
TOKENS = random_batch(TINY)["tokens"]
MODEL = fast_model()


def three(model):
    """Adapters of the ranks 1, 2 and 3 on the same projections, each as large as the weight."""
    return [adapted(model, seed=r, r=r, lora_alpha=3)[0] for r in (1, 2, 3)]


def deltas(adapters):
    """{path: ΔW} in float64."""
    exact = as_dtype(adapters, np.float64)
    return {path: layers.lora_delta(get(exact, path)) for path in adapted_paths(exact)}


def weighted(adapters, weights):
    """{path: Σ wᵢ·ΔWᵢ} in float64."""
    total = {}
    for tree, w in zip(adapters, weights):
        for path, dw in deltas(tree).items():
            total[path] = total.get(path, 0) + w * dw
    return total


# --------------------------------------------------------------------------------- stacking


@EVERY_BASE
def test_a_stacked_adapter_computes_what_it_did_bit_for_bit(scheme):
    model = quantized(random_model(TINY, biases=("q_proj",), ops=fused), scheme)
    before = fingerprint(model.base)
    adapters, _ = adapted(model, target_modules=ALL_LINEAR, lora_alpha=3)
    adapters = also_train(adapters, model.base, ("norm", "bias", "head"))
    adapters = moved(adapters, lambda w: w + np.float32(0.25))
    alone = bits(forward(adapters, model, TOKENS))
    stacked = several.stack(adapters, model._replace(source=Source("tiny")))
    assert stacked.source == Source() and stacked.ops is model.ops
    assert bits(forward({}, stacked, TOKENS)) == alone
    # and a fresh adapter on top, whose B is zero, adds exactly nothing
    assert bits(forward(*get_peft_model(stacked, LoraConfig()), TOKENS)) == alone
    assert fingerprint(model.base) == before


def test_an_adapter_upon_a_stack_is_trained_and_saved_alone(tmp_path):
    below, model = adapted(MODEL)
    stacked = several.stack(below, model)
    config = LoraConfig(r=3, target_modules=("q_proj", "up_proj"))
    adapters, _ = get_peft_model(stacked, config)
    _, grads = value_and_grad(loss)(adapters, stacked, random_batch(TINY))
    assert flatten(grads).keys() == flatten(arrays(adapters)).keys()
    adapters = moved(adapters, lambda w: w + 1)
    save_adapter(tmp_path, adapters, stacked, config)
    assert fingerprint(load_adapter(tmp_path, stacked).adapters) == fingerprint(adapters)
    with pytest.warns(UserWarning, match="the dense weights of the model are rounded to bfl"):
        rounded = with_compute_dtype(stacked, "bfloat16")
    assert get(rounded.base, "model.layers.0.self_attn.q_proj.lora_stack.0.lora_scaling") == 2.0


@EVERY_BASE
@pytest.mark.parametrize("name", ["lora", "ia3", "bottleneck", "vera"])
def test_a_method_upon_two_adapters_acts_on_the_merged_weight(name, scheme):
    """Float32, with two weights more: twice the bound of test_registry's merges."""
    stacked = quantized(MODEL, scheme)
    for seed in range(2):
        adapters, _ = adapted(MODEL, seed, target_modules=ALL_LINEAR)
        stacked = several.stack(adapters, stacked)
    both = num_parameters(MODEL.base) + 2 * num_parameters(adapters)
    assert num_parameters(stacked.base) == both
    below, rng = merge({}, stacked), np.random.default_rng(4)
    assert flatten(below.base).keys() == flatten(MODEL.base).keys()
    adapters, _ = get_peft_model(stacked, usual_config(name))
    adapters = moved(adapters, lambda w: np.float32(w + rng.standard_normal(w.shape)))
    ours = forward(adapters, stacked, TOKENS)
    assert_near(forward(adapters, below, TOKENS), ours, 6e-5)
    if name != "bottleneck":
        assert_near(forward({}, merge(adapters, stacked), TOKENS), ours, 6e-5)


# --------------------------------------------------------------------------- an adapter a row


@EVERY_BASE
@pytest.mark.parametrize("ops", [layers, fused])
def test_a_batch_of_rows_is_each_row_alone(scheme, ops):
    model = quantized(random_model(TINY, biases=("q_proj",), ops=ops), scheme)
    adapters = [*three(model)[1:], adapted(model, 7, target_modules=ALL_LINEAR)[0], {}]
    rows, tokens = [2, 0, 3, 1, 2], random_batch(TINY, B=5)["tokens"]
    together = forward(several.per_row(adapters, rows), model, tokens)
    alone = [forward(adapters[i], model, [row])[0] for i, row in zip(rows, tokens)]
    # the bound of test_lora's merged model: the same sums, in another order
    assert_near(together, alone, 2 * 4 * 20 * U32 * 10)


# -------------------------------------------------------------------------------- combining


def test_concatenated_ranks_are_the_exact_sum_and_are_saved(tmp_path):
    weights = [0.7, -1.3]
    each = [
        adapted(MODEL, r=r, lora_alpha=r + 1, target_modules=("q_proj", other))[0]
        for r, other in ((2, "up_proj"), (3, "down_proj"))
    ]
    adapters, errors = compose.combine(each, weights)
    exact, ours = weighted(each, weights), deltas(adapters)
    assert ours.keys() == exact.keys() == errors.keys()
    for path, dw in exact.items():
        # the product w·s·B is rounded to float32
        assert_near(ours[path], dw, 4 * U32)
        rank = {"q_proj": 5, "up_proj": 2, "down_proj": 3}[path.rpartition(".")[2]]
        assert len(get(adapters, path)["lora_A"]) == rank
        assert errors[path] <= 4 * U32
    compose.combine(each, weights, "svd", 5)  # as many as on q_proj, and more than elsewhere
    save_adapter(tmp_path, adapters, MODEL, compose.config_of_combined(adapters))
    assert fingerprint(load_adapter(tmp_path, MODEL).adapters) == fingerprint(adapters)


@pytest.mark.parametrize("r", [1, None, 6])
def test_the_svd_is_the_nearest_of_its_rank(r):
    """The default is the largest rank, as in PEFT; 6 is the full rank."""
    each, weights = three(MODEL), [0.7, -0.4, 1.2]
    adapters, errors = compose.combine(each, weights, "svd", r)
    for path, exact in weighted(each, weights).items():
        sigma = np.linalg.svd(exact, compute_uv=False)
        # Eckart–Young: what is left is the rest of the singular values. A and B are rounded
        # to float32 once each: of relative size 2·U32·√r at most, and U32 for w·s·B.
        rest, size = np.linalg.norm(sigma[r or 3 :]), np.linalg.norm(sigma)
        error = np.linalg.norm(deltas(adapters)[path] - exact)
        assert abs(error - rest) <= 4 * U32 * 6**0.5 * size
        assert errors[path] == pytest.approx(error / size, rel=1e-6, abs=1e-9)


def test_a_sum_that_is_zero_has_no_error():
    one = get_peft_model(MODEL, LoraConfig()).adapters
    assert set(compose.combine([one, one], [1.0, 1.0])[1].values()) == {0.0}


def test_linear_is_no_average():
    """Exact for one adapter, also with a negative weight; two equal ones with ½ give 2·ΔW."""
    one = three(MODEL)[1]
    for weights in ([-0.5], [0.5, 0.5]):
        exact = weighted([one], [sum(weights) * len(weights)])
        adapters, errors = compose.combine([one] * len(weights), weights, "linear")
        for path, dw in deltas(adapters).items():
            # A and B have a square root and a rounding each, of 2⁻²⁴ of themselves
            assert_near(dw, exact[path], 1e-6)
            assert errors[path] == pytest.approx(len(weights) - 1, abs=1e-6)


# ------------------------------------------------------------------------ generating together


@given(configs(max_layers=2), seeds, st.lists(up_to(9), min_size=1, max_size=5))
def test_a_batch_generates_what_every_prompt_generates_alone(config, seed, lengths):
    """In float64 no rounding comes near to the difference of the two most probable tokens."""
    config = replace(config, eos_token_id=(2,))
    model = fast_model(config, seed, np.float64)
    fields = {"lora_alpha": 4, "lora_dropout": 0.9}  # without a part in generation
    each = [{}, *(adapted(model, seed=i, r=2**i, **fields)[0] for i in range(2))]
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(config.vocab_size, size=n).tolist() for n in lengths]
    chosen = [each[i] for i in rng.integers(3, size=len(lengths))]
    for temp, top_p in ((0.0, 1.0), (1.0, 0.5)):
        options = {"max_tokens": 6, "temp": temp, "top_p": top_p}
        rngs = np.random.default_rng(seed).spawn(len(prompts))
        assert generate_batch(chosen, model, prompts, rng=seed, **options) == [
            list(generate(tree, model, prompt, rng=child, **options))
            for tree, prompt, child in zip(chosen, prompts, rngs, strict=True)
        ]


def test_generate_and_generate_batch_have_the_same_defaults():
    assert generate.__defaults__ == generate_batch.__defaults__


def of_rows(*rows):
    return several.per_row(three(MODEL), rows)


def combined(kind="cat", r=None, weights=(1, 1, 1)):
    return compose.combine(three(MODEL), weights, kind, r)


DORA, IA3 = (get_peft_model(MODEL, usual_config(name)).adapters for name in ("dora", "ia3"))
PISSA = get_peft_model(MODEL, LoraConfig(init_lora_weights="pissa")).adapters


@pytest.mark.parametrize(
    "message, call",
    [
        ("pissa needs the model that came", lambda: several.stack(PISSA, MODEL)),
        (r"k_proj\.ia3_l cannot be stacked", lambda: several.stack(IA3, MODEL)),
        (
            "DoRA cannot be trained on a stacked adapter",
            lambda: forward(DORA, several.stack(three(MODEL)[0], MODEL), [[1]]),
        ),
        ("have a base of their own", lambda: several.per_row([{}, PISSA], [0, 1])),
        ("there is no prompt", lambda: generate_batch([], MODEL, [])),
        ("need as many adapters", lambda: generate_batch([{}], MODEL, [[1], [2]])),
        ("prompt is empty", lambda: generate_batch([{}, {}], MODEL, [[1], []])),
        ("q_proj.rows_A.* cannot be merged", lambda: merge(of_rows(0, 1), MODEL)),
        (
            "`per_row` are for one batch",
            lambda: train(of_rows(0), MODEL, [], TrainConfig()),
        ),
        ("`per_row` are for one batch", lambda: evaluate(of_rows(0, 1), MODEL, [])),
        *((f"`rows` has {row}: .* 0 to 2", partial(of_rows, 0, row))
          for row in (-1, 3, True, np.True_)),
        (
            "`rows` has 1 numbers for a batch of 2 rows",
            lambda: forward(of_rows(1), MODEL, [[1], [2]]),
        ),
        (
            "there is no group 'n': give a list of norm, head, bias",
            lambda: also_train({}, MODEL.base, "norm"),
        ),
        ("3 adapters need as many weights", lambda: combined(weights=[1])),
        *(("`weights` must be a finite number", partial(combined, weights=[1, w, 1]))
          for w in (np.nan, -1e39)),
        ("no low-rank factors", lambda: compose.combine([{}, {}], [1, 1])),
        ("one of cat, svd, linear, not 'ties'", lambda: combined("ties")),
        ("equal rank", lambda: combined("linear")),
        ("`r`, which only svd has, not cat", lambda: combined("cat", 4)),
        *((f"`r` must be a whole .* 1 to 6, .* got {r}", partial(combined, "svd", r))
          for r in (0, 7, True)),
    ],
)  # fmt: skip
def test_what_is_refused(message, call):
    with refused(message):
        call()

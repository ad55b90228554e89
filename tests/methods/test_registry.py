"""All methods: initialization, counts of parameters, and that the model reads their leaves."""

import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    as_dtype,
    bits,
    configs,
    fingerprint,
    moved,
    quantized,
    random_base,
    random_batch,
    random_examples,
    seeds,
)

import minilora
from minilora import layers, lora, model
from minilora.config import ALL_LINEAR, InputError, LoraConfig, TrainConfig
from minilora.formats.checkpoint import load_adapter, needs_dense_base, save_adapter
from minilora.kernels import fused
from minilora.layers import LayerCache, value_and_grad
from minilora.methods import dora, initializers, prompt, vera
from minilora.methods.method import MethodConfig
from minilora.methods.registry import METHODS, check_packing, get_peft_model, operations
from minilora.methods.replaced import also_train
from minilora.training import learning_rates
from minilora.tree import flatten, get, named_leaves, num_parameters, unflatten

VIRTUAL = ("prompt", "p-tuning", "prefix")
IN_THE_CORE = ("lora", "bitfit", "norm", "head", "full")  # what the bare operations read
MERGEABLE = [
    name for name, m in METHODS.items() if name in IN_THE_CORE or "merge_projection" in m.wraps
]


def on_bases(names):
    """Parametrize a test with each method on each base; full fine-tuning needs a dense one."""
    schemes = "none", "int8", "nf4"
    pairs = [(n, s) for n in names for s in schemes if n != "full" or s == "none"]
    return pytest.mark.parametrize(("name", "scheme"), pairs)


EVERY = pytest.mark.parametrize("name", METHODS)
NAMES = ("q_proj", "v_proj", "o_proj", "down_proj")
few = settings(max_examples=25)


def make_adapter_config(name, n=3, m=4):
    if name in ("lora", "dora"):
        return LoraConfig(r=2, target_modules=NAMES, use_dora=name == "dora")
    size = METHODS[name].size
    return MethodConfig(name, **({size: m if name == "bottleneck" else n} if size else {}))


def started(name, base, seed=0, **sizes):
    return get_peft_model(base, make_adapter_config(name, **sizes), seed)


def trained(name, base, seed=0, dtype=np.float32, **sizes):
    """The leaves of a method, each changed from its initialization, as if trained."""
    adapters, frozen = started(name, base, seed, **sizes)
    rng = np.random.default_rng([5, seed])
    return moved(adapters, lambda w: (w + 0.2 * rng.standard_normal(w.shape)).astype(dtype)), frozen


def stored(base, scheme):
    return base if scheme == "none" else quantized(base, scheme)


# --------------------------------------------------------------------------------- counting


@given(configs(), st.integers(1, 5), st.integers(1, 5))
def test_parameter_counts(config, n, m):
    base = random_base(config)
    # q is the width of all heads, which in the table of formulas is d as well
    L, d, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    q, k = (h * config.head_dim for h in (config.num_attention_heads, config.num_key_value_heads))
    head = config.vocab_size * d
    expected = {
        "bitfit": L * (q + 2 * k + d + 2 * f + d),
        "ia3": L * (2 * k + f),
        "vera": L * (q + k) + 2 * L * n,  # per q and v: one vector per output, one per rank
        "prompt": n * d,
        "p-tuning": n * d + 3 * d * d + 3 * d,
        "prefix": 2 * L * n * k,
        "bottleneck": 2 * L * (2 * d * m + m + d),
        "norm": (2 * L + 1) * d + config.qk_norm * L * 2 * config.head_dim,
        "head": head,
        "full": num_parameters(base),
    }
    for name, number in expected.items():
        assert num_parameters(started(name, base, n=n, m=m)[0]) == number, name
    low_rank, magnitudes = (num_parameters(started(name, base)[0]) for name in ("lora", "dora"))
    assert magnitudes - low_rank == L * (q + k + d + d)  # the rows of q, v, o and down


@given(configs(), st.integers(1, 9))
def test_the_usual_counts_in_closed_form(config, r):
    """Heads as wide together as the model: DoRA adds L(3d + 2k + 2f), BitFit is as many."""
    d = config.num_attention_heads * config.head_dim
    config = config.__class__(**{**vars(config), "hidden_size": d})
    L, f = config.num_hidden_layers, config.intermediate_size
    k, base = config.num_key_value_heads * config.head_dim, random_base(config)
    every = LoraConfig(r=r, target_modules=("all-linear",))
    adapters, _ = get_peft_model(base, replace(every, use_dora=True))
    assert num_parameters(adapters) == L * r * (9 * d + 2 * k + 3 * f) + L * (3 * d + 2 * k + 2 * f)
    assert num_parameters(started("bitfit", base)[0]) == L * (3 * d + 2 * k + 2 * f)


def test_the_matrices_of_vera_are_shared_and_not_trained():
    base, batch = random_base(TINY), random_batch(TINY)
    adapters, same = started("vera", base)
    assert same is base
    shared = [leaf for path, leaf in named_leaves(adapters) if path.endswith(vera.SHARED)]
    assert len(shared) == 2 * TINY.num_hidden_layers
    assert all(leaf is shared[0] for leaf in shared)
    before = fingerprint(unflatten({"A": shared[0][0], "B": shared[0][1]}))
    adapters = trained("vera", base)[0]
    _, grads = value_and_grad(minilora.loss)(adapters, base, batch, TINY)
    names = {path.rpartition(".")[2] for path, _ in named_leaves(grads)}
    assert names == {vera.B, vera.D} and all(g.any() for _, g in named_leaves(grads))
    config = TrainConfig(iters=2, batch_size=2, learning_rate=0.1, warmup_ratio=0)
    start = started("vera", base)[0]
    examples = random_examples(TINY, 4)
    after = minilora.train(start, base, examples, TINY, config, quiet=True).adapters
    for path, leaf in named_leaves(after):
        old = get(start, path)
        if path.endswith(vera.SHARED):
            assert leaf[0] is old[0] and leaf[1] is old[1]
        else:
            assert (leaf != old).any()
    kept = next(leaf for path, leaf in named_leaves(after) if path.endswith(vera.SHARED))
    assert fingerprint(unflatten({"A": kept[0], "B": kept[1]})) == before


# ------------------------------------------------------------------------- where they start


@on_bases(METHODS)
@pytest.mark.parametrize("ops", [layers, fused])
def test_the_start_is_the_base_bit_for_bit(name, scheme, ops):
    base = stored(random_base(TINY, biases=("q_proj", "down_proj")), scheme)
    adapters, frozen = started(name, base)
    tokens = np.arange(10).reshape(2, 5) % TINY.vocab_size
    bare, at_start = (
        minilora.forward(*trees, tokens, TINY, ops) for trees in (({}, base), (adapters, frozen))
    )
    assert np.isfinite(at_start).all()
    assert (bits(bare) == bits(at_start)) == (name not in VIRTUAL)


STARTS = {  # leaf: its bound if it is uniform, its standard deviation
    ("p-tuning", "prompt_encoder.embedding.weight"): (None, 1),
    ("p-tuning", "mlp_head.2.weight"): (1 / 8, 1 / 8 / 3**0.5),
    ("p-tuning", "mlp_head.4.bias"): (1 / 8, 1 / 8 / 3**0.5),
    ("prefix", "layers.1.self_attn.prefix_k"): (None, 1),
    ("prefix", "layers.0.self_attn.prefix_v"): (None, 1),
    ("bottleneck", "0.mlp.down_proj.bottleneck_down"): (1 / 8, 1 / 8 / 3**0.5),
    ("bottleneck", "0.mlp.down_proj.bottleneck_up"): (0, 0),
}


@pytest.mark.parametrize(("name", "leaf"), STARTS)
def test_the_random_starts(name, leaf):
    """N(0, 1), or U(−1/√D, 1/√D) with D = 64, as torch starts a linear layer; up matrices zero."""
    base = random_base(replace(TINY, hidden_size=64))
    adapters, _ = started(name, base, n=512, m=64)
    w = next(w for path, w in named_leaves(adapters) if path.endswith(leaf))
    bound, deviation = STARTS[name, leaf]
    # of n numbers the mean is off by σ/√n, and σ by less than σ/√n: six times that is allowed
    allowed = 6 * deviation / w.size**0.5
    assert abs(w.mean()) <= allowed and abs(w.std() - deviation) <= allowed
    if bound is not None:
        assert 0.9 * bound <= np.abs(w).max() <= bound  # 64 numbers miss that with 1e-3


def test_a_prompt_starts_as_rows_of_the_embedding():
    base = random_base(TINY)
    embedding = base["model"]["embed_tokens"]["weight"]
    for seed, n in ((0, 11), (1, 11), (0, 20)):  # a vocabulary of 11
        adapters, _ = started("prompt", base, seed, n=n)
        found = adapters["model"]["prompt_embeddings"]
        rows = [int(np.flatnonzero((embedding == row).all(axis=1))[0]) for row in found]
        assert len(set(rows)) == 11 if n == 11 else len(rows) == 20
        assert rows != [*range(11)]


def test_the_gelu_of_a_bottleneck():
    """The tanh approximation is off by less than 5e-4, and equal to torch's in that form."""
    x = np.array([-3.0, -1.0, -0.1, 0.5, 2.0])
    exact = x * [NormalDist().cdf(number) for number in x]
    np.testing.assert_allclose(layers.gelu(x), exact, rtol=0, atol=5e-4)
    assert layers.gelu(np.array(2.0)) == pytest.approx(1.9545976940877752, abs=1e-12)


def test_dora_starts_as_the_base_where_a_row_is_zero():
    base = random_base(TINY)
    base["model"]["layers"]["0"]["self_attn"]["q_proj"]["weight"][1] = 0
    tokens = np.arange(5)[None]
    expected = minilora.forward({}, base, tokens, TINY)
    assert bits(minilora.forward(*started("dora", base), tokens, TINY)) == bits(expected)


# ------------------------------------------------------------------- both paths, every leaf


@few
@given(configs(), seeds, st.sampled_from([*METHODS]), st.booleans())
def test_both_paths_agree(config, seed, name, checkpointing):
    """In float64: the bound is some dozens of sums of up to a hundred terms, each to 1e-16.

    The terms are of the size of one, and where the model is one number wide they cancel in its
    norms until next to nothing is left: so the absolute part does not shrink with the gradient.
    """
    base = as_dtype(random_base(config, seed), np.float64)
    adapters, frozen = trained(name, base, seed, np.float64)
    batch = random_batch(config, seed, packed=name not in VIRTUAL or name == "prefix")
    results = [
        value_and_grad(minilora.loss)(
            adapters, frozen, batch, config, ops, checkpointing=checkpointing
        )
        for ops in (layers, fused)
    ]
    (plain, g_plain), (quick, g_quick) = results
    assert quick == pytest.approx(plain, rel=1e-11)
    total = np.sqrt(sum(np.sum(g * g) for g in flatten(g_plain).values()))
    for path, g in flatten(g_plain).items():
        np.testing.assert_allclose(flatten(g_quick)[path], g, rtol=1e-9, atol=1e-11 * max(1, total))


@EVERY
def test_gradients_are_those_of_finite_differences(name):
    """Central differences over h = 1e-6 in float64 are good to h² and to 1e-16/h: 1e-9 or so.

    DoRA's are not the derivative: its norms are constants. There the difference is taken with m
    divided by the norms first, and then held.
    """
    base = as_dtype(random_base(TINY), np.float64)
    adapters, frozen = trained(name, base, dtype=np.float64)
    batch = random_batch(TINY, packed=False)
    _, grads = value_and_grad(minilora.loss)(adapters, frozen, batch, TINY)
    rng = np.random.default_rng(1)
    step = moved(adapters, lambda w: rng.standard_normal(w.shape))
    slope = sum(np.sum(g * flatten(step)[path]) for path, g in flatten(grads).items())

    def at(h):
        there = moved(adapters, lambda w, s: w + h * s, step)
        return minilora.loss(holding_norms(there, adapters, frozen), frozen, batch, TINY)

    assert slope == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-6, abs=1e-8)


def holding_norms(there, adapters, frozen):
    """`there` with magnitudes such that DoRA divides by the norms of `adapters` instead."""
    leaves = flatten(there)
    for path in lora.adapted_paths(adapters):
        name = f"{path}.lora_magnitude_vector"
        if name in leaves:
            nodes = [get(frozen, path) | get(tree, path) for tree in (there, adapters)]
            now, then = map(dora.row_norms, nodes)
            leaves[name] = leaves[name] * now / then
    return unflatten(leaves)


@EVERY
@pytest.mark.parametrize("ops", [layers, fused])
def test_the_bare_operations_read_a_methods_leaves_or_refuse_them(name, ops):
    """Without `operations`, a leaf that the model does not read raises an error."""
    adapters, frozen = trained(name, random_base(TINY))
    loss = value_and_grad(model.loss)
    assert (operations(adapters, frozen, ops) is ops) == (name in IN_THE_CORE)
    if name not in IN_THE_CORE:
        with pytest.raises(InputError, match=r"do not read .*: remove it"):
            loss(adapters, frozen, random_batch(TINY), TINY, ops)
        return
    _, grads = loss(adapters, frozen, random_batch(TINY), TINY, ops)
    for path, g in flatten(grads).items():
        # a bias of the keys adds the same to all scores of a query: its gradient is rounding
        assert np.abs(g).max() > 0 or path.endswith("k_proj.bias"), path


# ------------------------------------------------------------------------- cache and packing


@on_bases(METHODS)
def test_with_a_cache_as_without(name, scheme):
    """One token at a time, after a prompt of three; float32 to some units in the last place of the
    largest logit, times the dozen sums on the way."""
    base = stored(random_base(TINY), scheme)
    adapters, frozen = trained(name, base)
    tokens = np.random.default_rng(3).integers(TINY.vocab_size, size=(1, 7))
    ops = operations(adapters, frozen)
    params = model.parameters(adapters, frozen, ops)
    whole = model.hidden_states(params, tokens, np.zeros_like(tokens), TINY, ops)
    cache = [LayerCache() for _ in range(TINY.num_hidden_layers)]
    parts = [
        model.hidden_states(params, part, np.zeros_like(part), TINY, ops, cache)
        for part in np.split(tokens, [3, 4, 5, 6], axis=1)
    ]
    assert {layer.length for layer in cache} == {7 + (3 if name in VIRTUAL else 0)}
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), whole, atol=3e-5 * np.abs(whole).max()
    )


@pytest.mark.parametrize("name", VIRTUAL)
@pytest.mark.parametrize("length", [1, 11, 12, 13, 20])
def test_the_states_of_virtual_tokens_are_not_returned(name, length):
    """However long the text is, longer than the model is wide or not."""
    adapters, frozen = trained(name, random_base(TINY))
    tokens = np.arange(length)[None] % TINY.vocab_size
    logits = minilora.forward(adapters, frozen, tokens, TINY)
    assert logits.shape == (1, length, TINY.vocab_size)
    longer = minilora.forward(adapters, frozen, np.append(tokens, [[0]], axis=1), TINY)
    np.testing.assert_allclose(logits, longer[:, :-1], rtol=0, atol=1e-4 * np.abs(logits).max())


def test_a_prompt_sees_itself_causally_and_moves_the_tokens_on():
    """A prompt of rows of the embedding equals those tokens before the others."""
    base = random_base(TINY)
    front, tokens = np.array([[3, 1, 4]]), np.array([[1, 5, 9, 2, 6]])
    rows = base["model"]["embed_tokens"]["weight"][front[0]]
    ours = minilora.forward({"model": {"prompt_embeddings": rows}}, base, tokens, TINY)
    both = minilora.forward({}, base, np.concatenate([front, tokens], axis=1), TINY)
    np.testing.assert_allclose(ours, both[:, 3:], atol=1e-5 * np.abs(both).max())


def test_a_prefix_of_a_prompts_keys_and_values_is_that_prompt():
    """A prefix is not rotated: keys that are rotated already, and tokens from position n on."""
    base, n = random_base(TINY), 3
    front, tokens = np.array([[3, 1, 4]]), np.array([[1, 5, 9, 2, 6]])
    cache = [LayerCache() for _ in range(TINY.num_hidden_layers)]
    model.hidden_states(base, front, np.zeros_like(front), TINY, layers, cache)
    prefixes = {
        str(i): {
            "self_attn": {
                "prefix_k": c.k[0, :n].reshape(n, -1), "prefix_v": c.v[0, :n].reshape(n, -1)
            }
        }
        for i, c in enumerate(cache)
    }  # fmt: skip
    ours = minilora.forward({"model": {"layers": prefixes}}, base, tokens, TINY)
    both = minilora.forward({}, base, np.concatenate([front, tokens], axis=1), TINY)
    np.testing.assert_allclose(ours, both[:, n:], atol=1e-5 * np.abs(both).max())


@EVERY
def test_packed_neighbours_stay_apart_or_packing_is_refused(name):
    base = random_base(TINY)
    adapters, frozen = trained(name, base)
    config = TrainConfig(packing=True)
    if name in ("prompt", "p-tuning"):
        with pytest.raises(InputError, match="`packing` does"):
            check_packing(adapters, config)
        return
    check_packing(adapters, config)
    alone = [np.array([[1, 2, 3]]), np.array([[4, 5]])]
    ops = operations(adapters, frozen)
    params = model.parameters(adapters, frozen, ops)
    apart = [model.hidden_states(params, t, np.zeros_like(t), TINY, ops) for t in alone]
    starts, together = np.array([[0, 0, 0, 3, 3]]), np.concatenate(alone, axis=1)
    packed = model.hidden_states(params, together, starts, TINY, ops)
    expected = np.concatenate(apart, axis=1)
    np.testing.assert_allclose(packed, expected, atol=1e-5 * np.abs(expected).max())


# ------------------------------------------------------------------------- starts and merges


@on_bases(MERGEABLE)
def test_merging_is_an_equation(name, scheme):
    """forward(adapters, frozen, x) = forward({}, merged, x), to the rounding of one more float32
    weight: a dozen sums after one another, each some units in the last place."""
    base = stored(random_base(TINY, biases=("k_proj", "o_proj")), scheme)
    adapters, frozen = trained(name, base)
    tokens = np.arange(10).reshape(2, 5) % TINY.vocab_size
    ours = minilora.forward(adapters, frozen, tokens, TINY)
    merged = minilora.forward({}, minilora.merge(adapters, frozen), tokens, TINY)
    assert np.abs(ours - minilora.forward({}, base, tokens, TINY)).max() > 0.01 * np.abs(ours).max()
    np.testing.assert_allclose(merged, ours, atol=3e-5 * np.abs(ours).max())


@pytest.mark.parametrize(
    "name, leaf",
    {
        "prompt": "model.prompt_embeddings", "p-tuning": "model.prompt_encoder",
        "prefix": "model.layers.0.self_attn.prefix_k",
        "bottleneck": "model.layers.0.self_attn.o_proj.bottleneck_down",
    }.items(),
)  # fmt: skip
def test_merging_is_refused_by_name(name, leaf):
    with pytest.raises(InputError, match=f"^{leaf}.* cannot be merged"):
        minilora.merge(*trained(name, random_base(TINY)))


def start_of(name, base, scheme="none", **fields):
    config = LoraConfig(init_lora_weights=name, target_modules=ALL_LINEAR, **fields)
    return initializers.init(base, config, np.random.default_rng(0), scheme, 16), config


@few
@given(configs(), seeds, st.integers(1, 9), st.booleans())
def test_pissa_takes_the_principal_part_and_leaves_the_function(config, seed, r, dora):
    base = random_base(config, seed)
    (adapters, frozen), lora_config = start_of("pissa", base, r=r, lora_alpha=5, use_dora=dora)
    for path in lora.adapted_paths(adapters):
        w, node, rest = (get(t, path) for t in (base, adapters, frozen))
        w, rest = w["weight"].astype("f8"), rest["weight"].astype("f8")
        singular = np.linalg.svd(w, compute_uv=False)
        # eigenvalues are squares: a singular value is good to √u of the largest; rank r, the rest
        np.testing.assert_allclose(
            np.linalg.norm(rest), np.linalg.norm(singular[r:]), atol=1e-5 * singular[0]
        )
        ours = (
            rest
            + lora_config.rank_and_scaling(path)[1] * node["lora_B"].astype("f8") @ node["lora_A"]
        )
        np.testing.assert_allclose(ours, w, atol=1e-6 * singular[0])
        # √(σ/s) in each factor, so that both are of one size
        sizes = (np.linalg.norm(node["lora_A"], axis=1), np.linalg.norm(node["lora_B"], axis=0))
        used = len(singular[:r])
        np.testing.assert_allclose(*(size[:used] for size in sizes), rtol=1e-3)
    tokens = np.arange(6)[None] % config.vocab_size
    bare, ours = (minilora.forward(*t, tokens, config) for t in (({}, base), (adapters, frozen)))
    np.testing.assert_allclose(ours, bare, atol=1e-4 * np.abs(bare).max())


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_loftq_is_nearer_to_the_weights_than_quantizing(scheme):
    """A and B are then the best of their rank for these codes."""
    base = random_base(replace(TINY, hidden_size=24, intermediate_size=32))
    (adapters, frozen), config = start_of("loftq", base, scheme, r=4)
    plain = quantized(base, scheme)
    for path in lora.adapted_paths(adapters):
        w, q, alone = (layers.dense(get(t, path)["weight"]) for t in (base, frozen, plain))
        node, scaling = get(adapters, path), config.rank_and_scaling(path)[1]
        left = np.linalg.norm(w - q - scaling * node["lora_B"] @ node["lora_A"])
        assert left < 0.9 * np.linalg.norm(w - alone)
        singular = np.linalg.svd(w - q, compute_uv=False)
        assert left == pytest.approx(np.linalg.norm(singular[4:]), rel=1e-4)


def test_each_step_of_loftq_comes_nearer(monkeypatch):
    """Alg. 1 alternates: the frozen codes are those of W − s·BA, not of W."""
    base = random_base(replace(TINY, hidden_size=24, intermediate_size=32))

    def left(steps):
        monkeypatch.setattr(initializers, "LOFTQ_STEPS", steps)
        (adapters, frozen), _ = start_of("loftq", base, "nf4", r=4)
        merged = flatten(minilora.merge(adapters, frozen))
        return sum(np.sum((w - merged[path]) ** 2) for path, w in flatten(base).items())

    assert left(5) < 0.98 * left(2) < 0.98**2 * left(1)


def test_loftq_takes_five_steps():
    """The largest number of steps in the paper; each stores one quantized weight."""
    rng = np.random.default_rng(0)
    w, stored = rng.standard_normal((8, 16), np.float32), []

    def store(rest):
        stored.append(rest)
        return np.round(rest)

    node = {"lora_A": np.zeros((2, 16), "f4"), "lora_B": np.zeros((8, 2), "f4")}
    codes = initializers.loftq(w, node | {"lora_scaling": 2.0}, store)
    assert len(stored) == 5
    assert stored[0] is w and np.array_equal(codes, np.round(stored[-1]))


def test_p_tuning_is_three_layers_with_relus_between():
    adapters, _ = trained("p-tuning", random_base(TINY))
    node = adapters["model"]["prompt_encoder"]
    x = node["embedding"]["weight"]
    for n in ("0", "2", "4"):
        x = x @ node["mlp_head"][n]["weight"].T + node["mlp_head"][n]["bias"]
        x = np.where(x > 0, x, 0) if n != "4" else x
    np.testing.assert_allclose(prompt.virtual_tokens(adapters["model"]), x, rtol=1e-5, atol=1e-5)


def test_starts_need_the_dense_base_and_loftq_a_scheme():
    with pytest.raises(InputError, match="needs a dense base"):
        start_of("pissa", quantized(random_base(TINY)), "nf4")
    with pytest.raises(InputError, match="give a `scheme`"):
        start_of("loftq", random_base(TINY))
    with pytest.raises(InputError, match=r"get_peft_model"):
        lora.init(random_base(TINY), LoraConfig(init_lora_weights="pissa"), None)


# -------------------------------------------------------------------------------- the files


@on_bases(METHODS)
def test_what_is_saved_comes_back_bit_for_bit(name, scheme, tmp_path):
    base = stored(random_base(TINY), scheme)
    adapters, frozen = trained(name, base)
    save_adapter(tmp_path, adapters, frozen, make_adapter_config(name), "a base")
    back, frozen_back, config = load_adapter(tmp_path, base)
    assert config == make_adapter_config(name)
    if name == "p-tuning":  # the file has what the network puts out
        adapters = {"model": {"prompt_embeddings": prompt.virtual_tokens(adapters["model"])}}
    assert fingerprint(back) == fingerprint(adapters)
    assert fingerprint(frozen_back) == fingerprint(frozen)
    save_adapter(tmp_path / "again", back, frozen_back, config, "a base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("name, scheme", [("pissa", "none"), ("pissa", "nf4"), ("loftq", "nf4")])
def test_a_start_that_changes_the_base_is_made_again_on_loading(name, scheme, tmp_path):
    base = random_base(TINY)
    (adapters, frozen), config = start_of(name, base, scheme)
    adapters = moved(adapters, lambda w: w + np.float32(0.01))
    save_adapter(tmp_path, adapters, frozen, config, "a base")
    assert needs_dense_base(tmp_path)
    back, frozen_back, config_back = load_adapter(tmp_path, base, scheme, 16)
    assert config_back == config
    assert fingerprint(back) == fingerprint(adapters)
    assert fingerprint(frozen_back) == fingerprint(frozen)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
K0, DOWN0 = Q0.replace("q_proj", "k_proj"), Q0.replace("self_attn.q_proj", "mlp.down_proj")
FILES = {  # method: peft_type, and tensors of layer 0 with their shapes, as PEFT names them
    "lora": ("LORA", {f"{Q0}.lora_A.weight": (2, 12), f"{Q0}.lora_B.weight": (24, 2)}),
    "dora": ("LORA", {f"{Q0}.lora_magnitude_vector": (24,), f"{Q0}.lora_A.weight": (2, 12)}),
    "ia3": ("IA3", {f"{K0}.ia3_l": (12, 1), f"{DOWN0}.ia3_l": (1, 10)}),
    "prompt": ("PROMPT_TUNING", {"prompt_embeddings": (3, 12)}),
    "p-tuning": ("P_TUNING", {"prompt_embeddings": (3, 12)}),
    "prefix": ("PREFIX_TUNING", {"prompt_embeddings": (3, 2 * 2 * 12)}),
}


@pytest.mark.parametrize("name", FILES)
def test_the_names_in_a_file_are_those_of_peft(name, tmp_path):
    """A round trip does not see a wrong name, because writing and reading share it."""
    save_adapter(tmp_path, *trained(name, random_base(TINY)), make_adapter_config(name), "a base")
    kind, tensors = FILES[name]
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == kind
    assert fields.get("num_virtual_tokens") == (3 if name in VIRTUAL else None)
    found = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert {path: found[path].shape for path in tensors} == tensors


def test_the_name_of_a_trained_bias_is_that_of_peft(tmp_path):
    adapters, frozen = trained("lora", random_base(TINY))
    also = also_train(adapters, frozen, ["bias", "norm"])
    save_adapter(tmp_path, also, frozen, make_adapter_config("lora"), "a base")
    found = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert found[f"{Q0}.lora_B.bias"].shape == (24,)
    assert found["base_model.model.model.norm.weight"].shape == (12,)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_bias"] is True


def test_the_layout_of_a_prefix_is_that_of_peft(tmp_path):
    """(n, L·2·K·hd): of each layer the keys, then the values, of head after head."""
    layer, key_or_value, number = np.meshgrid(np.arange(2), np.arange(2), np.arange(12))
    order = np.stack([layer, key_or_value, number], -1).swapaxes(0, 1).reshape(-1, 3)
    row = np.float32([100 * i + 50 * j + k for i, j, k in order])  # 48 numbers
    tensor = np.stack([row, row + 1000, row + 2000])
    assert row[:2].tolist() == [0, 1] and row[12] == 50 and row[24] == 100
    fields = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    file = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file({"prompt_embeddings": tensor}, file)
    adapters, frozen, config = load_adapter(tmp_path, random_base(TINY))
    for i in range(2):
        node = adapters["model"]["layers"][str(i)]["self_attn"]
        for name, start in (("prefix_k", 100 * i), ("prefix_v", 100 * i + 50)):
            expected = start + np.arange(12) + 1000 * np.arange(3)[:, None]
            np.testing.assert_array_equal(node[name], expected)
    save_adapter(tmp_path / "again", adapters, frozen, config, "a base")
    again = safetensors.numpy.load_file(tmp_path / "again" / "adapter_model.safetensors")
    np.testing.assert_array_equal(again["prompt_embeddings"], tensor)


REFUSED = [
    ("ia3", "target_modules", ["q_proj"]), ("ia3", "feedforward_modules", ["k_proj"]),
    ("ia3", "fan_in_fan_out", True), ("ia3", "modules_to_save", ["norm"]), ("ia3", "r", 8),
    ("prompt", "num_virtual_tokens", 0), ("prompt", "num_virtual_tokens", 4),
    ("prompt", "num_virtual_tokens", 10**9), ("prompt", "num_virtual_tokens", "3"),
    ("prompt", "num_transformer_submodules", 2), ("prompt", "a_field_of_tomorrow", 1),
    ("prefix", "task_type", "SEQ_CLS"), ("prefix", "bottleneck_size", 3),
    ("ia3", "peft_type", ["IA3"]),
    ("p-tuning", "peft_type", "MULTITASK_PROMPT_TUNING"), ("bottleneck", "bottleneck_size", None),
    ("bottleneck", "bottleneck_size", 5), ("bitfit", "minilora_method", "lora"),
    ("norm", "minilora_method", ["norm"]),
]  # fmt: skip


@pytest.mark.parametrize("name, field, value", REFUSED)
def test_a_field_that_cannot_be_honoured_is_refused(name, field, value, tmp_path):
    base = random_base(TINY)
    save_adapter(tmp_path, *trained(name, base), make_adapter_config(name), "a base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError) as caught:
        load_adapter(tmp_path, base)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    # where the number is sound and the tensors are of another size, these are named
    assert field in message or "has the shape" in message


# ----------------------------------------------------------------------- rates, combinations


def test_rates_of_layers_and_of_lora_plus():
    full, _ = started("full", random_base(TINY))
    of = learning_rates(1.0, TrainConfig(layer_lr_decay=0.5), full)
    assert of["model.norm.weight"] == of["model.layers.1.mlp.up_proj.weight"] == 1.0
    assert of["model.layers.0.input_layernorm.weight"] == 0.5
    assert of["model.embed_tokens.weight"] == 0.25
    pair, _ = started("dora", random_base(TINY))
    of = learning_rates(1.0, TrainConfig(loraplus_lr_ratio=16), pair)
    q = "model.layers.0.self_attn.q_proj"
    assert of[f"{q}.lora_B"] == 16 and of[f"{q}.lora_A"] == of[f"{q}.lora_magnitude_vector"] == 1


def test_full_is_for_dense_bases_only():
    with pytest.raises(InputError, match=r"is quantized: set `scheme` to none, because"):
        started("full", quantized(random_base(TINY)))

"""All methods: counts of parameters, initialization, that the model reads their leaves, files."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    PATHS,
    TINY,
    assert_near,
    bits,
    configs,
    empty_caches,
    fast_model,
    fingerprint,
    moved,
    quantized,
    random_batch,
    random_examples,
    random_model,
    seeds,
    up_to,
    vector,
)
from numpy.testing import assert_allclose, assert_array_equal
from outcomes import error_of, refused, run
from toy_models import change_json, read_json

from minilora import forward, generate, generate_batch, layers, loss, merge, train
from minilora.config import ALL_LINEAR, LoraConfig, TrainConfig
from minilora.evaluation.loop import check_packing
from minilora.formats import method_format
from minilora.formats.checkpoint import load_adapter, needs_dense_base, save_adapter
from minilora.formats.hf_folder import projection_shapes
from minilora.formats.pretrained import load
from minilora.kernels import fused
from minilora.layers import value_and_grad
from minilora.lora import adapted_paths
from minilora.methods import dora, initializers, vera
from minilora.methods.method import SIZES, MethodConfig
from minilora.methods.registry import METHODS, get_peft_model, num_virtual_tokens
from minilora.model import Source, hidden_states, with_adapters
from minilora.quant.schemes import with_compute_dtype
from minilora.rounding import round_to
from minilora.tree import (
    arrays,
    flatten,
    get,
    named_leaves,
    num_parameters,
    overlay,
    unflatten,
)

IN_THE_CORE = ("lora", "bitfit", "prefix", "norm", "head", "full")
VIRTUAL = ("prompt", "p-tuning", "prefix")
UNMERGEABLE = ("bottleneck", *VIRTUAL)
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
TOKENS = np.arange(10).reshape(2, 5)
MODEL = fast_model()

EVERY = pytest.mark.parametrize("name", METHODS)
PAIRS = [(n, s) for n in METHODS for s in ("none", "int8", "nf4") if n != "full" or s == "none"]
ON_EVERY_BASE = pytest.mark.parametrize("name, scheme", PAIRS)


def config_of(name, **sizes):
    if name in ("lora", "dora"):
        return LoraConfig(r=2, target_modules=TARGETS, use_dora=name == "dora")
    if name in ("pissa", "loftq"):
        return LoraConfig(init_lora_weights=name, target_modules=ALL_LINEAR, **sizes)
    size = METHODS[name].size
    return MethodConfig(name, **{size: sizes.get(size, 3)} if size else {})


def started(name, model, seed=0, **sizes):
    return get_peft_model(model, config_of(name, **sizes), seed)


def trained(name, model, seed=0, dtype=np.float32):
    """The leaves of a method, each changed from its initialization, as if trained."""
    adapters, model = started(name, model, seed)
    rng = np.random.default_rng([5, seed])
    return moved(adapters, lambda w: (w + 0.2 * rng.standard_normal(w.shape)).astype(dtype)), model


# --------------------------------------------------------------------------------- counting


@given(configs(), up_to(5))
def test_parameter_counts(config, n):
    model, shapes = random_model(config), projection_shapes(config)
    L, d, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    q, k = shapes["q_proj"][0], shapes["k_proj"][0]
    low_rank = L * sum(2 * sum(shapes[target]) for target in TARGETS)  # r = 2
    expected = {
        "lora": low_rank,
        "dora": low_rank + L * sum(shapes[target][0] for target in TARGETS),
        "bitfit": L * sum(out for out, _ in shapes.values()),
        "ia3": L * (2 * k + f),
        "vera": L * (q + k) + 2 * L * n,  # per q and v: one vector per output, one per rank
        "prompt": n * d,
        "p-tuning": n * d + 3 * d * d + 3 * d,
        "prefix": 2 * L * n * k,
        "bottleneck": 2 * L * (2 * d * n + n + d),
        "norm": (2 * L + 1) * d + config.qk_norm * L * 2 * config.head_dim,
        "head": config.vocab_size * d,
        "full": num_parameters(model.base),
    }
    sizes = dict.fromkeys(SIZES, n)
    assert expected == {
        name: num_parameters(started(name, model, **sizes).adapters) for name in METHODS
    }


# ------------------------------------------------------------------------- where they start


@ON_EVERY_BASE
@PATHS
def test_the_start_is_the_base_bit_for_bit(name, scheme, ops):
    model = random_model(TINY, biases=("q_proj", "down_proj"), ops=ops)
    get(model.base, "model.layers.0.self_attn.q_proj.weight")[1] = 0  # has no direction for DoRA
    model = quantized(model, scheme)
    at_start = forward(*started(name, model), TOKENS)
    assert np.isfinite(at_start).all()
    same = bits(at_start) == bits(forward({}, model, TOKENS))
    assert same == (name not in VIRTUAL)


@pytest.mark.parametrize(
    "name, leaf, bound",
    [
        ("p-tuning", "prompt_encoder.embedding.weight", None),
        ("prefix", "1.self_attn.prefix_k", None),
        ("p-tuning", "mlp_head.2.weight", 1 / 8), ("p-tuning", "mlp_head.4.bias", 1 / 8),
        ("bottleneck", "0.mlp.down_proj.bottleneck_down", 1 / 8),
    ],
)  # fmt: skip
def test_the_random_starts(name, leaf, bound):
    """N(0, 1), or U(−1/√D, 1/√D) with D = 64, as torch starts a linear layer."""
    model = random_model(replace(TINY, hidden_size=64))
    adapters, _ = started(name, model, num_virtual_tokens=512, bottleneck_size=512)
    w = next(w for path, w in named_leaves(adapters) if path.endswith(leaf))
    deviation = bound / 3**0.5 if bound else 1
    # of n numbers the mean is off by σ/√n, and σ by less than σ/√n: six times that is allowed
    allowed = 6 * deviation / w.size**0.5
    assert abs(w.mean()) <= allowed and abs(w.std() - deviation) <= allowed
    if bound:
        assert 0.9 * bound <= np.abs(w).max() <= bound  # 64 numbers miss that with 1e-3


@pytest.mark.parametrize("n", [11, 20])
def test_a_prompt_starts_as_rows_of_the_embedding(n):
    """Of a vocabulary of 11, each row once if that is enough."""
    found = started("prompt", MODEL, num_virtual_tokens=n).adapters["model"]["prompt_embeddings"]
    embedding = MODEL.base["model"]["embed_tokens"]["weight"]
    equal = (found[:, None] == embedding).all(axis=-1)  # (n, 11)
    assert equal.any(axis=1).all() and not equal[:11].diagonal().all()
    assert n > 11 or equal.any(axis=0).all()


def test_the_matrices_of_vera_are_shared_and_not_trained():
    start, model = started("vera", MODEL)
    node = get(start, "model.layers.0.self_attn.q_proj")
    shared, before = node[vera.SHARED], [*map(bits, node[vera.SHARED])]
    assert (node[vera.D] == np.float32(0.1)).all()
    config = TrainConfig(iters=2, learning_rate=0.1, warmup_ratio=0)
    after = train(start, model, random_examples(TINY, 4), config).adapters
    for path, leaf in named_leaves(after):
        assert leaf is shared if path.endswith(vera.SHARED) else (leaf != get(start, path)).any()
    assert [*map(bits, shared)] == before
    # U(−√(6/in), √(6/in)), as in PEFT; 36 numbers miss this with 1e-3
    for w in shared:
        assert 0.8 < np.abs(w).max() / (6 / w.shape[1]) ** 0.5 <= 1


# ------------------------------------------------------------------- both paths, every leaf


@settings(max_examples=25)
@given(configs(), seeds, st.sampled_from([*METHODS]), st.booleans())
def test_both_paths_agree(config, seed, name, checkpointing):
    """In float64: the bound is some dozens of sums of up to a hundred terms, each to 1e-16.

    The terms are of the size of one, and where the model is one number wide they cancel in its
    norms until next to nothing is left: so the absolute part does not shrink with the gradient.
    """
    model = random_model(config, seed, np.float64)
    adapters, _ = trained(name, model, seed, np.float64)
    batch = random_batch(config, seed, packed=name not in ("prompt", "p-tuning"))
    of = value_and_grad(loss)
    plain, expected = of(adapters, model, batch, checkpointing=checkpointing)
    optimized = model._replace(ops=fused)
    quick, found = of(adapters, optimized, batch, checkpointing=checkpointing)
    assert quick == pytest.approx(plain, rel=1e-11)
    total = np.linalg.norm(vector(expected))
    for path, g in named_leaves(expected):
        assert_allclose(get(found, path), g, rtol=1e-9, atol=1e-11 * max(1, total))


@EVERY
def test_gradients_are_those_of_finite_differences(name):
    """Central differences over h = 1e-6 in float64 are good to h² and to 1e-16/h: 1e-9 or so.

    DoRA's are not the derivative: its norms are constants. There the difference is taken with m
    divided by the norms first, and then held.
    """
    model = fast_model(dtype=np.float64)
    adapters, _ = trained(name, model, dtype=np.float64)
    batch = random_batch(TINY, packed=False)
    _, grads = value_and_grad(loss)(adapters, model, batch)
    rng = np.random.default_rng(1)
    step = moved(adapters, lambda w: rng.standard_normal(w.shape))
    slope = 0
    for path, g in named_leaves(grads):
        # a bias of the keys adds the same to all scores of a query: its gradient is rounding
        assert np.abs(g).max() > 0 or path.endswith("k_proj.bias"), path
        slope += np.sum(g * get(step, path))

    def at(h):
        there = moved(adapters, lambda w, s: w + h * s, step)
        for path in adapted_paths(there):
            node, weight = get(there, path), get(model.base, path)
            if dora.M in node:  # DoRA divides by the norms of `adapters` instead
                node[dora.M] *= dora.row_norms(weight | node)
                node[dora.M] /= dora.row_norms(weight | get(adapters, path))
        return loss(there, model, batch)

    assert slope == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-6, abs=1e-8)


@PATHS
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_of_dora_is_that_of_peft(ops, p):
    """It changes the input of BA and that of the change of W₀x, and not that of W₀x."""
    model, path = random_model(TINY, 0, np.float64, ("q_proj",)), "model.layers.0.self_attn.q_proj"
    adapters, _ = trained("dora", model, dtype=np.float64)
    node = get(model.base, path) | get(adapters, path) | {"lora_dropout": p}
    x = np.random.default_rng(0).standard_normal((2, 3, 12))
    found = dora.apply(ops.linear, x, node, np.random.default_rng(1))
    z = layers.dropout(x, p, np.random.default_rng(1))
    w, delta = node["weight"], layers.lora_delta(node)
    c = node[dora.M] / np.linalg.norm(w + delta, axis=1)
    # h = W₀x + (c − 1)∘W₀z + c∘(α/r)·BAz + b
    expected = x @ w.T + (c - 1) * (z @ w.T) + c * (z @ delta.T) + node["bias"]
    assert_near(found, expected, 1e-13)  # float64, sums of some dozens of products


@EVERY
def test_the_core_alone_reads_a_methods_leaves_or_refuses_them(name, monkeypatch):
    """Without the tables that the registry fills, a leaf that no layer reads raises an error."""
    adapters, model = trained(name, MODEL)
    monkeypatch.setattr(layers, "HOOKS", [])
    monkeypatch.setattr(layers, "PROMPTS", {})
    if name in IN_THE_CORE:
        forward(adapters, model, TOKENS)
        return
    with refused(r"the model has no \S* that an adapter could replace or"):
        forward(adapters, model, TOKENS)


@EVERY
def test_without_the_entry_that_turns_a_method_on_the_others_are_refused(name):
    """They would have no effect, and the model would be the base without a word."""
    adapters, model = trained(name, MODEL)
    groups = [layers.LORA, layers.PREFIX, *(hook.entries for hook in layers.HOOKS)]
    firsts = tuple(entries[0] for entries in groups)
    rest = {path: w for path, w in named_leaves(adapters) if not path.endswith(firsts)}
    if any(path.endswith(entries) for path in rest for entries in groups):
        with refused("without which the others have no effect"):
            forward(unflatten(rest), model, TOKENS)


# ------------------------------------------------------------------------- cache and packing


def states(adapters, model, tokens, starts=0, caches=None):
    """The states after the last layer."""
    return hidden_states(with_adapters(adapters, model), tokens, starts + 0 * tokens, caches)


@ON_EVERY_BASE
def test_with_a_cache_as_without(name, scheme):
    """One token at a time, after a prompt of three; float32 to some units in the last place of the
    largest state, times the dozen sums on the way."""
    trees = trained(name, quantized(MODEL, scheme))
    tokens = np.random.default_rng(3).integers(TINY.vocab_size, size=(1, 7))
    whole = states(*trees, tokens)
    caches = empty_caches()
    parts = [states(*trees, p, caches=caches) for p in np.split(tokens, range(3, 7), axis=1)]
    assert {cache.length for cache in caches} == {7 + (3 if name in VIRTUAL else 0)}
    assert_near(np.concatenate(parts, axis=1), whole, 3e-5)


@given(st.sampled_from(("lora", *VIRTUAL)), up_to(4), up_to(4), up_to(9))
def test_tokens_that_the_model_cannot_read_are_warned_of_once(name, n, max_tokens, limit):
    config = replace(TINY, max_position_embeddings=limit, eos_token_id=())
    adapters, model = started(name, MODEL._replace(config=config))
    with warnings.catch_warnings(record=True, action="always") as said:
        list(generate(adapters, model, [1] * n, max_tokens))
        generate_batch([adapters] * 2, model, [[1] * n, [1]], max_tokens)
    virtual = num_virtual_tokens(config_of(name))
    assert virtual == (3 if name in VIRTUAL else 0)
    # the last token is not read
    assert len(said) == 2 * (virtual + n + max_tokens - 1 > limit)
    for warning in said:  # it points to the call
        assert f"pass the {limit} tokens" in str(warning.message) and warning.filename == __file__


@EVERY
def test_all_prompts_can_share_an_adapter_of_any_method(name):
    adapters, model = trained(name, fast_model(dtype=np.float64), dtype=np.float64)
    prompts = [[1, 2, 3, 4, 5], [3], [2, 4]]
    found = generate_batch([adapters] * 3, model, prompts, max_tokens=5)
    assert found == [list(generate(adapters, model, p, max_tokens=5)) for p in prompts]
    if name != "lora":
        with refused("is no low-rank factor"):
            generate_batch([adapters, {}], model, prompts[:2])


def test_the_prompt_of_p_tuning_is_not_trained_without_its_network(tmp_path):
    save_adapter(tmp_path, *started("p-tuning", load("tiny").model), config_of("p-tuning"))
    message = error_of(run, "train --init-adapter", tmp_path)
    assert "the prompt of P-tuning without the network" in message


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("length", [1, 13])  # shorter and longer than the model is wide
def test_virtual_tokens_that_equal_tokens_act_as_those_before_the_text(name, length):
    """The keys of a prefix are rotated already; the text begins at position n in both methods."""
    front, tokens = np.array([[3, 1, 4]]), np.arange(length)[None] % TINY.vocab_size
    if name == "prompt":
        rows = get(MODEL.base, "model.embed_tokens.weight")[front[0]]
        leaves = {"model.prompt_embeddings": rows}
    else:
        caches, leaves = empty_caches(), {}
        states({}, MODEL, front, caches=caches)
        for i, cache in enumerate(caches):
            place = f"model.layers.{i}.self_attn.prefix_"
            leaves |= {f"{place}k": cache.k.reshape(3, -1), f"{place}v": cache.v.reshape(3, -1)}
    both = forward({}, MODEL, np.concatenate([front, tokens], axis=1))
    assert_near(forward(unflatten(leaves), MODEL, tokens), both[:, 3:], 1e-5)


def test_p_tuning_is_three_layers_with_relus_between():
    adapters, _ = trained("p-tuning", MODEL)
    node = adapters["model"]["prompt_encoder"]
    x = node["embedding"]["weight"]
    for n in "024":
        layer = node["mlp_head"][n]
        x = (x if n == "0" else np.maximum(x, 0)) @ layer["weight"].T + layer["bias"]
    assert_allclose(layers.virtual_tokens(adapters["model"]), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config, why", [
    (MethodConfig("ia3", num_virtual_tokens=3), "`num_virtual_tokens` has no effect .* ia3: leave"),
    *((MethodConfig(n), f"not for {n}: give a LoraConfig") for n in ("lora", "dora")),
    (MethodConfig("lor"), "no method 'lor': choose from lora, dora, .*, prefix, full"),
])  # fmt: skip
def test_what_has_no_effect_is_refused(config, why):
    with refused(why):
        get_peft_model(MODEL, config)


@EVERY
@pytest.mark.parametrize("window", [None, 4])
def test_packed_neighbours_stay_apart_or_packing_is_refused(name, window):
    trees = trained(name, MODEL._replace(config=replace(TINY, sliding_window=window)))
    config = TrainConfig(packing=True)
    if name in ("prompt", "p-tuning"):
        with refused("leave out `packing`"):
            train(*trees, random_examples(TINY, 3), config)
        with refused("only the first of packed rows would see the trained prompt"):
            loss(*trees, random_batch(TINY))
        return
    check_packing(trees[0], config)
    alone = [np.array([[1, 2, 3]]), np.array([[4, 5]])]
    starts = np.array([[0, 0, 0, 3, 3]])
    expected = np.concatenate([states(*trees, tokens) for tokens in alone], axis=1)
    assert_near(states(*trees, np.concatenate(alone, axis=1), starts), expected, 1e-5)


# ------------------------------------------------------------------------- starts and merges


@ON_EVERY_BASE
def test_merging_is_an_equation_or_refused_by_name(name, scheme):
    """forward(adapters, frozen, x) = forward({}, merged, x), to the rounding of one more float32
    weight: a dozen sums after one another, each some units in the last place."""
    biases = ("k_proj", "o_proj", "down_proj")
    model = quantized(random_model(TINY, biases=biases, ops=fused), scheme)
    adapters, _ = trained(name, model)
    if name in UNMERGEABLE:
        path = next(iter(flatten(adapters))).partition(".embedding")[0]
        with refused(f"^{path}.* cannot be merged"):
            merge(adapters, model)
        return
    ours = forward(adapters, model, TOKENS)
    assert np.abs(ours - forward({}, model, TOKENS)).max() > 0.01 * np.abs(ours).max()
    assert_near(forward({}, merge(adapters, model), TOKENS), ours, 3e-5)


def test_pissa_and_loftq_leave_a_base_of_their_own_for_each_setting():
    """Its digest tells whether an adapter fits. Blocks have 64 weights if nothing else is said."""

    def digest(kind, *storage, **fields):
        config = LoraConfig(init_lora_weights=kind, **{"r": 2} | fields)
        return get_peft_model(MODEL, config, 0, *storage).model.source.digest

    digests = [
        digest("pissa"), digest("pissa", r=3), digest("pissa", target_modules=["q_proj"]),
        digest("loftq", "int8"), digest("loftq", "fp4"), digest("loftq", "nf4"),
        digest("loftq", "nf4", 16),
    ]  # fmt: skip
    assert len({*digests}) == len(digests)
    assert digest("loftq", "nf4", 64) == digests[5]


@settings(max_examples=25)
@given(configs(), seeds, up_to(9), st.booleans())
def test_pissa_takes_the_principal_part_and_leaves_the_function(config, seed, r, use_dora):
    model = random_model(config, seed, ops=fused)
    adapters, rest_model = started("pissa", model, r=r, lora_alpha=5, use_dora=use_dora)
    models = model, rest_model, merge(adapters, rest_model)
    for path in adapted_paths(adapters):
        w, rest, merged = (get(m.base, path)["weight"].astype("f8") for m in models)
        a, b = (get(adapters, path)[name].astype("f8") for name in ("lora_A", "lora_B"))
        sigma = np.linalg.svd(w, compute_uv=False)
        # eigenvalues are squares: a singular value is good to √u of the largest
        left = np.linalg.norm(sigma[r:])
        assert_allclose(np.linalg.norm(rest), left, atol=1e-5 * sigma[0])
        # sums of at most nine products, of float32 numbers below σ₁
        assert_allclose(merged, w, atol=1e-6 * sigma[0])
        # √(σ/s) in each factor, so that both are of one size
        sizes = np.linalg.norm(a, axis=1)[: len(sigma)], np.linalg.norm(b, axis=0)[: len(sigma)]
        assert_allclose(*sizes, rtol=1e-3)


def test_loftq_takes_five_steps_and_each_comes_nearer():
    """The largest number of steps in the paper; Alg. 1 alternates, so the codes are those of
    W − s·BA, not of W."""
    w, rests = np.random.default_rng(0).standard_normal((24, 32), np.float32), []
    factors = {"lora_A": np.zeros((4, 32), "f4"), "lora_B": np.zeros((24, 4), "f4")}
    node = factors | {"lora_scaling": 2.0}

    def store(rest):
        rests.append(rest)
        return np.round(rest)

    last = initializers.loftq(w, node, store)
    assert len(rests) == 5 and rests[0] is w and last is rests[-1]
    left = [np.linalg.svd(w - np.round(rest), compute_uv=False)[4:] for rest in rests]
    first, *_, final = np.linalg.norm(left, axis=1)
    assert final < 0.98 * first
    # a part of rank zero leaves nothing of the earlier B
    assert_array_equal(initializers.without_principal(w, 0 * w, node), w)


@pytest.mark.parametrize("scheme, block_size", [("nf4", 16), ("int8", None)])
def test_loftq_is_fitted_to_the_stored_weight(scheme, block_size):
    """A and B are the best of their rank; DoRA's magnitudes are the norms of Q + s·BA."""
    config = LoraConfig(r=2, lora_alpha=6, init_lora_weights="loftq", use_dora=True)
    adapters, model = get_peft_model(MODEL, config, 0, scheme, block_size)
    for path in adapted_paths(adapters):
        node, frozen = get(adapters, path), get(model.base, path)
        rest = get(MODEL.base, path)["weight"] - frozen["weight"].dequantize()
        left = np.linalg.norm(np.linalg.svd(rest, compute_uv=False)[2:])
        # A and B are computed in float64 and rounded
        assert np.linalg.norm(rest - layers.lora_delta(node)) == pytest.approx(left, rel=1e-4)
        assert_array_equal(node[dora.M], dora.row_norms(frozen | node))


def test_only_a_start_that_changes_the_base_stores_it_and_from_a_dense_one():
    with refused("needs a dense base"):
        started("pissa", quantized(MODEL))
    with refused("are for PiSSA and LoftQ: call"):
        get_peft_model(MODEL, LoraConfig(), 0, "none")


@pytest.mark.parametrize("kind", ["pissa", "loftq"])
def test_no_adapter_begins_on_what_pissa_or_loftq_left(kind):
    """As if a cell of a notebook runs twice: the other part of the weights would be lost."""
    _, model = get_peft_model(MODEL, config_of(kind), 0, "nf4")
    for name in (*METHODS, kind):
        with refused(f"`model` has the frozen weights that {kind} left .* as it was loaded"):
            started(name, model)


# -------------------------------------------------------------------------------- the files


@EVERY
def test_what_is_saved_comes_back_bit_for_bit(name, tmp_path):
    """Of P-tuning come the rows that its network gives, which no run rounds."""
    adapters, model = trained(name, MODEL)
    # as a run with this adapter_dtype rounds the trained leaves
    adapters = overlay(adapters, round_to(arrays(adapters), "bfloat16"))
    save_adapter(tmp_path, adapters, model, config_of(name), "bfloat16")
    assert needs_dense_base(tmp_path) == (name == "full")
    back, _, config = load_adapter(tmp_path, model)
    assert config == config_of(name)
    if name == "p-tuning":
        adapters = {"model": {"prompt_embeddings": layers.virtual_tokens(adapters["model"])}}
    assert fingerprint(back) == fingerprint(adapters)
    with refused("are for PiSSA and LoftQ: call"):
        load_adapter(tmp_path, model, None, 16)
    change_json(tmp_path / "adapter_config.json", peft_type="X")
    with refused("adapter_config.json: peft_type or minilora_method 'X' is not implemented"):
        load_adapter(tmp_path, model)


@pytest.mark.parametrize("name, storage", [("pissa", ["nf4", 16]), ("loftq", ["int8"])])
def test_a_start_is_made_again_from_the_dense_base(name, storage, tmp_path):
    """In the storage and with the products that it was trained on."""
    model, config = MODEL._replace(source=Source("base")), config_of(name)
    adapters, frozen = get_peft_model(model, config, 0, *storage)
    said = pytest.warns(UserWarning, match="the dense weights of base are rounded to bfloat16")
    with said:
        frozen = with_compute_dtype(frozen, "bfloat16")
    save_adapter(tmp_path, adapters, frozen, config)
    assert needs_dense_base(tmp_path)
    with said:
        back = load_adapter(tmp_path, model).model
    assert fingerprint(back.base) == fingerprint(frozen.base) and back.source == frozen.source


@pytest.mark.parametrize(
    "name, kind, tensors",  # of layer 0, as PEFT names them
    [
        ("dora", "LORA", {"self_attn.q_proj.lora_magnitude_vector": (24,)}),
        ("ia3", "IA3", {"self_attn.k_proj.ia3_l": (12, 1), "mlp.down_proj.ia3_l": (1, 10)}),
        ("vera", "VERA", {"self_attn.q_proj.vera_lambda_b": (24,)}),
        ("prompt", "PROMPT_TUNING", {}), ("p-tuning", "P_TUNING", {}),
        ("prefix", "PREFIX_TUNING", {}),
    ],
)  # fmt: skip
def test_the_names_in_a_file_are_those_of_peft(name, kind, tensors, tmp_path):
    """A round trip does not see a wrong name, because writing and reading share it."""
    save_adapter(tmp_path, *trained(name, MODEL), config_of(name))
    assert read_json(tmp_path / "adapter_config.json")["peft_type"] == kind
    found = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    for path, shape in tensors.items():
        assert found[f"base_model.model.model.layers.0.{path}"].shape == shape


def test_the_layout_of_a_prefix_is_that_of_peft(tmp_path):
    """(n, L·2·K·hd): of each layer the keys, then the values, of head after head."""
    adapters, model = trained("prefix", MODEL)
    save_adapter(tmp_path, adapters, model, config_of("prefix"))
    found = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    paths = [f"model.layers.{i}.self_attn.prefix_{name}" for i in (0, 1) for name in "kv"]
    for path, part in zip(paths, np.split(found["prompt_embeddings"], 4, axis=1)):
        assert_array_equal(part, get(adapters, path))


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("ia3", "modules_to_save", ["norm"]), ("ia3", "peft_type", ["IA3"]),
        ("prompt", "task_type", None), ("vera", "layers_to_transform", 0),
        ("bitfit", "minilora_method", "lora"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_honoured_is_refused(name, field, value):
    written = method_format.as_json(MethodConfig(name), "a base")
    with refused(field):
        method_format.read_config(written | {field: value}, MODEL.base)


# fields of PEFT's file that say only how an adapter began, or what another field says
FREE = {
    "ia3": "init_ia3_weights", "vera": "d_initial init_weights projection_prng_key",
    "prompt": "num_attention_heads prompt_tuning_init prompt_tuning_init_text "
              "tokenizer_name_or_path tokenizer_kwargs",
    "p-tuning": "num_attention_heads encoder_reparameterization_type encoder_hidden_size "
                "encoder_num_layers encoder_dropout",
    "prefix": "num_attention_heads encoder_hidden_size prefix_projection init_weights",
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_a_field_of_peft_that_is_off_or_another_is_not_what_the_method_needs(name):
    written = method_format.as_json(MethodConfig(name), "a base")
    assert written["base_model_name_or_path"] == "a base" and written["inference_mode"] is True
    # a set of PEFT has no order
    same = {key: value[::-1] for key, value in written.items() if isinstance(value, list)}
    same |= dict.fromkeys(FREE[name].split(), "any")
    of_model = {"num_layers": 2, "token_dim": 12} if name in VIRTUAL else {}
    written |= of_model
    assert method_format.read_config(written | same, MODEL.base) == MethodConfig(name)
    fixed = METHODS[name].peft_fields | of_model | {"task_type": "CAUSAL_LM"}
    for field, value in fixed.items():
        for other in (type(value)(), ["another"]):
            with refused(f"{field} .* is not implemented"):
                method_format.read_config(written | {field: other}, MODEL.base)

"""Adapter folders and checkpoints: round trips, malformed files, and kills during a save."""

import json
import os
import re
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    bits,
    configs,
    fingerprint,
    moved,
    random_batch,
    random_model,
    seeds,
    target_sets,
    up_to,
    usual_config,
)
from outcomes import refused
from toy_models import FACTS, change_json, change_tensors, files, read_json

from minilora import lora, merge
from minilora.config import ALL_LINEAR, LoraConfig, TrainConfig
from minilora.formats.checkpoint import (
    CONFIG,
    RUN,
    WEIGHTS,
    UnfitAdapter,
    averages,
    begins_with_zero,
    load_adapter,
    load_state,
    read_metadata,
    read_source,
    save_adapter,
    save_state,
)
from minilora.formats.pretrained import save_pretrained
from minilora.methods.method import MethodConfig
from minilora.methods.registry import METHODS, get_peft_model
from minilora.methods.replaced import also_train
from minilora.model import Source, forward, lm_head
from minilora.rounding import round_to
from minilora.training import Best, State, start
from minilora.tree import arrays, get, overlay, set_leaf, tree_map, unflatten, without

Q0 = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{Q0}.lora_A.weight"
MODEL = random_model(TINY)


def trained_adapter(model, config, groups=(), seed=0):
    """An adapter in which every array differs from its start."""
    rng = np.random.default_rng([5, seed])
    adapters = also_train(lora.init(model.base, config, rng), model.base, groups)
    return moved(adapters, lambda w: np.float32(w + rng.standard_normal(w.shape)))


def assert_same_bits(tree, expected):
    assert fingerprint(tree) == fingerprint(expected)


def saved(path, model=MODEL, **fields):
    """Write an adapter with these fields, on TINY by default; return its folder."""
    save_adapter(path, *adapted(model, **fields), LoraConfig(**fields))
    return path


names = st.sampled_from(("q_proj", "v_proj", "mlp.up_proj", "0.mlp.up_proj", Q0))
patterns = st.dictionaries(names, up_to(9), max_size=3)
lora_configs = st.builds(
    LoraConfig,
    r=up_to(5),
    lora_alpha=up_to(64) | st.floats(0.1, 64),
    lora_dropout=st.sampled_from((0.0, 0.05)),
    target_modules=target_sets | st.just(("all-linear",)),
    use_rslora=st.booleans(),
    layers_to_transform=st.sampled_from((None, (0,))),
    rank_pattern=patterns,
    alpha_pattern=patterns,
)


@given(lora_configs)
def test_every_expression_of_a_pattern_decides_something_or_is_refused(config):
    """Another value of it is another rank or scaling of a projection."""
    paths = lora.target_paths(MODEL.base, config)

    def sizes(**changes):
        return [*map(replace(config, **changes).rank_and_scaling, paths)]

    useless = [
        re.escape(f"`{name}` has {regex!r}, which matches no")
        for name in ("rank_pattern", "alpha_pattern")
        for regex in getattr(config, name)
        if sizes() == sizes(**{name: getattr(config, name) | {regex: 100}})
    ]
    with refused(useless[0]) if useless else nullcontext():
        get_peft_model(MODEL, config)


# --- there and back


DTYPES = st.sampled_from(("float32", "bfloat16", "float16"))
GROUPS = st.sets(st.sampled_from(("norm", "head")))


@given(configs(), lora_configs, GROUPS, DTYPES, seeds)
def test_an_adapter_comes_back_bit_for_bit(tmp_path_factory, shape, config, groups, dtype, seed):
    """Half precision rounds once: what is read is written as the same bytes."""
    model = random_model(shape, seed)
    adapters = trained_adapter(model, config, groups, seed)
    folder, again = (tmp_path_factory.mktemp("adapter") for _ in range(2))
    save_adapter(folder, adapters, model, config, dtype)
    before = fingerprint(model.base)
    loaded, loaded_model, loaded_config = load_adapter(folder, model)
    # with the scaling and the dropout of each path
    assert_same_bits(loaded, overlay(adapters, round_to(arrays(adapters), dtype)))
    save_adapter(again, loaded, model, loaded_config, dtype)
    assert files(folder) == files(again)
    assert loaded_model.base is model.base and fingerprint(model.base) == before


@given(lora_configs, st.booleans(), seeds)
def test_trained_biases_come_back(tmp_path_factory, config, base_has_biases, seed):
    model = random_model(TINY, seed, biases=ALL_LINEAR if base_has_biases else ())
    adapters = trained_adapter(model, config, ("bias",), seed)
    first, *others = lora.adapted_paths(adapters)
    if others:  # the file has all biases if one is trained: the first one is that of the base
        del get(adapters, first)["bias"]
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, adapters, model, config, "bfloat16")
    loaded, _, _ = load_adapter(folder, model)
    for path in (first, *others):
        node, own = get(adapters, path), get(model.base, path).get("bias", 0)
        b, found = np.float64(node.get("bias", own)), np.float64(get(loaded, path)["bias"])
        # b_B and (α/r)·b_B + b₀ are each rounded once to float32, by at most 2⁻²⁴ of themselves
        assert (abs(found - b) <= 2**-24 * (1 + 1e-6) * (abs(b - own) + abs(found))).all()


def test_the_files_are_what_peft_expects(tmp_path):
    config = LoraConfig(r=2, target_modules=("q_proj",))
    adapters = trained_adapter(MODEL, config, ("norm", "head"))
    save_adapter(tmp_path, adapters, MODEL._replace(source=Source(**SOURCE)), config)
    with safetensors.safe_open(tmp_path / "adapter_model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt", "minilora_source": json.dumps(SOURCE)}
        names = {KEY, KEY.replace("_A", "_B"), "base_model.model.lm_head.weight"}
        assert names <= {*file.keys()}
    text = (tmp_path / "adapter_config.json").read_text("utf-8")
    assert text.endswith("\n}\n") and "bäse" in text  # for a person, as all files of JSON
    expected = {
        "base_model_name_or_path": SOURCE["name"], "peft_type": "LORA", "task_type": "CAUSAL_LM",
        # `norm` alone would do, as PEFT compares ends; the other two say it to a person
        "modules_to_save": ["input_layernorm", "lm_head", "norm", "post_attention_layernorm"],
    }  # fmt: skip
    assert expected.items() <= json.loads(text).items()


def test_a_trained_embedding_leaves_the_head_as_it_was(tmp_path):
    """As in PEFT: the head of a tied model keeps the frozen embedding.

    Of the norms, only the last one is trained, so the file names modules one by one.
    """
    head = lm_head(MODEL.base)
    untied = MODEL._replace(base={**MODEL.base, "lm_head": {"weight": head}})
    adapters, _ = adapted(MODEL)
    set_leaf(adapters, "model.embed_tokens.weight", head[::-1].copy())
    set_leaf(adapters, "model.norm.weight", np.ones(12, "f4"))
    save_adapter(tmp_path, adapters, untied, LoraConfig())
    assert read_json(tmp_path / CONFIG)["modules_to_save"] == ["model.embed_tokens", "model.norm"]
    loaded, model, _ = load_adapter(tmp_path, MODEL)
    assert_same_bits(loaded, adapters)
    tokens = random_batch(TINY)["tokens"]
    assert bits(forward(loaded, model, tokens)) == bits(forward(adapters, untied, tokens))
    assert bits(lm_head(merge(loaded, model).base)) == bits(head)
    # an adapter with a head of its own needs none in the base
    set_leaf(adapters, "lm_head.weight", head)
    save_adapter(tmp_path / "own", adapters, MODEL, LoraConfig())
    assert load_adapter(tmp_path / "own", MODEL).model.base is MODEL.base


# --- the model that it was trained on

sources = st.builds(
    Source, st.sampled_from(("", "a", "b")), st.sampled_from(("none", "nf4")),
    st.sampled_from((None, 32)), st.sampled_from(("0f", "1e")),
    st.sampled_from(("float32", "bfloat16")),
)  # fmt: skip


@given(sources, sources)
def test_another_storage_and_other_files_are_warned_of(tmp_path_factory, then, now):
    """Another name is no warning, because a folder can be moved."""
    folder = saved(tmp_path_factory.mktemp("adapter"), MODEL._replace(source=then))
    assert read_source(folder) == (then if then.name else None)
    with warnings.catch_warnings(record=True, action="always") as caught:
        load_adapter(folder, MODEL._replace(source=now))
    both, dtype = then.name and now.name, then.compute_dtype
    expected = {
        # a merged model, or one that a program made
        "the source of the model is unknown": then.name and not now.name,
        f"{folder} was trained on a base stored as {then.scheme}": both and then[1:3] != now[1:3],
        f"{folder} was trained with products in {dtype}, not": both and dtype != now.compute_dtype,
        f"the files of {now.name} are not those of the base that {folder}": (
            both and then.digest != now.digest
        ),
    }
    expected = [text for text, said in expected.items() if said]
    assert len(caught) == len(expected)
    for warning, text in zip(caught, expected):
        assert str(warning.message).startswith(text)
        assert warning.filename == __file__, "it points to the call"


@pytest.mark.parametrize("method", METHODS)
def test_a_leaf_that_a_method_does_not_have_is_not_lost(tmp_path, method):
    """Also if the format packs only some leaves, as of prompts."""
    config = usual_config(method)
    adapters, model = get_peft_model(MODEL, config)
    more = overlay(adapters, unflatten({"model.layers.0.mlp.up_proj.own": np.ones(3, "f4")}))
    with refused("model.layers.0.mlp.up_proj"):
        save_adapter(tmp_path, more, model, config)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["pissa", "loftq"])
def test_the_base_that_an_initialization_leaves_is_another_one(tmp_path, kind):
    """Only its own adapter is loaded onto the weights of the files without a word."""
    model = MODEL._replace(source=Source("tiny", digest="0f"))
    config = LoraConfig(init_lora_weights=kind)
    started = get_peft_model(model, config, 0, "nf4", 16)
    own, peft = tmp_path / "own", saved(tmp_path / "peft")
    save_adapter(own, *started, config)
    left = f"the frozen weights that {kind} left"
    with refused(f"{left} for its own adapter"):
        save_pretrained(tmp_path / "base", started.model)
    with refused("True is not that of `model`"):
        save_adapter(tmp_path / "none", *started, LoraConfig())
    with refused(f"`model` has {left}"):
        load_adapter(own, started.model)
    stored = "stored as nf4, block size 16, not"
    for says, *args in (
        (f"{stored} int8: an", own, model, "int8"),
        (f"{stored} nf4, block size 32", own, model, None, 32),
        (f"that {kind} left: load .*peft anew", peft, started.model),
    ):
        with pytest.warns(UserWarning, match=says) as said:
            load_adapter(*args)
        assert said[0].filename == __file__
    # of a model that is in no file, the own adapter knows no source
    started = get_peft_model(MODEL, config, 0, "nf4", 16)
    save_adapter(tmp_path / "unknown", *started, config)
    with warnings.catch_warnings(action="error"):
        again = load_adapter(tmp_path / "unknown", MODEL, "nf4", 16)
    assert_same_bits(again.model.base, started.model.base)


SOURCE = {
    "name": "models/a bäse", "scheme": "nf4", "block_size": 64, "digest": "0f",
    "compute_dtype": "float32",
}  # fmt: skip


def test_a_malformed_source_is_refused(folder):
    def source(fields):
        change_tensors(folder / WEIGHTS, dict, minilora_source=json.dumps(fields))

    source(SOURCE)
    assert read_source(folder) == Source(**SOURCE)
    for changed in ({"bits": 4}, {"block_size": "64"}, {"compute_dtype": "float16"}):
        source(SOURCE | changed)
        assert "adapter_model.safetensors: its minilora_source" in refusal(folder)


def test_the_folder_of_a_run_or_a_model_is_not_changed(folder):
    saved(folder, r=2)  # a second time into a folder of its own
    assert load_adapter(folder, MODEL).adapter_config.r == 2
    for name, has in (
        ("checkpoint.safetensors", "already contains a run"),
        ("train_config.toml", "already contains a run"), ("config.json", "contains a model"),
    ):  # fmt: skip
        (folder / name).write_text("of a run")
        before = files(folder)
        with refused(f"{has}: choose another folder"):
            saved(folder, r=3)
        assert files(folder) == before
        (folder / name).unlink()


# --- PEFT's ways of saying it


@pytest.mark.parametrize(
    "fields, targets",
    [
        ({"layers_to_transform": []}, ["q_proj", "v_proj"]),
        ({"layers_to_transform": 0}, [Q0, "0.self_attn.v_proj"]),
        # PEFT does not adapt excluded modules, and so the file has no tensors for them
        ({"exclude_modules": ["v_proj", "nowhere"]}, ["q_proj"]),
        ({"exclude_modules": r".*\.v_proj"}, ["q_proj"]),
    ],
)
def test_fields_that_are_absent_have_the_defaults_of_peft(tmp_path, fields, targets):
    saved(tmp_path, target_modules=targets)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", **fields}))
    adapters, _, config = load_adapter(tmp_path, MODEL)
    paths = lora.target_paths(MODEL.base, LoraConfig(target_modules=targets))
    assert lora.adapted_paths(adapters) == paths and config.r == 8
    assert "nowhere" not in (config.exclude_modules or "")
    node = get(adapters, Q0)
    assert node["lora_scaling"] == 1.0 and node["lora_dropout"] == 0.0


def test_the_keys_of_a_pattern_are_regular_expressions():
    """The first that matches decides; the end of a name is not a name."""
    pattern = {r"^model\.layers\.0\..*(q|k)_proj": 3, "k_proj|q.proj": 4, "_proj": 5}
    config = LoraConfig(r=8, lora_alpha=8, rank_pattern=pattern, alpha_pattern=pattern)
    for path, r in {Q0: 3, Q0.replace("0", "1"): 4, Q0.replace("q_", "v_"): 8}.items():
        assert config.rank_and_scaling(path) == (r, 1.0)


# --- what is refused


@pytest.fixture
def folder(tmp_path):
    """A sound adapter on q_proj and v_proj of TINY, r 8."""
    return saved(tmp_path / "new" / "adapter")


def refusal(folder):
    """Return the message of the error, which names the folder."""
    with refused(re.escape(str(folder))) as caught:
        load_adapter(folder, MODEL)
    return str(caught.value)


@pytest.mark.parametrize("name, value", [
    ("peft_type", None), ("task_type", "SEQ_CLS"), ("bias", "nonsense"), ("kasa_config", {}),
    ("exclude_modules", "(v_proj"), ("init_lora_weights", "pissa_niter_4"),
    ("a_field_of_tomorrow", True), ("target_modules", ["q_proj", "nowhere"]),
    ("modules_to_save", ["q_proj"]), ("modules_to_save", [5]),
    ("r", None), ("lora_alpha", None), ("lora_dropout", None), ("rank_pattern", None),
    ("alpha_pattern", None),
])  # fmt: skip
def test_a_field_that_cannot_be_honoured_is_refused_by_name(folder, name, value):
    change_json(folder / CONFIG, **{name: value})
    message = refusal(folder).removeprefix(str(folder))
    assert re.search(rf"\W{name}\W", message)


def test_a_trained_bias_of_the_base_is_refused_by_its_tensor(folder):
    """PEFT's "lora_only" trains the biases of the adapted projections, and "all" every bias."""
    for bias in ("all", "lora_only"):
        change_json(folder / CONFIG, bias=bias)
        assert load_adapter(folder, MODEL).adapter_config.bias == "none"
    name = f"base_model.model.{Q0}.bias"
    change_tensors(folder / WEIGHTS, lambda tensors: tensors | {name: np.ones(24, "f4")})
    with pytest.raises(UnfitAdapter, match=f"tensor {name} does not belong here$"):
        load_adapter(folder, MODEL)


def test_a_field_that_changes_nothing_is_accepted(folder):
    change_json(
        folder / CONFIG, revision="main", megatron_core="megatron.core", eva_config={"rho": 2.0},
        loftq_config={}, of_tomorrow=False, another=None, one_more="", last=[],
        exclude_modules="v_proj",  # an expression that matches no whole path: PEFT warns
    )  # fmt: skip
    for value in (None, True, "gaussian", "eva", False, "orthogonal"):
        change_json(folder / CONFIG, init_lora_weights=value)
        assert load_adapter(folder, MODEL).adapter_config.init_lora_weights is True
        assert begins_with_zero(folder) == (value not in (False, "orthogonal"))


def test_an_adapter_of_which_peft_trains_one_factor_is_warned_of(folder):
    change_json(folder / CONFIG, init_lora_weights="mica")
    with pytest.warns(UserWarning, match="PEFT trains only A of an adapter with .* 'mica'") as said:
        load_adapter(folder, MODEL)
    assert said[0].filename == __file__


def test_a_bias_too_large_once_scaled_is_refused(tmp_path):
    """b = b₀ + (α/r)·b_B has to be a float32 number: no warning, and no infinite bias."""
    config = LoraConfig()
    save_adapter(tmp_path, trained_adapter(MODEL, config, ("bias",)), MODEL, config)
    change_json(tmp_path / CONFIG, lora_alpha=1e42)
    assert f"{Q0}.bias has a NaN or an infinite number" in refusal(tmp_path)


def test_a_pickle_is_never_opened(folder):
    (folder / "adapter_model.bin").touch()
    load_adapter(folder, MODEL)  # next to the pickle
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "has only adapter_model.bin, a pickle" in refusal(folder)


def test_folders_that_are_none(folder, tmp_path):
    assert "cannot be read" in refusal(tmp_path / "nowhere")
    (folder / CONFIG).write_text("[]")
    assert "one JSON object" in refusal(folder)


@pytest.mark.parametrize("names", [["lora_A"], ["lora_B"], ["lora_A", "lora_B"]])
def test_factors_that_are_all_zero_are_warned_of_once(folder, names):
    def zero(tensors, end=""):
        for key in tensors:
            if any(f"{end}.{name}" in key for name in names):
                tensors[key][:] = 0

    change_tensors(folder / WEIGHTS, lambda tensors: zero(tensors, "v_proj"))
    with warnings.catch_warnings(action="error"):
        load_adapter(folder, MODEL)
    change_tensors(folder / WEIGHTS, zero)
    with pytest.warns(match=f"adapter_model.safetensors: every {names[-1]} is zero") as caught:
        load_adapter(folder, MODEL)
    assert [warning.filename for warning in caught] == [__file__]


def test_saving_refuses_what_the_format_would_lose(tmp_path):
    adapters, _ = adapted(MODEL)

    def with_leaf(path, w):
        return overlay(adapters, unflatten({path: w})), MODEL, LoraConfig()

    def with_biases(**fields):
        config = LoraConfig(**fields)
        tree, model = get_peft_model(MODEL, config)
        return also_train(tree, model.base, ("bias",)), model, config

    prompt = get_peft_model(MODEL, MethodConfig("prompt", num_virtual_tokens=3))
    embedding, large = np.ones((11, 12), "f4"), np.full((24, 8), 1e5, "f4")
    for says, *args in (
        ("LoraConfig", adapters, MODEL, LoraConfig(lora_dropout=0.5)),
        ("LoraConfig", adapters, MODEL, LoraConfig(r=4)),
        ("LoraConfig", adapters, MODEL, LoraConfig(target_modules=("q_proj",))),
        (r"prompt: tensor .*\(3, 12\), not \(16, 12\)", *prompt, MethodConfig("prompt")),
        ("loftq", adapters, MODEL, LoraConfig(init_lora_weights="loftq")),
        ("embedding that is also the head", *with_leaf("model.embed_tokens.weight", embedding)),
        (f"{Q0}.lora_B", *with_leaf(f"{Q0}.lora_B", large)),
        ("trained biases of DoRA or PiSSA", *with_biases(use_dora=True)),
        ("trained biases of DoRA or PiSSA", *with_biases(init_lora_weights="pissa")),
    ):
        with refused(says):
            save_adapter(tmp_path, *args, "float16")
        assert not os.listdir(tmp_path), "nothing is left behind"


# --- the state of a run


def random_state(seed, optimizer, best):
    rng = np.random.default_rng(seed)

    def random(w):
        return rng.standard_normal(w.shape, dtype="f4")

    like, _ = adapted(MODEL)
    state = start(like, TrainConfig(optimizer=optimizer))
    moments = state.moments | tree_map(random, averages(state.moments))
    return State(moved(like, random), moments, best._replace(adapters=like if best.step else None))


bests = st.builds(
    Best, st.floats(allow_nan=False), st.sampled_from((0, 1, 10**9)), st.none(), st.integers(0, 99)
)


@given(seeds, st.sampled_from(("adamw", "muon")), st.integers(0, 10**9), bests, st.text())
def test_a_state_comes_back_bit_for_bit(tmp_path_factory, seed, optimizer, step, best, text):
    path = tmp_path_factory.mktemp("run") / "state"
    saved = random_state(seed, optimizer, best)
    saved.moments["step"] = step
    facts = FACTS | {"settings": {"text": text}}
    save_state(path, saved, facts, text)
    loaded, loaded_facts, history = load_state(path, saved.adapters, optimizer)
    assert history.decode() == text and loaded_facts == facts
    assert_same_bits(loaded.adapters, saved.adapters)
    assert_same_bits(averages(loaded.moments), averages(saved.moments))
    assert loaded.step == step and loaded.moments.keys() == saved.moments.keys()
    assert loaded.best._replace(adapters=None) == best
    assert_same_bits(loaded.kept, saved.kept)
    assert os.listdir(path.parent) == ["state"]


def test_a_foreign_or_broken_state_is_refused(tmp_path, folder):
    path, state = tmp_path / "state", random_state(0, "adamw", Best())
    save_state(path, state, FACTS)

    def complaint(path, optimizer="adamw"):
        with refused(re.escape(str(path))) as caught:
            load_state(path, state.adapters, optimizer)
        return str(caught.value)

    assert re.search(r"tensor m\.model\.\S* does not belong", complaint(path, "muon"))
    key = f"v.{Q0}.lora_A"
    change_tensors(path, lambda tensors: tensors | {key: np.ones((3, 2), "f4")})
    assert key in complaint(path)
    change_tensors(path, lambda tensors: without(tensors, "history"))
    assert "has no tensor history: train again" in complaint(path)
    numbers, facts = read_metadata(path)
    for metadata in (
        {"state": numbers | {"step": "1"}, "facts": facts}, {"state": numbers},
        {"state": numbers | {"of_tomorrow": 5}, "facts": facts},
    ):  # fmt: skip
        change_tensors(path, dict, **{RUN: json.dumps(metadata)})
        assert "not a checkpoint of this version of minilora" in complaint(path)
    assert "delete it, or train again" in complaint(folder / WEIGHTS)

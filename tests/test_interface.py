"""The interface that users of PEFT expect: names, arguments, results that unpack, errors."""

import inspect

import numpy as np
import pytest
from models import TINY, moved, random_base, random_examples

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig, layers, lora, model
from minilora.batching import Example
from minilora.config import ALL_LINEAR, InputError, ModelConfig
from minilora.methods.registry import METHODS
from minilora.tree import arrays, flatten

TOKENS = np.arange(6)[None]


def test_dir_is_the_interface():
    assert dir(minilora) == sorted(minilora.__all__)
    assert all(hasattr(minilora, name) for name in minilora.__all__)
    for name in minilora.__all__:  # no function hides a module of its name
        value = getattr(minilora, name)
        assert inspect.ismodule(value) or not hasattr(value, "__path__")


def test_public_functions_are_typed():
    for name in minilora.__all__:
        value = getattr(minilora, name)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            missing = [p for p in signature.parameters.values() if p.annotation is p.empty]
            assert not missing and signature.return_annotation is not signature.empty, name


NAMES = {
    ("q_proj",): {"q_proj"}, ".*q_proj": {"q_proj"}, "all-linear": set(ALL_LINEAR),
    "All-Linear": set(ALL_LINEAR), ("all-linear",): set(ALL_LINEAR),
    ("q_proj", "v_proj"): {"q_proj", "v_proj"}, r".*\.(q|v)_proj": {"q_proj", "v_proj"},
    r".*mlp\..*_proj": {"gate_proj", "up_proj", "down_proj"},
    ("self_attn.k_proj",): {"k_proj"}, r".*self_attn\.k_proj": {"k_proj"},
}  # fmt: skip


@pytest.mark.parametrize("targets", NAMES, ids=str)
def test_target_modules_are_a_name_a_list_or_an_expression(targets):
    given = list(targets) if isinstance(targets, tuple) else targets
    paths = lora.target_paths(random_base(TINY), LoraConfig(target_modules=given))
    assert {path.rpartition(".")[2] for path in paths} == NAMES[targets]
    assert len(paths) == TINY.num_hidden_layers * len(NAMES[targets])


@pytest.mark.parametrize("targets", [["proj"], ["q"], ["q_proj", r".*v_proj"], [], ["lm_head"]])
def test_targets_that_match_nothing_are_refused(targets):
    with pytest.raises(InputError, match="target"):
        lora.target_paths(random_base(TINY), LoraConfig(target_modules=targets))


@pytest.mark.parametrize(
    "targets", ["q_proj", "self_attn.q_proj", "proj", r"q_.*", r"model\.layers\.2\..*q_proj"]
)
def test_a_string_of_targets_matches_whole_paths_as_in_peft(targets):
    """re.fullmatch of the whole path finds no q_proj in 'q_proj'; a list compares the end."""
    with pytest.raises(InputError) as error:
        lora.target_paths(random_base(TINY), LoraConfig(target_modules=targets))
    message = str(error.value)
    assert f"{targets!r} is a regular expression, and matches no whole path" in message
    assert f"[{targets!r}]" in message and "'.*q_proj'" in message


@pytest.mark.parametrize(
    ("targets", "other"),
    [(r".*(q_proj|lm_head)", "lm_head"), (r".*mlp.*", "model.layers.0.mlp"), (".*", "lm_head")],
)
def test_an_expression_that_matches_other_modules_is_refused_as_in_peft(targets, other):
    with pytest.raises(InputError, match=f"matches {other}, too, which is not a projection"):
        lora.target_paths(random_base(TINY), LoraConfig(target_modules=targets))


EXCLUDED = {
    ("q_proj",): set(ALL_LINEAR) - {"q_proj"},
    ("self_attn.q_proj", "down_proj"): set(ALL_LINEAR) - {"q_proj", "down_proj"},
    ("lm_head",): set(ALL_LINEAR),
    ("mlp",): set(ALL_LINEAR),  # the module mlp, and not the projections in it
    r".*\.(q|up)_proj": set(ALL_LINEAR) - {"q_proj", "up_proj"},
    r".*mlp.*": set(ALL_LINEAR[:4]),
}


@pytest.mark.parametrize("excluded", EXCLUDED, ids=str)
@pytest.mark.parametrize("targets", ["all-linear", r".*_proj", ALL_LINEAR], ids=str)
def test_excluded_modules_are_no_targets(excluded, targets):
    config = LoraConfig(target_modules=targets, exclude_modules=excluded)
    paths = lora.target_paths(random_base(TINY), config)
    assert {path.rpartition(".")[2] for path in paths} == EXCLUDED[excluded]
    assert len(paths) == TINY.num_hidden_layers * len(EXCLUDED[excluded])


def test_a_module_is_excluded_in_one_layer():
    first, second = (f"model.layers.{i}.self_attn.q_proj" for i in range(2))
    for excluded in ([first], r".*layers\.0\..*"):
        config = LoraConfig(target_modules=["q_proj"], exclude_modules=excluded)
        assert lora.target_paths(random_base(TINY), config) == [second]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_modules": "v_proj"}, "exclude_modules 'v_proj' matches nothing in this model"),
        ({"exclude_modules": ["q_proj", "vproj"]}, "exclude_modules 'vproj' matches nothing"),
        ({"exclude_modules": ["q_proj", "v_proj"]}, "no targets: name a module and a layer"),
        (
            {"target_modules": ["layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
            "no targets: name a module and a layer",
        ),
    ],
)
def test_what_would_adapt_other_modules_than_meant_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        minilora.get_peft_model(random_base(TINY), LoraConfig(**fields))


@pytest.mark.parametrize("method", METHODS)
def test_one_function_makes_an_adapter_of_every_method(method):
    base = random_base(TINY)
    config = LoraConfig(use_dora=method == "dora")
    config = config if method in ("lora", "dora") else MethodConfig(method)
    made = minilora.get_peft_model(base, config, rng=7)
    expected = METHODS[method].init(base, config, np.random.default_rng(7)), base
    for one, other in zip(made, expected):
        one, other = flatten(arrays(one)), flatten(arrays(other))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[path], other[path]) for path in one)
    assert made.adapters is made[0] and made.base is made[1]


def test_an_adapter_that_changes_the_base_is_made_too():
    base, config = random_base(TINY), LoraConfig(init_lora_weights="pissa")
    made = minilora.get_peft_model(base, config)
    tokens = np.arange(6)[None]
    ours = minilora.forward(*made, tokens, TINY)
    # (W − s·BA) + s·BA is W up to float32's rounding of each, 2⁻²⁴ of numbers of size one, in two
    # layers of seven products of at most 12 terms
    np.testing.assert_allclose(ours, minilora.forward({}, base, tokens, TINY), atol=1e-4)
    path = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(flatten(made.base)[path], flatten(base)[path])


def test_the_share_of_what_is_trained_is_told_as_peft_does(capsys):
    base = random_base(TINY)
    total = sum(w.size for w in flatten(base).values())
    adapters, frozen = minilora.get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    minilora.print_trainable_parameters(adapters, frozen)
    n = sum(w.size for w in flatten(arrays(adapters)).values())
    line = f"trainable params: {n:,} || all params: {total + n:,} || trainable%: "
    assert capsys.readouterr().out == f"{line}{100 * n / (total + n):.4f}\n"
    # a weight in place of the base's is not counted twice
    minilora.print_trainable_parameters(*minilora.get_peft_model(base, MethodConfig("full")))
    assert capsys.readouterr().out == (
        f"trainable params: {total:,} || all params: {total:,} || trainable%: 100.0000\n"
    )


def test_results_have_names(tmp_path):
    loaded = minilora.load("micro")
    assert loaded == (loaded.model_config, loaded.base, loaded.tokenizer)
    config = LoraConfig(r=2)
    adapters, base = minilora.get_peft_model(loaded.base, config)
    minilora.save_adapter(tmp_path, adapters, base, config, "micro")
    found = minilora.load_adapter(tmp_path, loaded.base)
    assert (found.adapters, found.base, found.adapter_config) == found
    assert found.adapter_config == config
    settings = TrainConfig(iters=1, batch_size=2)
    rows = minilora.load_rows("questions", "valid")[:2]
    examples, _ = minilora.encode_rows(rows, loaded.tokenizer, settings)
    result = minilora.train(adapters, base, examples, loaded.model_config, settings)
    assert (result.adapters, result.history) == result


def test_rows_that_are_not_encoded_are_refused():
    rows = [{"prompt": "a", "completion": "b"}]
    trees = minilora.get_peft_model(random_base(TINY), LoraConfig())
    for examples, valid in ((rows, ()), (random_examples(TINY, 2), rows)):
        with pytest.raises(InputError, match=r"encode them first, with minilora\.encode_rows"):
            minilora.train(*trees, examples, TINY, TrainConfig(iters=1), valid)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraConfig(r="8"), "`r` must be a whole number from 1, got '8'"),
        (lambda: LoraConfig(lora_alpha="16"), "`lora_alpha` must be a positive number, got '16'"),
        (lambda: LoraConfig(bias="all"), "`bias` must be one of"),
        (lambda: LoraConfig(task_type="SEQ_CLS"), "`task_type` must be one of"),
        (
            lambda: LoraConfig(target_modules=None),
            "`target_modules` must be a list of names, or one",
        ),
        (
            lambda: LoraConfig(target_modules=[1]),
            "`target_modules` must be a list of names, or one",
        ),
        (
            lambda: LoraConfig(exclude_modules=5),
            "`exclude_modules` must be a list of names, or one",
        ),
        (
            lambda: LoraConfig(target_modules=".*q_proj", layers_to_transform=0),
            "layers_to_transform needs a list of target_modules, not the regular expression",
        ),
        (lambda: TrainConfig(learning_rate=None), "`learning_rate` must be a positive number"),
        (lambda: ModelConfig(9, 8, 8, 1, 2, 0, 4), "`num_key_value_heads` must be a whole number"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def test_a_generation_needs_a_whole_number_of_tokens():
    with pytest.raises(InputError, match=r"^`max_tokens` must be a whole number from 1, got 1\.5"):
        list(minilora.generate({}, random_base(TINY), [1], TINY, max_tokens=1.5))


def test_adapters_of_different_settings_share_one_base():
    """Each adapter has its own scaling, so a second one does not change the first."""
    model_config, base, _ = minilora.load("micro")
    tokens = np.arange(6).reshape(1, 6)
    one, same = minilora.get_peft_model(base, LoraConfig(r=8), 0)
    assert same is base
    one = moved(one, lambda w: w + np.float32(0.1))
    before = minilora.forward(one, base, tokens, model_config)
    minilora.get_peft_model(base, LoraConfig(r=4, lora_alpha=64), 0)
    assert np.array_equal(minilora.forward(one, base, tokens, model_config), before)


def test_evaluate_takes_examples_and_not_rows():
    model_config, base, _ = minilora.load("micro")
    with pytest.raises(InputError, match=r"encode them first, with minilora\.encode_rows"):
        minilora.evaluate({}, base, [{"text": "Ada"}], model_config)


def batch_with(**changes):
    """A batch of two rows of three tokens, as lists, with these entries changed."""
    ids = [[1, 2, 3], [4, 5, 6]]
    batch = {"tokens": ids, "targets": ids, "mask": np.ones((2, 3), np.float32)}
    return batch | {"segment_starts": np.zeros((2, 3), int)} | changes


DOORS = {
    "forward": ("tokens", lambda ids: minilora.forward({}, random_base(TINY), [ids], TINY)),
    "loss, tokens": (
        "tokens",
        lambda ids: minilora.loss({}, random_base(TINY), batch_with(tokens=[[1, 2, 3], ids]), TINY),
    ),
    "loss, targets": (
        "targets",
        lambda ids: minilora.loss(
            {}, random_base(TINY), batch_with(targets=[ids, [1, 2, 3]]), TINY, layers
        ),
    ),
    "generate": ("a prompt", lambda ids: next(minilora.generate({}, random_base(TINY), ids, TINY))),
    "generate_batch": (
        "a prompt",
        lambda ids: minilora.generate_batch([{}, {}], random_base(TINY), [[1], ids], TINY),
    ),
    "evaluate": (
        r"examples\[1\]",
        lambda ids: minilora.evaluate(
            {}, random_base(TINY), [*random_examples(TINY, 1), Example(ids, [1] * 3)], TINY
        ),
    ),
    "train": (
        r"examples\[0\]",
        lambda ids: minilora.train(
            *minilora.get_peft_model(random_base(TINY), LoraConfig()), [Example(ids, [1] * 3)],
            TINY, TrainConfig(iters=1),
        ),
    ),
    "train, valid": (
        r"valid\[0\]",
        lambda ids: minilora.train(
            *minilora.get_peft_model(random_base(TINY), LoraConfig()), random_examples(TINY, 2),
            TINY, TrainConfig(iters=1), [Example(ids, [1] * 3)],
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
@pytest.mark.parametrize("door", DOORS)
def test_a_token_id_outside_the_vocabulary_is_refused_before_anything_is_computed(
    door, wrong, monkeypatch
):
    """−1 would be the last row of the embedding. The vocabulary of TINY has the ids 0 to 10."""
    monkeypatch.setattr(model, "hidden_states", None)
    name, call = DOORS[door]
    with pytest.raises(InputError, match=rf"{name} .*token id {wrong}.* has the ids 0 to 10: "):
        call([1, wrong, 2])


@pytest.mark.parametrize(
    "ids", ["abc", [1.0, 2.0, 3.0], [[1], [2], [3]], [[1, 2], [3], [4]], None, 5]
)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_not_a_list_of_token_ids_is_refused(door, ids):
    name, call = DOORS[door]
    with pytest.raises(InputError, match=f"{name} must .*: encode a text with tokenizer.encode"):
        call(ids)


def test_token_ids_may_be_lists():
    base, ids = random_base(TINY), [[1, 2, 3], [4, 5, 6]]
    logits = minilora.forward({}, base, ids, TINY)
    assert np.array_equal(logits, minilora.forward({}, base, np.array(ids), TINY))
    arrays = batch_with(tokens=np.array(ids), targets=np.array(ids))
    assert minilora.loss({}, base, batch_with(), TINY) == minilora.loss({}, base, arrays, TINY)


@pytest.mark.parametrize("ids", [[1, 2, 3], 1, []])
def test_the_tokens_of_a_forward_pass_are_a_matrix(ids):
    with pytest.raises(InputError, match=r"tokens must be token ids of the shape \(B, T\), got"):
        minilora.forward({}, random_base(TINY), ids, TINY)


def test_each_token_of_an_example_has_an_entry_in_its_mask():
    """A mask of two entries for three tokens would be broadcast to all of them."""
    base = random_base(TINY)
    with pytest.raises(InputError, match=r"examples\[0\] has 4 tokens, but a mask of 2"):
        minilora.evaluate({}, base, [Example([1, 2, 3, 4], [0, 1])], TINY)

"""The interface that users of PEFT expect: names, results that unpack, errors at every door."""

import inspect

import numpy as np
import pytest
from autograd import grad
from models import TINY, fast_model, random_batch, random_examples, random_model
from outcomes import refused

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig
from minilora.batching import Example
from minilora.tree import num_parameters

MODEL = random_model(TINY)


def test_dir_is_the_interface():
    assert dir(minilora) == sorted(minilora.__all__)
    for name in minilora.__all__:
        value = getattr(minilora, name)
        # no function hides a module of its name
        assert inspect.ismodule(value) or not hasattr(value, "__path__")
        if inspect.isfunction(value):
            parameters = inspect.signature(value).parameters
            assert value.__annotations__.keys() == {*parameters, "return"}, name


def test_the_share_of_what_is_trained_is_told_as_peft_does(capsys):
    adapters, model = minilora.get_peft_model(MODEL, LoraConfig(r=2, target_modules=["q_proj"]))
    n, total = num_parameters(adapters), num_parameters(model.base)
    minilora.print_trainable_parameters(adapters, model)
    line = f"trainable params: {n:,} || all params: {total + n:,} || trainable%: "
    assert capsys.readouterr().out == f"{line}{100 * n / (total + n):.4f}\n"
    # a weight in place of the base's is not counted twice
    minilora.print_trainable_parameters(*minilora.get_peft_model(model, MethodConfig("full")))
    assert f"|| all params: {total:,} || trainable%: 100.0000\n" in capsys.readouterr().out


EXAMPLES = random_examples(TINY, 2)


def train_on(examples, valid=()):
    adapters, model = minilora.get_peft_model(MODEL, LoraConfig())
    return minilora.train(adapters, model, examples, TrainConfig(iters=1), valid)


def valid_on(valid):
    return train_on(EXAMPLES, valid)


def evaluate(examples):
    return minilora.evaluate({}, MODEL, examples)


def loss_of(**changes):
    """The loss of a batch of two rows of three tokens, with these entries changed."""
    return minilora.loss({}, MODEL, random_batch(TINY, T=3) | changes)


@pytest.mark.parametrize("name, call", [
    ("examples", train_on), ("valid", valid_on), ("examples", evaluate),
])  # fmt: skip
def test_rows_and_generators_are_no_list_of_examples(name, call):
    """One evaluation would use a generator up."""
    with refused(r"encode them first, with minilora\.encode_rows"):
        call([{"prompt": "a", "completion": "b"}])
    with refused(f"`{name}` must be a list, not a generator"):
        call(example for example in EXAMPLES)


def test_autograd_alone_would_differentiate_settings():
    adapters, model = minilora.get_peft_model(fast_model(), LoraConfig())
    with refused(r"use layers\.value_and_grad, which leaves settings out"):
        grad(minilora.loss)(adapters, model, random_batch(TINY))


def example(ids):
    return Example(ids, [1] * 3)


DOORS = {  # what a message calls the ids, and a call with them
    "forward": ("tokens", lambda ids: minilora.forward({}, MODEL, [ids])),
    "loss, tokens": ("tokens", lambda ids: loss_of(tokens=[[1, 2, 3], ids])),
    "loss, targets": ("targets", lambda ids: loss_of(targets=[ids, [1, 2, 3]])),
    "generate": ("a prompt", lambda ids: next(minilora.generate({}, MODEL, ids))),
    "generate_batch": (
        "a prompt", lambda ids: minilora.generate_batch([{}, {}], MODEL, [[1], ids]),
    ),
    "evaluate": (r"examples\[2\]", lambda ids: evaluate([*EXAMPLES, example(ids)])),
    "train": (r"examples\[0\]", lambda ids: train_on([example(ids)])),
    "train, valid": (r"valid\[0\]", lambda ids: valid_on([example(ids)])),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_token_ids_are_checked_before_anything_is_computed(door, monkeypatch):
    monkeypatch.setattr(minilora.layers, "embed", None)
    name, call = DOORS[door]
    batch = name in ("tokens", "targets")
    shape = r"token ids of the shape \(B, T\)" if batch else "a list of token ids"
    # −1 would be the last row of the embedding; the vocabulary of TINY has the ids 0 to 10
    for wrong in (-1, 11):
        with refused(rf"{name} .*token id {wrong}.* has the ids 0 to 10: "):
            call([1, wrong, 2])
    for ids in ("abc", [1.0] * 3, [[1], [2], [3]], [[1, 2], [3], [4]]):
        with refused(f"{name} must be {shape}, got .*: encode a text with tokenizer.encod"):
            call(ids)


def test_token_ids_may_be_lists_or_of_any_integer_type():
    ids = [[1, 2, 3], [4, 5, 10]]
    logits = minilora.forward({}, MODEL, ids)
    assert np.array_equal(logits, minilora.forward({}, MODEL, np.array(ids, np.uint8)))
    as_array = np.array(ids)
    assert loss_of(tokens=ids, targets=ids) == loss_of(tokens=as_array, targets=as_array)


def test_each_token_of_an_example_has_an_entry_in_its_mask():
    """A mask of two entries for three tokens would be broadcast to all of them."""
    for message, *masks in (
        (r"the mask of examples\[0\] has another length", [0, 1]),
        (r"the answer of examples\[0\] has another length", [0, 1, 1], [0, 1]),
        ("must have 1 for a target and 0 for the rest", [-100, 1, 1]),
    ):
        with refused(message):
            evaluate([Example([1, 2, 3], *masks)])

"""The estimate of a step's memory against the allocated memory."""

import gc
import inspect
import math
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from autograd import make_vjp
from models import adapted, fast_model, quantized, random_batch

from minilora import loss
from minilora.config import ALL_LINEAR, LoraConfig, ModelConfig, TrainConfig
from minilora.evaluation import memory
from minilora.evaluation.memory import nbytes
from minilora.formats.families import FAMILIES
from minilora.methods.method import MethodConfig
from minilora.methods.registry import METHODS, get_peft_model
from minilora.methods.replaced import also_train
from minilora.optim import OPTIMIZERS
from minilora.tree import arrays, flatten, num_parameters, overlay, unflatten

CONFIG = ModelConfig(
    vocab_size=31, hidden_size=48, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8,
)  # fmt: skip


def kept_by_a_step(adapters, model, checkpointing=False):
    """The allocated bytes between the forward and the backward pass, by Python's tracemalloc."""
    batch = random_batch(model.config, B=8, T=128, packed=False)

    def keep():
        def loss_of(leaves):
            return loss(overlay(adapters, leaves), model, batch, checkpointing=checkpointing)

        return make_vjp(loss_of)(arrays(adapters))

    keep()  # compile first
    gc.freeze()  # then `collect` is quick
    gc.collect()  # it empties the lists of free objects: one from there would not be measured
    tracemalloc.start()
    kept = keep()
    gc.collect()
    measured, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.unfreeze()
    assert kept is not None
    return measured


WITH_SIZES = {
    "lora": LoraConfig(target_modules=ALL_LINEAR),
    "dora": LoraConfig(target_modules=ALL_LINEAR, use_dora=True),
    "prompt": MethodConfig("prompt", num_virtual_tokens=1),
    "vera": MethodConfig("vera", vera_r=64),
    "bottleneck": MethodConfig("bottleneck", bottleneck_size=64),
}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"head", "p-tuning", "prefix"}))
def test_the_activations_of_the_ledger_are_what_a_step_keeps(name):
    config = WITH_SIZES.get(name) or MethodConfig(name)
    started = get_peft_model(fast_model(CONFIG), config)
    predicted = memory.memory_estimate(*started, 8 * 128)["activations"]
    # Python's own objects (nodes, closures, views) come on top; the first layer keeps a little
    # less than the formula, which counts it in full.
    assert predicted == pytest.approx(kept_by_a_step(*started), rel=0.15)


def test_a_head_alone_keeps_its_input_and_an_adapted_o_proj_too():
    def floats(path, checkpointing=False):
        adapters = unflatten({path: np.ones((4, 48), np.float32)})
        return memory.activation_floats(adapters, CONFIG, checkpointing)

    assert floats("lm_head.weight") == floats("lm_head.weight", True) == 48 + 1
    o, q = (floats(f"model.layers.1.self_attn.{name}_proj.lora_A") for name in "oq")
    assert o - q == 48


def check_difference(*pairs):
    """Compare the estimates of two steps; the difference leaves out what both have.

    Python's objects are 1 % of the measured. In a sum, an error of one norm is as small as that.
    """
    found = [
        (memory.memory_estimate(*pair, 8 * 128)["activations"], kept_by_a_step(*pair))
        for pair in pairs
    ]
    ((predicted, kept),) = np.diff(found, axis=0)
    # some objects more or less, of 100 bytes or so, for what keeps no array
    assert predicted == pytest.approx(kept, rel=0.02, abs=5_000)


FIELDS = {name: value for family in FAMILIES.values() for name, value in family.fields.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_what_a_family_adds_to_llama_is_counted_alone(name):
    """In a sum over all fields, two errors can cancel."""
    configs = CONFIG, replace(CONFIG, **{name: FIELDS[name]})
    check_difference(*(adapted(fast_model(c), target_modules=ALL_LINEAR) for c in configs))


def test_a_trained_o_proj_keeps_its_input_and_a_trained_embedding_every_layer():
    """Of a trained base, the head keeps the same in both."""
    model = fast_model(CONFIG)
    every = flatten(get_peft_model(model, MethodConfig("full")).adapters)
    top = {path: w for path, w in every.items() if path.startswith("model.layers.2.")}
    without_o = {path: w for path, w in top.items() if "o_proj" not in path}
    embedding = {path: w for path, w in every.items() if "embed" in path}
    for more in (top, without_o | embedding):
        check_difference((unflatten(without_o), model), (unflatten(more), model))


def test_with_checkpointing_a_layer_keeps_its_input():
    """The difference of two depths leaves out what a step computes in one layer at a time."""
    train_config = TrainConfig(gradient_checkpointing=True)
    predicted, kept = [], []
    for num_layers in (3, 9):
        model = fast_model(replace(CONFIG, num_hidden_layers=num_layers))
        above = range(num_layers // 3, num_layers)
        started = adapted(model, target_modules=ALL_LINEAR, layers_to_transform=above)
        kept.append(kept_by_a_step(*started, checkpointing=True))
        predicted.append(memory.estimate_with(train_config, *started, 8 * 128)["activations"])
    # Python's objects of a layer, 28 KB, come on top of its input, 197 KB
    assert np.diff(predicted) == pytest.approx(np.diff(kept), rel=0.2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_optimizer_are_exact(optimizer):
    adapters, model = adapted(quantized(fast_model(CONFIG)))
    adapters = also_train(adapters, model.base, ["norm"])  # no matrices
    parts = memory.estimate_with(TrainConfig(optimizer=optimizer), adapters, model, 1)
    assert parts["frozen weights"] == nbytes(model.base)
    trained = 4 * num_parameters(adapters)
    assert parts["trained weights"] == parts["their gradients"] == trained
    start, _ = OPTIMIZERS[optimizer]
    (averages,) = (size for name, size in parts.items() if name.split()[0] in ("Adam's", "Muon's"))
    assert averages == nbytes(start(arrays(adapters)))


def test_the_random_matrices_of_vera_count_once():
    model = fast_model(CONFIG)
    started = get_peft_model(model, MethodConfig("vera", vera_r=4))
    frozen = memory.estimate_with(TrainConfig(), *started, 1)["frozen weights"]
    # float32 A (4, 48) and B (48, 4): q_proj has 48 inputs and 48 outputs, v_proj fewer
    assert frozen - nbytes(model.base) == 4 * 2 * 4 * 48


def test_the_peak_grows_by_what_is_allocated_in_mb_and_not_that_of_the_parent_process():
    big = np.ones(60_000_000, np.uint8)
    source = inspect.getsource(memory.peak_rss_mb)
    script = (
        f"import re, sys\nfrom pathlib import Path\n{source}before = peak_rss_mb()\n"
        "big = b'1' * 100_000_000\nprint(before, peak_rss_mb() - before)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    before, grown = map(float, said.split())
    assert before < big.nbytes / 1e6
    assert grown == pytest.approx(100, abs=2)  # 95 in MiB; the rest of this process is 10 MB


def test_the_peak_of_a_system_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "status")
    usage = Mock(return_value=Mock(ru_maxrss=2000))
    monkeypatch.setitem(sys.modules, "resource", Mock(getrusage=usage))
    for platform, peak in (("linux", 2.048), ("darwin", 0.002)):  # KiB, bytes
        monkeypatch.setattr(sys, "platform", platform)
        assert memory.peak_rss_mb() == peak
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert memory.peak_rss_mb() is None


def test_the_memory_of_a_system_that_does_not_tell_it_is_infinite(monkeypatch):
    assert 1e8 < memory.physical_memory() < math.inf
    monkeypatch.setattr(os, "sysconf", Mock(side_effect=ValueError))
    assert memory.physical_memory() == math.inf
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert memory.physical_memory() == math.inf

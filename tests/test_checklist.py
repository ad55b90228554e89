"""The checklist: each rule fires on settings made for it, alone, and none on the recipes."""

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from checklist import Rows, questions, total_rate
from hypothesis import given
from hypothesis import strategies as st
from models import configs, projection_shapes, random_base, target_sets
from sweeps import compare
from sweeps.pretraining import llama

from minilora import nf4, optim
from minilora.cli.arguments import parse
from minilora.config import LoraConfig, ModelConfig, TrainConfig
from minilora.data import tasks
from minilora.evaluation.memory import nbytes
from minilora.formats import hf_folder
from minilora.methods.method import MethodConfig
from minilora.methods.registry import get_peft_model
from minilora.quant.schemes import quantize
from minilora.tree import num_parameters

SHAPE = llama(128, 352, 4, 4, 2)
PLAN = {
    "lora_config": LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",)),
    "train_config": TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True),
    "scheme": "nf4-dq",
    "model_config": SHAPE,
    "rows": Rows(train=4000, held_out=200),
}
FIELDS = {
    **{f.name: part for part in ("lora_config", "train_config") for f in fields(PLAN[part])},
    **dict.fromkeys(Rows._fields, "rows"),
}


def asked(**changes):
    """The questions of PLAN with other arguments, or with other fields in its parts."""
    plan = PLAN | {name: value for name, value in changes.items() if name not in FIELDS}
    for name in changes.keys() & FIELDS.keys():
        part = plan[FIELDS[name]]
        change = part._replace if isinstance(part, Rows) else partial(replace, part)
        plan[FIELDS[name]] = change(**{name: changes[name]})
    return questions(**plan)


def test_no_recipe_is_questioned():
    assert asked() == []
    smollm2 = ModelConfig(49152, 576, 1536, 30, 9, 3, 64)
    assert asked(iters=260, batch_size=4, learning_rate=1e-3, model_config=smollm2) == []


FIRES = {
    "r 48 trains 9,216 numbers on k_proj's 8,192": {"r": 48, "lora_alpha": 48},
    "scales the update by 8": {"lora_alpha": 64},
    "scales the update by 0.25": {"r": 16, "lora_alpha": 4},
    "scales the update by 5.66": {"use_rslora": True},
    "only q_proj and v_proj": {"target_modules": ("q_proj", "v_proj")},
    "5e-05 is full fine-tuning's": {"learning_rate": 5e-5},
    "--learning-rate 0.01: micro takes 1e-2": {"learning_rate": 1e-2},
    "--adapter-dtype float16": {"adapter_dtype": "float16", "learning_rate": 2e-5},
    "--adapter-dtype bfloat16": {"adapter_dtype": "bfloat16", "learning_rate": 2e-4},
    "learn at 2 times the rate": {"also_train": ["norm"], "also_train_lr_scale": 2.0},
    "lora_dropout": {"lora_dropout": 0.1},
    "fp4": {"scheme": "fp4"},
    "0.373 bits a weight": {"scheme": "nf4"},
    "the loss counts the rows' prompts": {"mask_prompt": False},
    "3 of 4000 rows are cut": {"cut": 3},
    "no row is held out": {"held_out": 0},
    "--warmup-ratio 0.2": {"warmup_ratio": 0.2},
    "--weight-decay 1 takes back 33 %": {"weight_decay": 1.0},
}


@pytest.mark.parametrize("says", FIRES)
def test_each_rule_fires_alone(says):
    found = asked(**FIRES[says])
    if "float16" in says and FIRES[says]["learning_rate"] <= 5e-5:
        found = found[1:]  # so small a rate is asked about for itself
    assert len(found) == 1 and says in found[0]
    assert "lesson" in found[0] and "\n" not in found[0]


SILENT = (
    {"lora_alpha": 8}, {"r": 32, "lora_alpha": 32}, {"lora_dropout": 0.1, "iters": 251},
    {"target_modules": ("q_proj", "o_proj")}, {"learning_rate": 1e-4}, {"warmup_ratio": 0.1},
    {"adapter_dtype": "float16"}, {"also_train": ["norm"]}, {"scheme": "none"}, {"scheme": "int8"},
    {"also_train": ["bias"], "also_train_lr_scale": 1.0}, {"weight_decay": 0.1},
    {"mask_prompt": False, "prompts": False},
    {"r": 48, "lora_alpha": 48, "target_modules": ("q_proj", "gate_proj")},
    {"lora_config": MethodConfig("prompt"), "learning_rate": 0.5},
)  # fmt: skip


@pytest.mark.parametrize("changes", SILENT, ids=str)
def test_what_is_usual_is_not_questioned(changes):
    assert asked(**changes) == []


def test_another_method_is_still_asked_about_its_base_and_its_rows():
    found = asked(lora_config=MethodConfig("ia3"), scheme="fp4", held_out=0)
    assert len(found) == 2 and "fp4" in found[0] and "held out" in found[1]


# ------------------------------------------------------------------ what the sentences say is so


@given(configs(max_layers=1), target_sets, st.integers(1, 8))
def test_the_sizes_are_the_models(config, names, r):
    assert hf_folder.projection_shapes(config) == projection_shapes(config)
    base, lora_config = random_base(config), LoraConfig(r=r, target_modules=names)
    adapters, _ = get_peft_model(base, lora_config)
    shapes = hf_folder.projection_shapes(config)
    assert num_parameters(adapters) == sum(r * sum(shapes[name]) for name in names)
    large = any(r * sum(shapes[name]) >= np.prod(shapes[name]) for name in names)
    said = asked(r=r, lora_alpha=r, target_modules=names, model_config=config)
    assert large == any("numbers on" in line for line in said)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_adam_goes_as_far_as_the_rates_together(schedule):
    config = TrainConfig(iters=30, learning_rate=1e-2, lr_schedule=schedule)
    params = {"lora_B": np.zeros(3)}
    state = optim.adamw_init(params)
    for step in range(config.iters):
        rate = optim.get_lr(step, config)
        grads = {"lora_B": np.full(3, -0.2)}
        params, state = optim.adamw(params, grads, state, {"lora_B": rate}, config)
    # m̂/√v̂ is 1 for a gradient that stays; ε is 5e-8 of it, and what rounds is far less
    np.testing.assert_allclose(params["lora_B"], total_rate(config), rtol=1e-7)


def test_weight_decay_takes_back_what_is_said():
    config = TrainConfig(iters=200, learning_rate=4e-3, weight_decay=1.0)
    rates = [optim.get_lr(step, config) for step in range(config.iters)]
    left = np.prod([1 - rate for rate in rates])
    # log(1 − x) = −x − x²/2 − …, x at most 4e-3, so Σ differs by at most 2.1e-3 of itself
    np.testing.assert_allclose(np.log(left), -total_rate(config), rtol=2.1e-3)


@pytest.mark.parametrize("dtype, rate", [("float16", 3e-5), ("bfloat16", 2.4e-4)])
def test_a_step_below_the_named_one_is_rounded_away(dtype, rate):
    # hidden_size 128: A lies below 0.088, in the octave from 2⁻⁴
    for size, fires in ((rate, True), (1.1 * rate, False)):
        said = asked(adapter_dtype=dtype, learning_rate=size)
        assert any("rounds away" in line for line in said) == fires
        a = {"lora_A": np.array([0.0625 + 2.0**-8, 0.08], "f4")}
        grid = optim.round_to(a, dtype)
        moved = optim.round_to({"lora_A": grid["lora_A"] + np.float32(size)}, dtype)
        assert np.array_equal(moved["lora_A"], grid["lora_A"]) == fires


@pytest.mark.parametrize("block_size", [32, 64])
def test_double_quantization_saves_what_is_said(block_size):
    config = llama(64, 128, 2, 4, 2)  # 256·B divides no weight here: blocks of one weight are cut
    base = random_base(config)
    sizes = [nbytes(quantize(base, scheme, block_size)) for scheme in ("nf4", "nf4-dq")]
    (said,) = asked(scheme="nf4", model_config=config, block_size=block_size)
    saved = float(said.split(",")[1].split()[0]) * 1e6
    # two digits are printed; each weight keeps a whole second-level absmax and its offset
    assert sizes[0] - sizes[1] == pytest.approx(saved, rel=0.05)


def test_fp4_errs_by_a_third_more_at_the_same_bits():
    w = np.random.default_rng(0).standard_normal((512, 512)).astype("f4")
    fp4, nf4_ = (nf4.quantize(w, 64, True, code) for code in ("fp4", "nf4"))
    assert fp4.nbytes == nf4_.nbytes
    error = [np.sqrt(np.mean((q.dequantize() - w) ** 2)) for q in (fp4, nf4_)]
    assert error[0] / error[1] == pytest.approx(4 / 3, rel=0.02)


def test_the_rates_are_those_that_are_named():
    best = {entry.rate for entry in compare.TABLE.values() if entry.size == "r"}  # micro's
    recipes = {name: parse(["train", "--data", name]).learning_rate for name in tasks.BUILTIN}
    assert min(best) == 1e-2
    assert recipes["questions"] == 4e-3

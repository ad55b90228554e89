"""The checklist: each rule fires on settings made for it, alone, and none on the recipes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from minilora import optim
from minilora.cli.arguments import parse
from minilora.config import LoraConfig, TrainConfig
from minilora.lessons.helpers import compare
from minilora.lessons.helpers.checklist import Rows, questions, total_rate
from minilora.lessons.helpers.pretraining import llama
from minilora.methods.method import MethodConfig
from minilora.rounding import round_to

LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
TRAIN = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
ROWS = Rows(train=4000, held_out=200)
PLAN = {"scheme": "nf4-dq", "model_config": llama(128, 352, 4, 4, 2)}


def asked(**changes):
    """Return the questions about a recipe with other fields or arguments."""
    parts = {"lora_config": LORA, "train_config": TRAIN, "rows": ROWS}
    for name, part in parts.items():
        fields = {field: changes.pop(field) for field in list(changes) if hasattr(part, field)}
        parts[name] = part._replace(**fields) if part is ROWS else replace(part, **fields)
    return questions(**(parts | PLAN | changes))


FIRES = {
    "r 48 trains 9,216 numbers on k_proj's 8,192": {"r": 48, "lora_alpha": 48},
    "scales the update by 8": {"lora_alpha": 64},
    "scales the update by 0.25": {"r": 16, "lora_alpha": 4},
    "only q_proj and v_proj": {"target_modules": ("q_proj", "v_proj")},
    "5e-05 is full fine-tuning's": {"learning_rate": 5e-5},
    "--learning-rate 0.01: micro takes 1e-2": {"learning_rate": 1e-2},
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
    assert len(found) == 1 and says in found[0]
    assert re.search(r"\((lesson|study) \w+\)$", found[0]) and "\n" not in found[0]


SILENT = (
    {}, {"lora_dropout": 0.1, "iters": 251}, {"target_modules": ("q_proj", "o_proj")},
    {"learning_rate": 1e-4}, {"warmup_ratio": 0.1}, {"weight_decay": 0.1},
    {"also_train": ["bias"], "also_train_lr_scale": 1.0}, {"mask_prompt": False, "prompts": False},
    {"lora_config": MethodConfig("prompt"), "learning_rate": 0.5},
)  # fmt: skip


@pytest.mark.parametrize("changes", SILENT)
def test_recipes_and_what_is_usual_are_not_questioned(changes):
    assert asked(**changes) == []


def test_a_rank_by_a_pattern_is_asked_the_same():
    modules = {"target_modules": ("q_proj", "v_proj")}
    pattern = {"rank_pattern": {".*_proj": 48}, "alpha_pattern": {".*": 48}}
    assert asked(**modules, **pattern) == asked(**modules, r=48, lora_alpha=48) != []


# ------------------------------------------------------------------ what the sentences say is so


def test_adam_goes_as_far_as_the_rates_together():
    config = TrainConfig(iters=30, learning_rate=1e-2, lr_schedule="cosine")
    params = {"lora_B": np.zeros(3)}
    state = optim.adamw_init(params)
    for step in range(config.iters):
        rate = optim.get_lr(step, config)
        grads = {"lora_B": np.full(3, -0.2)}
        params, state = optim.adamw(params, grads, state, {"lora_B": rate}, config)
    # m̂/√v̂ is 1 for a gradient that stays; ε is 5e-8 of it, and what rounds is far less
    np.testing.assert_allclose(params["lora_B"], total_rate(config), rtol=1e-7)


@pytest.mark.parametrize("dtype, rate", [("float16", 3e-5), ("bfloat16", 2.4e-4)])
def test_a_step_below_the_named_one_is_rounded_away(dtype, rate):
    # hidden_size 128: A lies below 0.088, in the octave from 2⁻⁴
    for size, fires in ((rate, True), (1.1 * rate, False)):
        said = asked(adapter_dtype=dtype, learning_rate=size)
        assert any("rounds away" in line for line in said) == fires
        a = {"lora_A": np.array([0.0625 + 2.0**-8, 0.08], "f4")}
        grid = round_to(a, dtype)
        moved = round_to({"lora_A": grid["lora_A"] + np.float32(size)}, dtype)
        assert np.array_equal(moved["lora_A"], grid["lora_A"]) == fires


def test_the_rates_are_those_that_are_named():
    best = {entry.rate for entry in compare.TABLE.values() if entry.size == "r"}  # micro's
    assert min(best) == 1e-2
    assert parse(["train", "--data", "questions"]).learning_rate == 4e-3

"""Rollouts: a row's answer is its own, and the policy gradient is that of the log-likelihood."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose
from outcomes import refused

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.layers import value_and_grad
from minilora.lessons.helpers import class_head, echoes, preference, rollouts
from minilora.tree import flatten

MODEL, _ = minilora.load("micro")
START = minilora.get_peft_model(MODEL, LoraConfig())
ROWS = echoes.rows("valid", 12)
PROMPTS = [row.prompt for row in ROWS]


@pytest.fixture(scope="module")
def answers():
    return rollouts.sample({}, MODEL, PROMPTS, 3)


def test_the_answer_of_a_row_does_not_depend_on_the_other_rows(answers):
    assert rollouts.sample({}, MODEL, PROMPTS[:5], 3) == answers[:5]
    others = [*PROMPTS[6:], *PROMPTS[:6]]
    others[2] = PROMPTS[2]
    assert rollouts.sample({}, MODEL, others, 3)[2] == answers[2]


def test_answers_end_with_their_stop_and_have_the_frequencies_of_the_model(answers):
    assert all(rollouts.STOP not in answer[:-1] and len(answer) <= 14 for answer in answers)
    batch = echoes.batch_of([ROWS[0]] * 2, [[ord(" "), ord("I")], [ord(" "), ord("W")]])
    p = np.exp(rollouts.of_targets(rollouts.log_probabilities({}, MODEL, batch), batch))
    # nearly every answer begins with a space, so p is the probability of the letter after it
    found = rollouts.sample({}, MODEL, [[*PROMPTS[0], ord(" ")]] * 400, 0, max_tokens=1)
    for letter, probability in zip("IW", p):
        share = np.mean([answer == [ord(letter)] for answer in found])
        assert abs(share - probability) < 4 * np.sqrt(0.25 / 400)


def test_the_policy_gradient_with_advantages_of_one_is_that_of_the_loss(answers):
    lora = LoraConfig(r=2, target_modules="all-linear")
    adapters, _ = minilora.get_peft_model(MODEL, lora, 0)
    batch = echoes.batch_of(ROWS, answers)
    ones = np.ones(len(ROWS), np.float32)
    value, grads = value_and_grad(rollouts.policy_loss)(adapters, MODEL, batch, ones)
    mean, expected = value_and_grad(minilora.loss)(adapters, MODEL, batch)
    tokens_per_row = batch["mask"].sum() / len(ROWS)
    assert_allclose(value, mean * tokens_per_row, rtol=1e-4)
    for path, grad in flatten(grads).items():
        own = tokens_per_row * flatten(expected)[path]
        assert_allclose(grad, own, rtol=1e-3, atol=1e-4 * np.abs(own).max())


def test_advantages_of_a_group_sum_to_zero():
    found = rollouts.group_advantages([1, 0, 0, 0, 1, 1, 1, 1], 4)
    assert found.tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]


def test_own_text_leaves_out_the_bytes_that_choose_an_echo():
    text = echoes.own_text(3)[1]
    shown = "".join(chr(c) if m else "_" for c, m in zip(text.tokens[:-1], text.mask))
    assert shown == "Tom keeps a blue vase in the hall.____t? The vase, a blue one."


LOOPS = [
    lambda *start, config: class_head.fit(*start, [], np.array([]), config),
    lambda *start, config: preference.fit(*start, [], config, beta=1),
    lambda *start, config: rollouts.reinforce(*start, ROWS, lambda *_: 0, config),
    lambda *start, config: next(rollouts.steps(minilora.loss, *start, [], config)),
]


OF_THE_LOOP = {
    "grad_accumulation_steps": 2, "gradient_checkpointing": True, "steps_per_eval": 1,
    "val_batches": 3, "early_stopping_patience": 2, "keep_best": True,
}  # fmt: skip
OF_ROWS = {"max_seq_length": 2, "mask_prompt": True, "packing": True}


@pytest.mark.parametrize(
    ("train", "name"),
    # the last loop is given rows that these settings have made
    [*product(LOOPS, OF_THE_LOOP), *product(LOOPS[:3], OF_ROWS)],
)
def test_settings_that_a_loop_would_ignore_are_refused(train, name):
    settings = {name: (OF_THE_LOOP | OF_ROWS)[name]}
    with refused(f"`{name}` has no effect here: leave it at {getattr(TrainConfig, name)}"):
        train(*START, config=TrainConfig(batch_size=8, **settings))


@pytest.mark.parametrize("train", LOOPS)
def test_dropout_is_refused_by_loops_that_have_none(train):
    start = minilora.get_peft_model(MODEL, LoraConfig(lora_dropout=0.1))
    with refused("lora_dropout .* 0"):
        train(*start, config=TrainConfig(batch_size=8))


def test_steps_accepts_the_settings_that_made_its_examples():
    settings = TrainConfig(iters=1, max_seq_length=64, mask_prompt=True)
    rows = echoes.examples(ROWS, echoes.FORMS["near"])
    assert next(rollouts.steps(minilora.loss, *START, rows, settings)).step == 1


@pytest.mark.parametrize(
    "batch_size, reward, says",
    [
        (12, 1.0, "`batch_size` .* 8 .*, got 12"),  # 8 answers were sampled
        (8, np.nan, "the reward of .* is nan"),  # the factors were NaN
    ],
)
def test_groups_and_rewards_are_checked(batch_size, reward, says):
    settings = TrainConfig(iters=1, batch_size=batch_size)
    with refused(says):
        rollouts.reinforce(*START, ROWS, lambda *_: reward, settings)

"""DPO: log p of answers against the model's loss, the loss and its gradient before any step."""

import math

import numpy as np

import minilora
from minilora import LoraConfig
from minilora.layers import value_and_grad
from minilora.lessons.helpers import preference
from minilora.tree import flatten

MODEL, _ = minilora.load("micro")
RNG = np.random.default_rng(0)
PAIRS = [
    tuple(RNG.integers(255, size=n).tolist() for n in lengths)
    for lengths in [(4, 5, 9), (9, 1, 3), (6, 7, 7)]
]
BATCH = preference.batch_of(PAIRS)
LORA = LoraConfig(r=2, target_modules=("all-linear",))


def mean_log_prob(adapters, rows):
    """The mean over these rows, N chosen and N rejected ones."""
    log_probs = preference.answer_log_probs(adapters, MODEL, BATCH)
    return preference.np.mean(log_probs[rows])


def test_log_p_is_the_loss_of_each_answer():
    found = preference.answer_log_probs({}, MODEL, BATCH)
    for i, log_p in enumerate(found):
        row = {name: x[i : i + 1] for name, x in BATCH.items()}
        nats = minilora.loss({}, MODEL, row) * row["mask"].sum()
        np.testing.assert_allclose(log_p, -nats, rtol=1e-5)


def test_before_any_step_the_loss_is_log_2_and_its_gradient_half_the_difference():
    adapters, model = minilora.get_peft_model(MODEL, LORA, 0)
    reference = preference.answer_log_probs({}, model, BATCH)
    loss_and_gradient = value_and_grad(preference.dpo_loss)
    loss, gradient = loss_and_gradient(adapters, model, BATCH, reference, 0.3)
    assert math.isclose(loss, math.log(2), rel_tol=1e-6)
    _, chosen = value_and_grad(mean_log_prob)(adapters, slice(0, 3))
    _, rejected = value_and_grad(mean_log_prob)(adapters, slice(3, 6))
    for path, g in flatten(gradient).items():
        # ∇L = −β·σ(−m)·(∇log p(chosen) − ∇log p(rejected)), and σ(0) is a half
        expected = -0.3 / 2 * (flatten(chosen)[path] - flatten(rejected)[path])
        np.testing.assert_allclose(g, expected, rtol=1e-3, atol=1e-5 * abs(expected).max() + 1e-9)


def test_a_margin_is_the_difference_of_two_log_ratios():
    found = preference.margins(
        np.array([-1.0, -2.0, -5.0, -3.0]), np.array([-2.0, -2.0, -4.0, 0.0]), 0.5
    )
    assert found.tolist() == [1.0, 1.5]

"""DPO: log p of answers, and margins. tests/peers has the loss and its gradient."""

import numpy as np
from outcomes import refused

import minilora
from minilora.lessons.helpers import preference

MODEL, _ = minilora.load("micro")

PAIRS = [([1, 2, 3], [4, 5], [6, 7, 8, 9]), ([10, 11], [12], [13])]


def test_log_p_is_the_loss_of_each_answer():
    batch = preference.batch_of(PAIRS)
    for i, log_p in enumerate(preference.answer_log_probs({}, MODEL, batch)):
        row = {name: x[i : i + 1] for name, x in batch.items()}
        nats = minilora.loss({}, MODEL, row) * row["mask"].sum()
        np.testing.assert_allclose(log_p, -nats, rtol=1e-5)


def test_an_empty_prompt_is_refused():
    """The first token of each answer, which no token predicts, did not count."""
    with refused("a prompt is empty"):
        preference.batch_of([([], [1, 2], [3])])


def test_the_residual_of_pissa_is_no_reference():
    config = minilora.LoraConfig(init_lora_weights="pissa")
    adapters, model = minilora.get_peft_model(MODEL, config)
    settings = minilora.TrainConfig(iters=1, batch_size=2)
    with refused("lora_start: the model alone is not the base: give reference_adapters"):
        preference.fit(adapters, model, PAIRS, settings, 0.1)
    preference.fit(adapters, model, PAIRS, settings, 0.1, adapters)

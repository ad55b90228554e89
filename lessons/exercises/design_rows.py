"""design-rows: choose settings under a budget of rows and parameters.

`micro` is to answer the built-in questions. You choose the settings of LoRA and of the run:

- at most 6,000 trained parameters,
- at most 960 training rows, which is batch_size times iters.

The held-out loss must be below 0.15 nats per token. Return a dict with exactly these keys: "r",
"lora_alpha", "target_modules" (a list of names such as "q_proj", or ["all-linear"]),
"learning_rate", "batch_size" (at least 4), "iters" and "warmup_ratio". The check trains with them,
which takes a few seconds, and says the loss. `minilora train --model micro --quantize none
--mask-prompt` has flags of the same names for your own runs.

Write into REASON three runs that you compared, with their losses, and why you chose these targets
and this rank.
"""

import json
from functools import cache

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.memory import nbytes
from minilora.tree import num_parameters

OF_LORA = ("r", "lora_alpha", "target_modules")
OF_RUN = ("learning_rate", "batch_size", "iters", "warmup_ratio")
PARAMETERS, ROWS, LOSS = 6000, 960, 0.15
RIGHT = "within the budget, and the loss is low enough"


def run_of(settings, scheme="none"):
    """Train with settings; return (trained parameters, bytes of base and adapter, held-out loss).

    The loss is None if the settings need more than ROWS rows, or more than 240 steps.
    """
    return trained(json.dumps(settings, sort_keys=True, default=float), scheme)


@cache
def trained(text, scheme):
    """Train with the settings in a text of JSON, as `run_of` says."""
    settings = json.loads(text)
    if settings.keys() != {*OF_LORA, *OF_RUN}:
        raise ValueError(f"the keys must be {', '.join((*OF_LORA, *OF_RUN))}")
    config, base, tokenizer = minilora.load("micro", scheme)
    lora = LoraConfig(**{name: settings[name] for name in OF_LORA})
    run = TrainConfig(**{name: settings[name] for name in OF_RUN}, mask_prompt=True)
    adapters, base = minilora.get_peft_model(base, lora, 0)
    size = num_parameters(adapters), nbytes(base) + nbytes(adapters)
    if run.batch_size < 4 or run.batch_size * run.iters > ROWS:
        return *size, None
    rows, held_out = (
        data.encode_rows(data.load_rows("questions", split), tokenizer, run)[0]
        for split in ("train", "valid")
    )
    adapters, _ = minilora.train(adapters, base, rows, config, run, quiet=True)
    return *size, minilora.evaluate(adapters, base, held_out, config, quiet=True)["loss"]


def observe(answer):
    """Return a word for this kind of answer."""
    parameters, _, loss = run_of(answer)
    if parameters > PARAMETERS:
        return f"{parameters:,} trained parameters"
    if loss is None:
        return f"too many rows: {answer['batch_size']} times {answer['iters']}"
    return RIGHT if loss < LOSS else f"a held-out loss of {loss:.3f}"


def property_good_within_the_budget(function):
    """the settings keep the budget, and the held-out loss is below the limit"""
    found = observe(function())
    assert found == RIGHT, found


def settings():
    """Return the settings, a dict."""
    return {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["all-linear"],
        "learning_rate": 1e-2,
        "batch_size": 8,
        "iters": 120,
        "warmup_ratio": 0.03,
    }

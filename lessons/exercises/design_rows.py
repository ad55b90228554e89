"""design-rows: choose settings under a budget of rows and parameters.

`micro` is to answer the built-in questions. You choose the settings of LoRA and of the run:

- at most 6,000 trained parameters,
- at most 960 training rows, which is batch_size times iters.

The held-out loss must be below 0.25 nats per token. Return a dict with exactly these keys: "r",
"lora_alpha", "target_modules" (a list of names such as "q_proj", or ["all-linear"]),
"learning_rate", "batch_size" (at least 4), "iters" and "warmup_ratio". The check trains with them,
which takes about ten seconds, and says the loss. `minilora train --model micro --quantize none
--mask-prompt` has flags for all of them, to try runs of your own.

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
PARAMETERS, ROWS, LOSS = 6000, 960, 0.25
RIGHT = "within the budget, and the loss is low enough"


def start(text, scheme):
    """Read settings in JSON; return (adapters, model, TrainConfig)."""
    settings = json.loads(text)
    if settings.keys() != {*OF_LORA, *OF_RUN} or settings["batch_size"] < 4:
        raise ValueError("other keys than those of the task, or a batch_size below 4")
    model, _ = minilora.load("micro", scheme)
    lora = LoraConfig(**{name: settings[name] for name in OF_LORA})
    adapters, model = minilora.get_peft_model(model, lora, 0)
    run = TrainConfig(**{name: settings[name] for name in OF_RUN}, mask_prompt=True)
    return adapters, model, run


def costs(text, scheme="none"):
    """Return the trained parameters, the bytes of base and adapter, and the training rows."""
    adapters, model, run = start(text, scheme)
    size = nbytes(model.base) + nbytes(adapters)
    return num_parameters(adapters), size, run.batch_size * run.iters


@cache
def held_out_loss(text, scheme="none"):
    """Train with the settings in a text of JSON; return the held-out loss."""
    adapters, model, run = start(text, scheme)
    adapters, _ = minilora.train(adapters, model, encoded("train"), run, quiet=True)
    return minilora.evaluate(adapters, model, encoded("valid"), quiet=True)["loss"]


@cache
def encoded(split):
    """Return the questions of a split as tokens, which no setting changes."""
    rows, tokenizer = data.load_rows("questions", split), minilora.load("micro").tokenizer
    return data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))[0]


def observe(answer):
    """Return a word for this kind of answer."""
    text = json.dumps(answer, default=int)
    parameters, _, rows = costs(text)
    if parameters > PARAMETERS or rows > ROWS:
        return f"{parameters:,} trained parameters, {rows:,} rows: above the budget"
    loss = held_out_loss(text)
    return RIGHT if loss < LOSS else f"a held-out loss of {loss:.3f}"


def property_good_within_the_budget(function):
    """the settings keep the budget, and the held-out loss is below the limit"""
    found = observe(function())
    assert found == RIGHT, found


def settings():
    """Return the settings, a dict."""
    return {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["all-linear"],
        "learning_rate": 1e-2,
        "batch_size": 4,
        "iters": 240,
        "warmup_ratio": 0.06,
    }

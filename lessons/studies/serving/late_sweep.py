"""LoRA that is active from the first token, and LoRA that is active from the question on.

About three minutes of one core. Each run trains an adapter for all seven projections of `micro` at
r = 8, for 200 steps of 16 questions. The rate of each training is tuned with seed 0, and `more`
runs the other seeds at the best rates. Every adapter is scored on 100 held-out questions in both
uses.
"""

from functools import partial

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.layers import LayerCache
from minilora.lessons.helpers import rollouts
from minilora.lessons.helpers.common import batch_of, of, questions
from minilora.model import hidden_states, lm_head, logits, with_adapters

BEGIN = len("Ada keeps a pink kite in the barn.")  # every row has its question from here on
TRAININGS = {"everywhere": 0, "late": BEGIN}  # the first token that an adapter sees
RATES = (2e-3, 4e-3, 8e-3)
SEEDS = range(9)  # the first one tunes the rate
JOBS = [(training, rate, 0) for training in TRAININGS for rate in RATES]


def more(rows):
    """Return the jobs of the other seeds, at the best rate of each training."""

    def cost(training, rate):
        return of(rows, f"loss_{training}", training=training, rate=rate, seed=0)

    best = {name: min(RATES, key=lambda rate: cost(name, rate)) for name in TRAININGS}
    return [(name, best[name], seed) for seed in SEEDS[1:] for name in TRAININGS]


def cached(model, tokens):
    """Return the keys and values of tokens (B, T): a cache per layer."""
    caches = [LayerCache() for _ in range(model.config.num_hidden_layers)]
    hidden_states(model, tokens, np.zeros_like(tokens), caches)
    return caches


def states(adapters, model, tokens, begin):
    """Return the last hidden states from `begin` on; the base alone reads the tokens before."""
    caches = cached(model, tokens[:, :begin]) if begin else None
    tokens = tokens[:, begin:]
    return hidden_states(with_adapters(adapters, model), tokens, np.zeros_like(tokens), caches)


def late_loss(adapters, model, batch, begin):
    """Compute the loss of `minilora.loss`, with adapters that are active from `begin` on."""
    x = states(adapters, model, batch["tokens"], begin)
    targets, mask = batch["targets"][:, begin:], batch["mask"][:, begin:]
    return model.ops.cross_entropy(x, lm_head(model.base), targets, mask)


def trained(training, rate, seed, steps=200):
    """Return (adapters, model) of a run."""
    model, _ = minilora.load("micro")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapters, model = minilora.get_peft_model(model, config, seed)
    settings = TrainConfig(iters=steps, batch_size=16, learning_rate=rate, seed=seed)
    loss = partial(late_loss, begin=TRAININGS[training])
    *_, last = rollouts.steps(loss, adapters, model, questions(), settings)
    return last.adapters, model


def scores(adapters, model, begin, n=100):
    """Return (loss, share of right answers) of held-out questions, active from `begin` on."""
    batch = batch_of(questions("valid")[:n])
    found = logits(states(adapters, model, batch["tokens"], begin), model).argmax(-1)
    right = (found == batch["targets"][:, begin:]) | (batch["mask"][:, begin:] == 0)
    return float(late_loss(adapters, model, batch, begin)), right.all(axis=1).mean()


def run(job):
    """Return the row of a run."""
    training, rate, seed = job
    adapters, model = trained(*job)
    row = {"training": training, "rate": rate, "seed": seed}
    for use, begin in TRAININGS.items():
        row[f"loss_{use}"], row[f"right_{use}"] = scores(adapters, model, begin)
    return row

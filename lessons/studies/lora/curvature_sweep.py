"""The largest curvature of the loss at the start of each method of the sweep `best_rates`.

About a minute of one core: 14 methods, A alone and B alone, three seeds each.
"""

import minilora
from minilora import TrainConfig
from minilora.layers import value_and_grad
from minilora.lessons.helpers import compare
from minilora.lessons.helpers.common import batch_of, questions
from minilora.lessons.helpers.curvature import largest_curvature
from minilora.lessons.studies.lora import one_factor_sweep as one_factor
from minilora.lessons.studies.methods.best_rates_sweep import FAMILY, RANK, RATES
from minilora.training import learning_rates
from minilora.tree import arrays, overlay

ROWS = 16  # training rows of the questions, of which the loss is the mean
SEEDS = range(3)
ALONE = {one_factor.name_of(factor, RANK): factor for factor in "AB"}
METHODS = (*RATES, *ALONE)


def start(method, seed):
    """Return (adapters, model, LoRA+'s ratio of the rates of B and A) of a method at its start."""
    if method in ALONE:
        return *one_factor.start(ALONE[method], RANK, seed), 1.0
    entry, model = compare.TABLE[method], minilora.load("micro").model
    config = compare.config_of(entry, RANK)
    if method not in FAMILY:
        config = compare.sized(entry, model, compare.BUDGET)
    return *minilora.get_peft_model(model, config, seed), entry.loraplus_lr_ratio


def curvature(adapters, model, ratio=1.0, **options):
    """Return the largest curvature of the loss of an adapter on the first rows of the questions.

    If B has another learning rate than A, a parameter is measured in units of its rate. DoRA's
    gradient takes a norm as constant, so its curvature is that of the steps and not of the loss.
    """
    batch = batch_of(questions()[:ROWS])
    units = learning_rates(1.0, TrainConfig(loraplus_lr_ratio=ratio), arrays(adapters))

    def gradient(trained):
        return value_and_grad(minilora.loss)(overlay(adapters, trained), model, batch)[1]

    return largest_curvature(gradient, arrays(adapters), units, **options)


def run(job):
    method, seed = job
    adapters, model, ratio = start(method, seed)
    found = curvature(adapters, model, ratio, steps=8, seed=seed)
    return {"method": method, "seed": seed, "curvature": float(f"{found:.5g}")}


JOBS = [(method, seed) for seed in SEEDS for method in METHODS]

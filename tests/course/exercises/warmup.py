"""warmup: compute the learning rate of a step.

Return the learning rate, a float, of a step from 0 to train_config.iters − 1. The first
w = ⌈warmup_ratio·iters⌉ steps warm up: step n < w has learning_rate·n/w, so step 0 has 0. For a
step n ≥ w, with rest = iters − w (at least 1), train_config.lr_schedule chooses:

- "constant": learning_rate;
- "linear": learning_rate·(iters − n)/rest;
- "cosine": learning_rate·½·(1 + cos(π·(n − w)/rest)).
"""

import math
from dataclasses import replace

import numpy as np

from minilora.config import TrainConfig
from minilora.course.outcome import close

CASES = {
    "iters": [1, 2, 3, 10, 40, 60, 90],
    "ratio": [0.0, 0.06, 0.3, 0.95],
    "schedule": ["constant", "linear", "cosine"],
    "share": [0.0, 0.05, 0.2, 0.5, 0.9, 0.95, 1.0],
}
HIDDEN = {"iters": range(91, 401), "ratio": [0.1, 0.5]}


def arguments(rng, iters, ratio, schedule, share):
    rate = float(rng.uniform(1, 2))
    config = TrainConfig(iters=iters, warmup_ratio=ratio, lr_schedule=schedule, learning_rate=rate)
    return round(share * (iters - 1)), config


def tolerance(step, config):
    """float64: some five operations on numbers of at most 2."""
    return 2.0**-49


def some(config):
    """Return at most twelve steps, from the first to the last."""
    return sorted({round(n) for n in np.linspace(0, config.iters - 1, 12)})


def property_from_nothing_to_the_top(function, step, config):
    """no rate is above learning_rate, and a warm-up begins at zero"""
    rates = [function(n, config) for n in some(config)]
    assert max(rates) <= config.learning_rate * (1 + 2**-50)
    if config.warmup_ratio and config.iters > 1:
        assert rates[0] == 0, f"the first rate is {rates[0]}"


def property_one_hill(function, step, config):
    """the rate never falls during the warm-up and never rises after it"""
    rates = [function(n, config) for n in some(config)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def property_the_top_after_the_warm_up(function, step, config):
    """the first step after the warm-up has the full rate, in short runs, too"""
    for iters in (1, 2, 3, config.iters):
        first = math.ceil(config.warmup_ratio * iters)
        if first < iters:
            rate = function(first, replace(config, iters=iters))
            close(rate, config.learning_rate, tolerance(step, config))

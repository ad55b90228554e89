"""warmup: compute the learning rate of a step.

Return the learning rate, a float, of a step from 0 to train_config.iters − 1. The first
w = ⌈warmup_ratio·iters⌉ steps warm up: step n < w has learning_rate·n/w, so step 0 has 0. For a
step n ≥ w, with rest = iters − w (at least 1), train_config.lr_schedule chooses:

- "constant": learning_rate;
- "linear": learning_rate·(iters − n)/rest;
- "cosine": learning_rate·½·(1 + cos(π·(n − w)/rest)).
"""

from minilora.config import TrainConfig

CASES = {"iters": range(2, 91), "schedule": ["constant", "linear", "cosine"]}
HIDDEN = {"iters": range(91, 401)}


def arguments(rng, iters, schedule):
    config = TrainConfig(iters=iters, warmup_ratio=0.3, lr_schedule=schedule, learning_rate=1.5)
    return int(rng.integers(iters)), config


def tolerance(step, config):
    """float64: some five operations on numbers of at most 2."""
    return 2.0**-49


def property_a_warm_up_begins_at_zero(function, step, config):
    """a warm-up begins at zero"""
    assert function(0, config) == 0

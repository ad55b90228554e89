"""warmup: compute the learning rate of a step.

Return the learning rate, a float, of a step from 0 to train_config.iters − 1. The first
w = ⌈warmup_ratio·iters⌉ steps warm up: step n < w has learning_rate·n/w, so step 0 has 0. For a
step n ≥ w, with rest = iters − w (at least 1), train_config.lr_schedule chooses:

- "constant": learning_rate;
- "linear": learning_rate·(iters − n)/rest;
- "cosine": learning_rate·½·(1 + cos(π·(n − w)/rest)).
"""

from minilora.config import TrainConfig

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


def property_a_warm_up_begins_at_zero(function, step, config):
    """a warm-up begins at zero"""
    if config.warmup_ratio and config.iters > 1:
        assert function(0, config) == 0

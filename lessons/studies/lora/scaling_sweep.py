"""Held-out loss over the learning rate at two ranks, under three rules for the factor before BA.

About seven minutes of one core. A run is 100 steps of `micro` on the questions with adapters on all
projections. The rules agree at r = 8, where the factor is 2.
"""

from itertools import product

from minilora import LoraConfig
from minilora.lessons.helpers.common import finetune

RANKS = (2, 32)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
RULES = {
    "constant": lambda r: {"lora_alpha": 2 * r},  # s = 2
    "alpha/r": lambda r: {"lora_alpha": 16},  # s = 16/r
    "alpha/sqrt(r)": lambda r: {"lora_alpha": 2 * 8**0.5, "use_rslora": True},  # s = 2·√(8/r)
}
SEEDS = (0, 1, 2, 3, 4)
JOBS = list(product(RULES, RANKS, RATES, SEEDS))


def config_of(rule, r):
    """Return the LoraConfig of a rank under a rule."""
    return LoraConfig(r=r, target_modules=("all-linear",), **RULES[rule](r))


def run(job):
    """Return the row of a job (rule, r, rate, seed), with its loss on held-out questions."""
    rule, r, rate, seed = job
    done = finetune(config_of(rule, r), seed=seed, iters=100, learning_rate=rate)
    return {"rule": rule, "r": r, "rate": rate, "seed": seed, "loss": round(done.scores["loss"], 5)}

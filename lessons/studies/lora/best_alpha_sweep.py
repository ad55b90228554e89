"""Held-out loss over alpha at three ranks, at one learning rate.

About five minutes of one core. A run is 100 steps of `micro` on the questions with adapters on all
projections. The rate is tuned at r = 8 and alpha = 16, with seed 0; `more` runs the other seeds.
"""

from itertools import product

from minilora import LoraConfig
from minilora.lessons.helpers.common import finetune, of

ALPHAS = {2: (2, 4, 8, 16, 32, 64), 8: (4, 8, 16, 32, 64), 32: (4, 8, 16, 32, 64, 128)}
RATES = (4e-3, 8e-3, 1.6e-2)
SEEDS = range(1, 9)
JOBS = list(product((8,), (16,), RATES, (0,)))


def more(rows):
    """Return the jobs of all ranks, alphas and other seeds, at the best rate."""
    best = min(RATES, key=lambda rate: of(rows, "loss", rate=rate, seed=0))
    return [(r, alpha, best, seed) for seed in SEEDS for r in ALPHAS for alpha in ALPHAS[r]]


def run(job):
    """Return the row of a job (r, alpha, rate, seed), with its loss on held-out questions."""
    r, alpha, rate, seed = job
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=("all-linear",))
    done = finetune(config, seed=seed, iters=100, learning_rate=rate)
    loss = round(done.scores["loss"], 5)
    return {"r": r, "alpha": alpha, "rate": rate, "seed": seed, "loss": loss}

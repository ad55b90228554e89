"""Alpha from 16 to 128 against r and 2r, and alpha against the learning rate.

About six minutes of one core. A run is 200 steps of 8 rows of the questions on `micro`, all
seven projections.
"""

from itertools import product

from minilora import LoraConfig
from minilora.lessons.helpers.common import finetune

# part "r": every alpha at one rate; part "rate": a grid of alpha and rate at r = 8
ALPHAS = {4: (4, 8, 16, 32, 64, 128), 16: (16, 32, 64, 128), 64: (16, 32, 64, 128)}
RATES = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
SEEDS, MORE = (0, 1, 2), (3, 4, 5, 6, 7)
COMPARED = {4: (4, 8, 16, 64), 64: (16, 64, 128)}  # by lesson 8, with more seeds
JOBS = [
    *(("r", r, alpha, 4e-3, seed) for seed in SEEDS for r in ALPHAS for alpha in ALPHAS[r]),
    *(("rate", 8, alpha, rate, seed) for seed, alpha, rate in product(SEEDS, (4, 16, 64), RATES)),
    *(("r", r, alpha, 4e-3, seed) for seed in MORE for r in COMPARED for alpha in COMPARED[r]),
]


def run(job):
    """Return the row of a job (part, r, alpha, rate, seed)."""
    part, r, alpha, rate, seed = job
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=("all-linear",))
    scores = finetune(config, seed=seed, learning_rate=rate, batch_size=8).scores
    return {
        "part": part, "r": r, "alpha": alpha, "rate": rate, "seed": seed,
        "loss": scores["loss"], "exact_match": scores["exact_match"],
    }  # fmt: skip

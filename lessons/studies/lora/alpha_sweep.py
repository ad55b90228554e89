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
# the runs that lesson 8 compares, with more seeds
COMPARED = (
    *(("r", r, alpha, 4e-3) for r, alpha in product((4, 64), (16, 64))),
    ("r", 4, 4, 4e-3), ("r", 4, 8, 4e-3), ("r", 64, 128, 4e-3),
)  # fmt: skip
JOBS = [
    *(("r", r, alpha, 4e-3, seed) for seed in SEEDS for r in ALPHAS for alpha in ALPHAS[r]),
    *(("rate", 8, alpha, rate, seed) for seed, alpha, rate in product(SEEDS, (4, 16, 64), RATES)),
    *((*case, seed) for seed in MORE for case in COMPARED),
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

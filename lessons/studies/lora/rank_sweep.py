"""Ranks from 1 to 64, on q and v and on all seven, the latter at two learning rates; alpha = 2r.

About six minutes of one core. A run is 200 steps of 8 rows of the questions on `micro`.
"""

from itertools import product

from minilora import LoraConfig
from minilora.lessons.helpers.common import finetune
from minilora.tree import num_parameters

RANKS = (1, 2, 4, 8, 16, 32, 64)
TARGETS = {"q v": ("q_proj", "v_proj"), "all": ("all-linear",)}
WHERE = (("q v", 1e-2), ("all", 1e-2), ("all", 4e-3))  # and at which rate
SEEDS = (0, 1, 2, 3, 4)
JOBS = [(name, r, rate, seed) for seed, (name, rate), r in product(SEEDS, WHERE, RANKS)]


def run(job):
    """Return the row of a job (targets, r, rate, seed)."""
    name, r, rate, seed = job
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS[name])
    done = finetune(config, seed=seed, learning_rate=rate, batch_size=8)
    return {
        "targets": name, "r": r, "rate": rate, "seed": seed,
        "trained": num_parameters(done.adapters), "loss": done.scores["loss"],
        "exact_match": done.scores["exact_match"],
    }  # fmt: skip

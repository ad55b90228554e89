"""Lesson 7: one adapter on one base that is stored in five ways, twelve seeds: sweeps/bases.csv."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finetune, write_sweep

from minilora.quant.schemes import SCHEMES

JOBS = [(scheme, seed) for seed in range(12) for scheme in SCHEMES]


def run_one(job):
    """The scores on held-out questions after 200 steps of micro, the base in `job`'s scheme."""
    scheme, seed = job
    scores = finetune(scheme=scheme, seed=seed).scores
    return {
        "scheme": scheme, "seed": seed, "loss": scores["loss"], "exact_match": scores["exact_match"]
    }  # fmt: skip


if __name__ == "__main__":
    write_sweep("bases", run_one, JOBS)

"""Lesson 3: one adapter on one base that is stored in five ways, twelve seeds."""

from minilora.lessons.helpers.common import finetune
from minilora.quant.schemes import SCHEMES

JOBS = [(scheme, seed) for seed in range(12) for scheme in SCHEMES]


def run(job):
    """Return the scores on held-out questions after 200 steps of micro, stored in a scheme."""
    scheme, seed = job
    scores = finetune(scheme=scheme, seed=seed).scores
    return {
        "scheme": scheme, "seed": seed, "loss": scores["loss"], "exact_match": scores["exact_match"]
    }  # fmt: skip

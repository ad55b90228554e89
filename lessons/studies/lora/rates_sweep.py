"""Held-out loss over the learning rate: LoRA, full fine-tuning, and training from nothing.

About ten minutes of one core. A run is 200 steps of `micro` on the questions; all that differs is
what is argument 0 of the loss, and from where it starts.
"""

from itertools import product

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig
from minilora.lessons.helpers.common import finetune
from minilora.lessons.helpers.pretraining import random_params
from minilora.quant.schemes import is_projection
from minilora.tree import named_leaves, unflatten

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WAYS = ("lora", "full", "scratch", "projections")  # full, of the seven projections alone
SEEDS = (0, 1, 2, 3, 4)
BETWEEN = {  # rates between those above, where each way begins to learn
    "full": (4e-4, 6e-4), "projections": (4e-4, 6e-4), "lora": (1.3e-3, 1.7e-3)
}  # fmt: skip
JOBS = [
    *product(WAYS, RATES, SEEDS),
    *((way, rate, seed) for way in BETWEEN for rate in BETWEEN[way] for seed in SEEDS),
]


def start(way, seed):
    """Return (adapters, model) before the first step."""
    model = minilora.load("micro").model
    rng = np.random.default_rng(seed)
    if way == "scratch":
        model = model._replace(base=random_params(model.config, rng))
    if way == "projections":
        weights = {path: w for path, w in named_leaves(model.base) if is_projection(path)}
        return unflatten(weights), model
    adapter_config = MethodConfig("full")
    if way == "lora":
        adapter_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
    return minilora.get_peft_model(model, adapter_config, rng)


def run(job):
    """Return the row of a job (way, rate, seed), with its scores on held-out questions."""
    way, rate, seed = job
    score = finetune(start=start(way, seed), seed=seed, learning_rate=rate).scores
    return {
        "way": way, "rate": rate, "seed": seed,
        "loss": round(score["loss"], 5), "exact_match": score["exact_match"],
    }  # fmt: skip

"""Held-out loss over the learning rate: LoRA, full fine-tuning, and training from nothing.

    python lessons/sweeps/rates.py

About ten minutes of one core. A run is 200 steps of `micro` on the questions; all that differs is
what is argument 0 of the loss, and from where it starts.
"""

import io
import sys
from contextlib import redirect_stderr
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_sweep
from sweeps.pretraining import random_params

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig, data
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


def start(way, seed=0, model="micro"):
    """(adapters, base, model config, tokenizer) before the first step."""
    config, base, tokenizer = minilora.load(model)
    rng = np.random.default_rng(seed)
    if way == "scratch":
        base = random_params(config, rng)
    if way == "projections":
        weights = {path: w for path, w in named_leaves(base) if is_projection(path)}
        return unflatten(weights), base, config, tokenizer
    adapter_config = MethodConfig("full")
    if way == "lora":
        adapter_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
    return *minilora.get_peft_model(base, adapter_config, rng), config, tokenizer


def run(job, iters=200):
    """The row of a run: (way, rate, seed) and its scores on held-out questions."""
    way, rate, seed = job
    adapters, base, config, tokenizer = start(way, seed)
    settings = TrainConfig(
        iters=iters, batch_size=16, learning_rate=rate, mask_prompt=True, seed=seed
    )
    rows, held_out = (
        data.encode_rows(data.load_rows("questions", split), tokenizer, settings)[0]
        for split in ("train", "valid")
    )
    with redirect_stderr(io.StringIO()):
        adapters, _ = minilora.train(adapters, base, rows, config, settings)
    score = minilora.evaluate(adapters, base, held_out, config)
    return {
        "way": way, "rate": rate, "seed": seed,
        "loss": round(score["loss"], 5), "exact_match": score["exact_match"],
    }  # fmt: skip


if __name__ == "__main__":
    write_sweep("rates", run, JOBS)

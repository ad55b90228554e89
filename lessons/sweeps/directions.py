"""Lesson 2c: the change of the projections in full fine-tuning of `micro`: sweeps/directions.csv.

    python lessons/sweeps/directions.py

About a minute of one core. Each seed trains all projections, and then scores models whose change is
cut to a few directions, and a LoRA of rank 2.
"""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import finetune, write_sweep

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, named_leaves, unflatten

JOBS = range(8)  # seeds


def train_projections(base, config, tokenizer, seed, iters=200):
    """Train all projections in full on the questions; return {path: weight} before and after."""
    settings = TrainConfig(
        iters=iters, batch_size=16, learning_rate=3e-3, mask_prompt=True, seed=seed
    )
    examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
    before = {path: w for path, w in named_leaves(base) if is_projection(path)}
    start = unflatten({path: w.copy() for path, w in before.items()})
    with redirect_stderr(io.StringIO()):
        trained, _ = minilora.train(start, base, examples, config, settings)
    return before, flatten(trained)


def energy_shares(singular_values):
    """Return (matrices, directions): the share of the energy in the first 1, 2, … directions."""
    squares = np.array(singular_values) ** 2
    return np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)


def cut_to_strongest(before, after, k):
    """Return the weights with only the k strongest directions of each change."""
    weights = {}
    for path, w in before.items():
        u, sigma, vt = np.linalg.svd(after[path] - w, full_matrices=False)
        weights[path] = (w + (u[:, :k] * sigma[:k]) @ vt[:k]).astype("f4")
    return unflatten(weights)


def cut_to_random(before, after, k, rng):
    """Return the weights with only what each change does to k random directions of the input."""
    weights = {}
    for path, w in before.items():
        q, _ = np.linalg.qr(rng.standard_normal((w.shape[1], k)))
        weights[path] = (w + (after[path] - w) @ q @ q.T).astype("f4")
    return unflatten(weights)


def needed(singular_values):
    """Return how many directions of each matrix carry nine tenths of its energy."""
    return 1 + (energy_shares(singular_values) < 0.9).sum(axis=1)


def lora_of_rank_two(seed, iters=200):
    """Return the scores of LoRA with r = 2 on all projections, after the same number of steps."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=("all-linear",))
    with redirect_stderr(io.StringIO()):
        return finetune(config, iters=iters, learning_rate=1e-2, seed=seed).scores


def run(seed):
    """Return the row of a seed: directions needed (mean over the matrices), and scores."""
    config, base, tokenizer = minilora.load("micro")
    rng = np.random.default_rng(seed)
    before, after = train_projections(base, config, tokenizer, seed)
    settings = TrainConfig(mask_prompt=True)
    valid, _ = data.encode_rows(data.load_rows("questions", "valid"), tokenizer, settings)
    values, by_chance = [], []
    for path, w in before.items():
        values.append(np.linalg.svd(after[path] - w, compute_uv=False))
        by_chance.append(np.linalg.svd(rng.standard_normal(w.shape), compute_uv=False))
    row = {"seed": seed, "needed": needed(values).mean(), "by_chance": needed(by_chance).mean()}
    models = {f"strongest_{k}": cut_to_strongest(before, after, k) for k in (2, 4, 16)}
    models["random_16"] = cut_to_random(before, after, 16, rng)
    scores = {name: minilora.evaluate(m, base, valid, config) for name, m in models.items()}
    scores["lora_2"] = lora_of_rank_two(seed)
    for name, score in scores.items():
        row |= {f"loss_{name}": score["loss"], f"exact_{name}": score["exact_match"]}
    return row


if __name__ == "__main__":
    write_sweep("directions", run, JOBS)

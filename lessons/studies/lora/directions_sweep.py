"""The change of the projections in full fine-tuning of `micro`.

The study `is_the_update_of_low_rank` reads the CSV. About a minute of one core. Each seed trains
all projections, and then scores models whose change is cut to a few directions, and a LoRA of
rank 2.
"""

import numpy as np

import minilora
from minilora import LoraConfig, data
from minilora.lessons.helpers.common import finetune, scores_of
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, named_leaves, unflatten

JOBS = range(8)  # seeds


def train_projections(model, seed, iters=200):
    """Train all projections in full on the questions; return {path: weight} before and after."""
    before = {path: w for path, w in named_leaves(model.base) if is_projection(path)}
    start = unflatten({path: w.copy() for path, w in before.items()})
    done = finetune(start=(start, model), seed=seed, iters=iters, learning_rate=3e-3)
    return before, flatten(done.adapters)


def energy_shares(matrices):
    """Return (matrices, directions): the share of the energy in the first 1, 2, … directions."""
    squares = np.array([np.linalg.svd(w, compute_uv=False) for w in matrices]) ** 2
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


def needed(shares):
    """Return how many directions of each matrix carry nine tenths of its energy."""
    return 1 + (shares < 0.9).sum(axis=1)


def energies(before, after, rng):
    """Return the energy shares of each change, and of random matrices of the same shapes."""
    changes = [after[path] - w for path, w in before.items()]
    return energy_shares(changes), energy_shares([rng.standard_normal(w.shape) for w in changes])


def lora_of_rank_two(seed, iters=200):
    """Return the scores of LoRA with r = 2 on all projections, after the same number of steps."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=("all-linear",))
    return finetune(config, iters=iters, learning_rate=1e-2, seed=seed).scores


def run(seed):
    """Return the row of a seed: directions needed (mean over the matrices), and scores."""
    model, valid = minilora.load("micro").model, data.load_rows("questions", "valid")
    rng = np.random.default_rng(seed)
    before, after = train_projections(model, seed)
    share, by_chance = energies(before, after, rng)
    row = {"seed": seed, "needed": needed(share).mean(), "by_chance": needed(by_chance).mean()}
    cut = {f"strongest_{k}": cut_to_strongest(before, after, k) for k in (2, 4, 16)}
    cut["random_16"] = cut_to_random(before, after, 16, rng)
    scores = {name: scores_of(weights, model, valid) for name, weights in cut.items()}
    scores["lora_2"] = lora_of_rank_two(seed)
    for name, score in scores.items():
        row |= {f"loss_{name}": score["loss"], f"exact_{name}": score["exact_match"]}
    return row

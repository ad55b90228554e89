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


def needed(matrices):
    """Return how many directions of each matrix carry nine tenths of its energy."""
    squares = np.array([np.linalg.svd(w, compute_uv=False) for w in matrices]) ** 2
    shares = np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
    return 1 + (shares < 0.9).sum(axis=1)


def cut(before, after, k, rng=None):
    """Return the weights with only what each change does to k directions of its input.

    These are the strongest directions of the change: the best approximation of rank k (Eckart and
    Young 1936). With rng, they are random.
    """
    weights = {}
    for path, w in before.items():
        change = after[path] - w
        directions = np.linalg.svd(change, full_matrices=False)[2][:k].T  # (in, k)
        if rng:
            directions, _ = np.linalg.qr(rng.standard_normal((w.shape[1], k)))
        weights[path] = (w + change @ directions @ directions.T).astype("f4")
    return unflatten(weights)


def run(seed):
    """Return the row of a seed: directions needed (mean over the matrices), and scores."""
    model, valid = minilora.load("micro").model, data.load_rows("questions", "valid")
    rng = np.random.default_rng(seed)
    before, after = train_projections(model, seed)
    changes = [after[path] - w for path, w in before.items()]
    random = [rng.standard_normal(w.shape) for w in changes]
    row = {"seed": seed, "needed": needed(changes).mean(), "by_chance": needed(random).mean()}
    models = {f"strongest_{k}": cut(before, after, k) for k in (2, 4, 16)}
    models["random_16"] = cut(before, after, 16, rng)
    scores = {name: scores_of(weights, model, valid) for name, weights in models.items()}
    lora_config = LoraConfig(r=2, lora_alpha=4, target_modules=("all-linear",))
    scores["lora_2"] = finetune(lora_config, seed=seed, learning_rate=1e-2).scores
    for name, score in scores.items():
        row |= {f"loss_{name}": score["loss"], f"exact_{name}": score["exact_match"]}
    return row

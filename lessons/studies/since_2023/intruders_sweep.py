"""Runs of the study `intruder_dimensions`: intruders, and scores after they are scaled down.

About four minutes of one core. A run is 200 steps of 16 rows of the questions on `micro`. LoRA is
on all seven projections; 1e-2 and 5e-3 are the tuned learning rates of lessons/helpers/compare.py.
"""

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, data
from minilora.lessons.helpers.common import finetune, notes_loss, scores_of
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten

METHODS = (  # name, rank, learning rate
    ("lora", 8, 1e-2), ("lora", 8, 4e-3), ("lora", 2, 1e-2), ("lora", 32, 1e-2),
    ("full", 0, 5e-3), ("full", 0, 2e-3),
)  # fmt: skip
FACTORS = (0.9, 0.75, 0.5, 0.25, 0.0)
JOBS = [(*method, seed) for seed in range(3) for method in METHODS]
TOP, EPSILON = 10, 0.5


def trained(method, r, rate, seed, iters=200):
    """Return the dense model after fine-tuning on the questions."""
    chosen = MethodConfig("full")
    if method != "full":
        chosen = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear")
    done = finetune(chosen, seed=seed, iters=iters, learning_rate=rate)
    return minilora.merge(done.adapters, done.model)


def parts(base, tree):
    """Return {path: (W, update, what the intruders add, the same of as many other directions)}."""
    weights, found = flatten(tree), {}
    for path, W0 in flatten(base).items():
        if is_projection(path):
            W0, W = W0.astype(np.float64), weights[path].astype(np.float64)
            U, S, V = np.linalg.svd(W, full_matrices=False)
            cosines = np.abs(U.T @ np.linalg.svd(W0, full_matrices=False)[0])
            is_intruder = cosines[:TOP].max(axis=1) < EPSILON
            chosen = np.flatnonzero(is_intruder)
            others = np.flatnonzero(~is_intruder)[: len(chosen)]
            sums = [(U[:, i] * S[i]) @ V[i] for i in (chosen, others)]
            found[path] = W, W - W0, *sums, len(chosen)
    return found


WAYS = ("update", "intruders", "others")


def scaled(model, found, way, factor):
    """Return a model with one part of each projection multiplied by a factor."""
    weights = flatten(model.base)
    for path, (W, *part, _) in found.items():
        weights[path] = (W + (factor - 1) * part[WAYS.index(way)]).astype(np.float32)
    return model._replace(base=unflatten(weights))


def scores(model):
    """Return the task loss, exact match, and loss on the base's own text on held-out rows."""
    task = scores_of({}, model, data.load_rows("questions", "test"))
    return {"task": task["loss"], "exact": task["exact_match"], "notes": notes_loss({}, model)}


def run(job):
    """Train, and score the model with each part scaled down by each factor."""
    model = trained(*job)
    found = parts(minilora.load("micro").model.base, model.base)
    ratios = [np.linalg.norm(d) / np.linalg.norm(W - d) for W, d, *_ in found.values()]
    row = {
        **dict(zip(("method", "r", "rate", "seed"), job)),
        "size": float(np.median(ratios)), "intruders": sum(x[-1] for x in found.values()),
        "directions": TOP * len(found), **scores(model),
    }  # fmt: skip
    for way in WAYS:
        for factor in FACTORS:
            after = scores(scaled(model, found, way, factor))
            row |= {f"{name}_{way}_{factor}": score for name, score in after.items()}
    return row

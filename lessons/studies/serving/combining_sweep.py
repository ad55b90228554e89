"""Adapters of one task and of two, averaged, added and stacked.

About two minutes of one core. A run is 100 steps of 16 rows on `micro`, all seven projections at
r = 4. The second task is the first one turned round.
"""

import numpy as np

import minilora
from minilora import LoraConfig, data
from minilora.layers import lora_delta
from minilora.lessons.helpers.common import finetune, scores_of
from minilora.lora import adapted_paths
from minilora.methods import compose, several
from minilora.tree import get, tree_map

JOBS = [0, 1, 2, 3, 4]  # seeds
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=("all-linear",))


def backwards(rows):
    """The questions turned round: where, what, who?"""
    turned = []
    for row in rows:
        name, what, place = row["completion"].strip(" .").split(", ")
        prompt = row["prompt"].replace("Who, what, where?", "Where, what, who?")
        turned.append({"prompt": prompt, "completion": f" {place}, {what}, {name}."})
    return turned


def fit(model, rows, seed, start=None, iters=100):
    """An adapter of `model`; `seed` orders the rows, `start` (or seed) draws A."""
    fresh = minilora.get_peft_model(model, LORA, seed if start is None else start)
    return finetune(start=fresh, rows=rows, seed=seed, iters=iters, learning_rate=1e-2).adapters


def mean_of_factors(a, b):
    """The adapter with (A₁ + A₂)/2 and (B₁ + B₂)/2: what averaging files does."""
    return tree_map(lambda x, y: (x + y) / 2, a, b)


def update(adapters):
    """All ΔW of an adapter as one vector."""
    deltas = [lora_delta(get(adapters, path)).ravel() for path in adapted_paths(adapters)]
    return np.concatenate(deltas)


def cosine(a, b):
    x, y = update(a), update(b)
    return float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def off(adapters, a, b):
    """‖ΔW − (ΔW₁ + ΔW₂)/2‖ / ‖(ΔW₁ + ΔW₂)/2‖ over all projections together."""
    mean = (update(a) + update(b)) / 2
    return float(np.linalg.norm(update(adapters) - mean) / np.linalg.norm(mean))


def train(seed, iters=100):
    """The adapters of a seed: of the first task, three times; of the second; and one on top."""
    model, _ = minilora.load("micro")
    rows = data.load_rows("questions", "train")
    turned = backwards(rows)
    one = fit(model, rows, seed, iters=iters)
    return {
        "one": one,
        "other": fit(model, rows, seed + 50, iters=iters),
        "sibling": fit(model, rows, seed + 50, seed, iters),  # the same A at first as `one`
        "turned": fit(model, turned, seed + 100, iters=iters),
        "upon": fit(several.stack(one, model), turned, seed + 100, iters=iters),
    }


def scored(seed, trained):
    """The row of a seed: the losses of its adapters alone, averaged, added and stacked."""
    model, _ = minilora.load("micro")
    rows = data.load_rows("questions", "test")[:200]  # of names that no training row has
    tasks = {"there": rows, "back": backwards(rows)}

    def loss(adapters, task="there", model=model):
        return scores_of(adapters, model, tasks[task])["loss"]

    one, other, sibling, turned, upon = trained.values()
    row = {"seed": seed, "one": loss(one), "other": loss(other)}
    row |= {"sibling": loss(sibling), "turned": loss(turned, "back")}
    for name, second in (("other", other), ("sibling", sibling)):
        row[f"cosine_{name}"] = cosine(one, second)
        ways = {
            how: compose.combine([one, second], [0.5, 0.5], how)[0]
            for how in compose.COMBINATION_TYPES
        }
        ways["factors"] = mean_of_factors(one, second)
        for how, mean in ways.items():
            row |= {f"{name}_{how}": loss(mean), f"off_{name}_{how}": off(mean, one, second)}
    row["cosine_turned"] = cosine(one, turned)
    for weight in (0.5, 1.0):
        both, _ = compose.combine([one, turned], [weight, weight])
        row |= {f"{task}_{weight}": loss(both, task) for task in tasks}
    stacked = several.stack(one, model)
    return row | {f"stack_{task}": loss(upon, task, stacked) for task in tasks}


def run(seed):
    return scored(seed, train(seed))

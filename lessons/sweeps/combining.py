"""Adapters of one task and of two, averaged, added and stacked.

    python lessons/sweeps/combining.py

About two minutes of one core. A run is 100 steps of 16 rows on `micro`, all seven projections at
r = 4. The second task is the first one turned round.
"""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_sweep

import minilora
from minilora import LoraConfig, TrainConfig, data, lora
from minilora.methods import compose
from minilora.tree import get, tree_map

JOBS = [0, 1, 2, 3, 4]  # seeds
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=("all-linear",))
SETTINGS = {"batch_size": 16, "learning_rate": 1e-2, "mask_prompt": True}


def forwards(rows):
    """The questions as they are: who, what, where?"""
    return rows


def backwards(rows):
    """The questions turned round: where, what, who?"""
    turned = []
    for row in rows:
        name, what, place = row["completion"].strip(" .").split(", ")
        prompt = row["prompt"].replace("Who, what, where?", "Where, what, who?")
        turned.append({"prompt": prompt, "completion": f" {place}, {what}, {name}."})
    return turned


def held_out(task):
    """200 prepared rows of a task that no training row is about."""
    _, _, words = minilora.load("micro")
    rows = task(data.load_rows("questions", "test")[:200])
    return data.encode_rows(rows, words, TrainConfig(mask_prompt=True))[0]


def fit(base, task, seed, start=None, iters=100):
    """An adapter pair on `base`; `seed` orders the rows, `start` (or seed) draws A."""
    config, _, words = minilora.load("micro")
    rng = np.random.default_rng(seed if start is None else start)
    adapters, frozen = lora.init(base, LORA, rng)
    settings = TrainConfig(iters=iters, seed=seed, **SETTINGS)
    examples, _ = data.encode_rows(task(data.load_rows("questions", "train")), words, settings)
    with redirect_stderr(io.StringIO()):
        adapters, _ = minilora.train(adapters, frozen, examples, config, settings)
    return adapters, frozen


def mean_of_factors(a, b):
    """The pair with (A₁ + A₂)/2 and (B₁ + B₂)/2: what averaging files does."""
    return tree_map(lambda x, y: (x + y) / 2, a[0], b[0]), a[1]


def update(pair):
    """All ΔW of an adapter as one vector."""
    nodes = [(get(pair[0], path), get(pair[1], path)) for path in lora.adapted_paths(pair[0])]
    return np.concatenate([lora.delta(*node).ravel() for node in nodes])


def cosine(a, b):
    x, y = update(a), update(b)
    return float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def off(pair, a, b):
    """‖ΔW − (ΔW₁ + ΔW₂)/2‖ / ‖(ΔW₁ + ΔW₂)/2‖ over all projections together."""
    mean = (update(a) + update(b)) / 2
    return float(np.linalg.norm(update(pair) - mean) / np.linalg.norm(mean))


def run(seed):
    config, base, _ = minilora.load("micro")
    there, back = held_out(forwards), held_out(backwards)

    def loss(pair, examples):
        return minilora.evaluate(*pair, examples, config)["loss"]

    one = fit(base, forwards, seed)
    other = fit(base, forwards, seed + 50)
    sibling = fit(base, forwards, seed + 50, start=seed)  # the same A at first as `one`
    turned = fit(base, backwards, seed + 100)
    row = {"seed": seed, "one": loss(one, there), "other": loss(other, there)}
    row |= {"sibling": loss(sibling, there), "turned": loss(turned, back)}
    for name, second in (("other", other), ("sibling", sibling)):
        row[f"cosine_{name}"] = cosine(one, second)
        ways = {
            how: compose.combine([one, second], [0.5, 0.5], how)[:2]
            for how in compose.COMBINATION_TYPES
        }
        ways["factors"] = mean_of_factors(one, second)
        for how, pair in ways.items():
            row |= {f"{name}_{how}": loss(pair, there), f"off_{name}_{how}": off(pair, one, second)}
    row["cosine_turned"] = cosine(one, turned)
    for weight in (0.5, 1.0):
        pair = compose.combine([one, turned], [weight, weight])[:2]
        row |= {f"there_{weight}": loss(pair, there), f"back_{weight}": loss(pair, back)}
    upon = fit(compose.stack(*one), backwards, seed + 100)
    return row | {"stack_there": loss(upon, there), "stack_back": loss(upon, back)}


if __name__ == "__main__":
    write_sweep("combining", run, JOBS)

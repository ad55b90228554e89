"""A trained adapter that learns a second task: the same one, or a new one on merged weights.

About six minutes of one core. The first task is the questions, the second one the same questions
turned round. Both runs have 200 steps on `micro`, the second one with or without rows of
the first task. The learning rate of the second run is chosen with the seeds CHOOSING on validation
rows of the second task, with replay of both; the runs that are compared have the seeds FRESH and
test rows.
"""

from functools import cache

import numpy as np

import minilora
from minilora import LoraConfig, data
from minilora.lessons.helpers.common import finetune, of, scores_of
from minilora.lessons.studies.serving.combining_sweep import backwards
from minilora.methods import several

LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
STEPS, BATCH = 200, 16
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
REPLAYED = (0, 2)  # rows of the first task per step
CASES = [(way, replay) for way in ("same", "merged") for replay in REPLAYED] + [("new", 0)]
CHOOSING, FRESH = (5, 6), (0, 1, 2, 3, 4)
COLUMNS = ("way", "replay", "rate", "seed")
JOBS = [(*case, rate, seed) for seed in CHOOSING for case in CASES for rate in RATES]


@cache
def first(seed):
    """Return (adapters, model) after the first task."""
    done = finetune(LORA, seed=seed)
    return done.adapters, done.model


def start(way, seed):
    """Return (adapters, model) of which the second run trains the adapters."""
    adapters, model = first(seed)
    if way == "same":
        return adapters, model
    if way == "merged":
        model = minilora.merge(adapters, model)
    if way == "stacked":
        model = several.stack(adapters, model)
    return minilora.get_peft_model(model, LORA, seed + 100)


def mixed(replay, seed):
    """Return the rows of all steps: of the second task, with `replay` of the first per step.

    A run sees each of them once, in an order that `finetune` draws.
    """
    old = data.load_rows("questions", "train")
    rng = np.random.default_rng(seed)
    counts = ((old, replay * STEPS), (backwards(old), (BATCH - replay) * STEPS))
    return [rows[i] for rows, n in counts for i in rng.permutation(len(rows))[:n]]


def scored(adapters, model, split):
    """Return the scores of both tasks on a split."""
    rows = data.load_rows("questions", split)
    found = {
        "old": scores_of(adapters, model, rows), "new": scores_of(adapters, model, backwards(rows))
    }  # fmt: skip
    losses = {f"{split}_{name}": s["loss"] for name, s in found.items()}
    return losses | {f"{split}_exact_{name}": s["exact_match"] for name, s in found.items()}


def run(job):
    """Train the second task; return the scores of both tasks, and of the first before."""
    way, replay, rate, seed = job
    rows = mixed(replay, seed)
    done = finetune(
        start=start(way, seed), rows=rows, held_out=rows[:1], seed=seed, iters=STEPS,
        learning_rate=rate,
    )  # fmt: skip
    row = dict(zip(COLUMNS, job)) | scored(done.adapters, done.model, "valid")
    row |= scored(done.adapters, done.model, "test")
    return row | {"before": scored(*first(seed), "test")["test_old"]}


def best_rate(rows, case):
    """Return the rate with the lowest mean validation loss, with replay of both tasks."""
    way, replay = case
    chosen = [row for row in rows if row["seed"] in CHOOSING]
    names = ("valid_new", "valid_old") if replay else ("valid_new",)

    def loss(rate):
        return np.mean([of(chosen, name, way=way, replay=replay, rate=rate) for name in names])

    return min(RATES, key=loss)


def more(rows):
    """Return the jobs of the seeds FRESH, each case at its best rate."""
    return [(*case, best_rate(rows, case), seed) for case in CASES for seed in FRESH]

"""A reward learned with rank 1, rank 8 and all weights, and on bases of four bits.

About six minutes of one core. A run is 40 steps of 32 answers (8 to each of 4 prompts) on `micro`.
The runs of the split "valid" choose the learning rates; those of the split "test" are the result.
"""

from functools import cache

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig
from minilora.config import ALL_LINEAR
from minilora.data import tasks
from minilora.lessons.helpers import echoes, rollouts
from minilora.lessons.helpers.codes import VALUES, rounded
from minilora.tree import named_leaves, num_parameters, unflatten

STEPS, EVERY = 40, 10
SCHEMES = ("dense", "nf4", "e2m1")
RATES = {  # the rates that are tried in each case: base, scheme, size
    ("usual", "dense", "1"): (3e-3, 6e-3, 1.2e-2, 2.4e-2),
    ("usual", "dense", "8"): (1e-3, 2e-3, 4e-3, 8e-3),
    ("usual", "dense", "full"): (1.25e-4, 2.5e-4, 5e-4, 1e-3),
    ("rare", "dense", "8"): (1e-3, 2e-3, 4e-3),
    ("rare", "nf4", "8"): (1e-3, 2e-3, 4e-3),
    ("rare", "e2m1", "8"): (1e-3, 2e-3, 4e-3, 8e-3),
}
SIZES = ("1", "8", "full")
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (5, 6)
JOBS = [
    (*case, rate, "valid", seed)
    for case, rates in RATES.items() for rate in rates for seed in TUNING_SEEDS
]  # fmt: skip
POINTS = range(0, STEPS + 1, EVERY)  # the steps after which a run is scored


def more(rows):
    """Return the jobs of the split "test": each case at its best rate."""
    return [(*case, best_rate(rows, case), "test", seed) for case in RATES for seed in SEEDS]


def runs(rows, *case, split="test"):
    """Return the rows of a case (base, scheme, size) on a split."""
    return [
        row for row in rows
        if (row["base"], row["scheme"], size_of(row)) == case and row["split"] == split
    ]  # fmt: skip


def best_rate(rows, case):
    """Return the rate with the highest expected reward at the end on "valid", mean of the seeds."""
    means = {}
    for row in runs(rows, *case, split="valid"):
        means.setdefault(row["rate"], []).append(row[f"reward_{STEPS}"])
    return max(means, key=lambda rate: np.mean(means[rate]))


def size_of(row):
    """Return the size of a row as in RATES; `read_sweep` makes a number of "8"."""
    return row["size"] if isinstance(row["size"], str) else f"{row['size']:.0f}"


def curve(row, name):
    """Return the scores of a run at POINTS."""
    return [row[f"{name}_{step}"] for step in POINTS]


@cache
def model_of(kind, scheme):
    """Return a model: "usual" is micro; "rare" names the place in 1 of 16 answers, else "who"."""
    if scheme == "e2m1":
        model = model_of(kind, "dense")
        leaves = named_leaves(model.base)
        return model._replace(base=unflatten({path: in_e2m1(path, w) for path, w in leaves}))
    if scheme != "dense":
        return minilora.quantize(model_of(kind, "dense"), scheme)
    model, _ = minilora.load("micro")
    if kind == "usual":
        return model
    examples = []
    for i, row in enumerate(echoes.rows("train", 3200, seed=9)):
        examples += echoes.examples([row], " " + tasks.ECHOES[0] if i % 16 else echoes.OWN)
    start, _ = minilora.get_peft_model(model, MethodConfig("full"))
    settings = TrainConfig(iters=100, batch_size=32, learning_rate=1e-3)
    trained, _ = minilora.train(start, model, examples, settings, quiet=True)
    return minilora.merge(trained, model)


def in_e2m1(path, w):
    """Round a projection to E2M1 in blocks of 16: NVFP4 but for its scales, float32 here."""
    if path.split(".")[-2] not in ALL_LINEAR:
        return w
    return rounded(w.ravel(), VALUES["e2m1"], 16).reshape(w.shape)


def start_of(model, size, seed):
    """Return a new adapter: all weights for "full", else LoRA of this rank on all projections."""
    if size == "full":
        return minilora.get_peft_model(model, MethodConfig("full")).adapters
    config = LoraConfig(r=int(size), lora_alpha=2 * int(size), target_modules="all-linear")
    return minilora.get_peft_model(model, config, seed).adapters


def run(job, steps=STEPS):
    """Return the row of a run: its scores at POINTS, and what it forgot."""
    kind, scheme, size, rate, split, seed = job
    model = model_of(kind, scheme)
    held_out = echoes.rows(split, 64)
    row = dict(zip(("base", "scheme", "size", "rate", "split", "seed"), job))

    def score(step, adapters):
        if step % EVERY == 0:
            row[f"reward_{step}"] = echoes.expected_reward(adapters, model, held_out)
            entropies = echoes.entropies(adapters, model, held_out)
            row[f"entropy_{step}"] = float(np.mean(entropies))

    adapters = start_of(model, size, seed)
    row["trained"] = num_parameters(adapters)
    row["own_loss_before"] = echoes.own_loss({}, model)
    score(0, adapters)
    settings = TrainConfig(iters=steps, batch_size=32, learning_rate=rate, seed=seed)
    adapters, _ = rollouts.reinforce(
        adapters, model, echoes.rows("train", 2000, seed), echoes.reward, settings, on_step=score
    )
    row["own_loss"] = echoes.own_loss(adapters, model)
    return {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in row.items()}

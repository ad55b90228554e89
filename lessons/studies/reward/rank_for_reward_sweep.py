"""A reward learned with rank 1, rank 8 and all weights, and on bases of four bits.

About six minutes of one core. A run is 40 steps of 32 answers (8 to each of 4 prompts) on `micro`.
The runs of the split "valid" choose the learning rates; those of the split "test" are the result.
"""

from functools import cache

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig
from minilora.data import tasks
from minilora.lessons.helpers import echoes, rollouts
from minilora.lessons.helpers.codes import VALUES, rounded
from minilora.lessons.helpers.common import of
from minilora.tree import flatten, num_parameters, unflatten

STEPS = 40
POINTS = range(0, STEPS + 1, 10)  # the steps after which a run is scored
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


def more(rows):
    """Return the jobs of the split "test": each case at its best rate."""
    return [(*case, best_rate(rows, case), "test", seed) for case in RATES for seed in SEEDS]


def runs(rows, *case, split="test"):
    """Return the rows of a case (base, scheme, size) on a split."""
    found = []
    for row in rows:
        size = str(row["size"]).removesuffix(".0")  # `read_sweep` makes a number of "8"
        if (row["base"], row["scheme"], size, row["split"]) == (*case, split):
            found.append(row)
    return found


def best_rate(rows, case):
    """Return the rate with the highest expected reward at the end on "valid", mean of the seeds."""
    tuning = runs(rows, *case, split="valid")
    return max(RATES[case], key=lambda rate: np.mean(of(tuning, f"reward_{STEPS}", rate=rate)))


@cache
def model_of(kind, scheme):
    """Return a model: "usual" is micro; "rare" names the place in 1 of 16 answers, else "who"."""
    if scheme == "e2m1":
        return in_e2m1(model_of(kind, "dense"))
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


def in_e2m1(model):
    """Round the projections to E2M1 in blocks of 16: NVFP4 but for its scales, float32 here."""
    leaves = flatten(model.base)
    for path, w in leaves.items():
        if "_proj" in path:
            leaves[path] = rounded(w.ravel(), VALUES["e2m1"], 16).reshape(w.shape)
    return model._replace(base=unflatten(leaves))


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
        if step in POINTS:
            row[f"reward_{step}"] = echoes.expected_reward(adapters, model, held_out)
            entropies = echoes.entropies(adapters, model, held_out)
            row[f"entropy_{step}"] = float(np.mean(entropies))

    adapters = start_of(model, size, seed)
    row["trained"] = num_parameters(adapters)
    row["own_loss_before"] = echoes.own_loss({}, model)
    score(0, adapters)
    settings = TrainConfig(iters=steps, batch_size=32, learning_rate=rate, seed=seed)
    adapters = rollouts.reinforce(
        adapters, model, echoes.rows("train", 2000, seed), echoes.reward, settings, on_step=score
    )
    row["own_loss"] = echoes.own_loss(adapters, model)
    return in_five_digits(row)


def in_five_digits(row):
    """Return the row with its floats rounded to five digits."""
    return {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in row.items()}

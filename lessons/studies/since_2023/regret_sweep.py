"""LoRA and full fine-tuning over ranks, learning rates, lengths of runs and batch sizes.

Runs of the studies `lora_without_regret` and `equal_until_full`. About twenty minutes of one core.
"""

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np

from minilora import LoraConfig, MethodConfig, data
from minilora.config import ALL_LINEAR
from minilora.lessons.helpers.common import finetune, of, read_sweep
from minilora.tree import num_parameters

LENGTHS = (25, 50, 100, 200)  # steps after which a run is scored
ROWS_SEEN = {"micro": 1600, "tiny": 400}  # by a whole run: 200 steps of 8 rows, 25 of 64, …
ALPHA = 32


def run(job):
    """Train at a constant rate; return the held-out losses on the way, in nats per token."""
    name, size, batch_size, rate, seed = job
    config = MethodConfig("full")
    if size != "full":
        config = LoraConfig(r=size, lora_alpha=ALPHA, target_modules=ALL_LINEAR)
    steps = ROWS_SEEN[name] // batch_size
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        done = finetune(
            config, name, held_out=data.load_rows("questions", "valid")[:64], seed=seed,
            iters=steps, batch_size=batch_size, learning_rate=rate, lr_schedule="constant",
            warmup_ratio=0.0, steps_per_eval=min(LENGTHS),
        )  # fmt: skip
    rows = [row for row in done.history if "eval_loss" in row]
    losses = {row["step"]: round(row["eval_loss"], 5) for row in rows}
    return {
        **dict(zip(("model", "size", "batch", "rate", "seed"), job)),
        "trained": num_parameters(done.adapters),
        **{f"loss_{step}": losses.get(step, "") for step in LENGTHS},
        "loss": losses[steps],
    }


SEEDS = range(8)  # of r = 8 and of full fine-tuning of `micro`, with 8 rows per step
CHOOSING, FRESH = range(5), range(5, 13)  # seeds that choose a rate, and seeds that are compared
SIZES = (1, 8, 64, "full")
RATES = {  # by model, rows per step, and kind
    ("micro", 8, "lora"): (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    ("micro", 8, "full"): (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    ("micro", 64, "lora"): (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    ("micro", 64, "full"): (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    ("tiny", 8, "lora"): (2e-3, 4e-3, 8e-3, 1.6e-2),
    ("tiny", 8, "full"): (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
}
CASES = (  # model, size, rows per step
    *(("micro", size, 8) for size in SIZES),
    *(("micro", size, 64) for size in SIZES[1:]),
    *(("tiny", size, 8) for size in (8, "full")),
)


def rates_of(model, batch, size):
    """Return the learning rates that a case is trained at."""
    return RATES[model, batch, "full" if size == "full" else "lora"]


COMPARED = (  # size, rows per step, rate: the best rates of CHOOSING after 25, 100 and 200 steps
    *((size, 8, rate) for size in (1, 8, 64) for rate in (2e-3, 4e-3)),
    *(("full", 8, rate) for rate in (1e-3, 2e-3)),
    *((8, 64, 8e-3), (64, 64, 8e-3), ("full", 64, 4e-3)),
)

JOBS = [
    (model, size, batch, rate, seed)
    for seed in SEEDS
    for model, size, batch in CASES
    for rate in rates_of(model, batch, size)
    if seed in CHOOSING or ((model, batch) == ("micro", 8) and size in (8, "full"))
]
COMPARISONS = [("micro", *case, seed) for seed in FRESH for case in COMPARED]
JOBS += [job for job in COMPARISONS if job not in JOBS]


def losses_of(model, size, batch, rate, steps, seeds):
    """Return the losses of a case after so many steps, one per seed."""
    rows = [row for row in read_sweep("regret") if row["seed"] in seeds]
    return of(rows, f"loss_{steps}", model=model, size=size, batch=batch, rate=rate)


def curve(model, size, steps, batch=8, seeds=CHOOSING):
    """Return (rates, losses) of the sweep; losses: a row per rate, a column per seed."""
    rates = rates_of(model, batch, size)
    losses = [losses_of(model, size, batch, rate, steps, seeds) for rate in rates]
    return np.array(rates), np.array(losses)


def at_best_rate(size, steps, batch=8):
    """Return the losses of `micro` with the seeds FRESH.

    The rate is the one with the lowest mean loss over the seeds CHOOSING.
    """
    rates, losses = curve("micro", size, steps, batch)
    best = rates[losses.mean(axis=1).argmin()]
    return np.array(losses_of("micro", size, batch, best, steps, FRESH))

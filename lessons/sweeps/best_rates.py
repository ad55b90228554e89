"""Runs of lessons 24 and 24b: each method at several learning rates, then at its best, ten seeds.

About a quarter of an hour of one core.

python lessons/sweeps/best_rates.py
"""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import of, write_rows
from sweeps import compare

import minilora
from minilora import TrainConfig, data
from minilora.tree import num_parameters

FAMILY = ("lora", "lora+", "pissa", "dora")
RANK = 2  # of the family; compare's budget would give DoRA, whose m it counts as well, only 1
ALL_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0, 2.0)
ENDS = {  # the lowest and the highest rate that is tried
    **dict.fromkeys(FAMILY, (2e-3, 5e-2)), "vera": (1e-2, 5e-1), "bottleneck": (1e-2, 2e-1),
    "prefix": (1e-2, 5e-1), "prompt": (1e-2, 5e-1), "p-tuning": (2e-2, 5e-1), "ia3": (1e-1, 2.0),
    "bitfit": (2e-2, 5e-1), "norm": (2e-2, 5e-1), "head": (5e-2, 1.0), "full": (1e-3, 1e-2),
}  # fmt: skip
RATES = {m: tuple(r for r in ALL_RATES if low <= r <= high) for m, (low, high) in ENDS.items()}
TRIED = (0, 1)  # the seeds at every rate, which choose the best one
FRESH = tuple(range(2, 10))  # the seeds at the best rate only, which are compared
ONE_RATE = (("lora", 5e-3), ("lora+", 5e-3), ("lora+", 2e-2))  # compared at one rate for both, too


def start(method, base, seed):
    """Return (adapters, base): LoRA and its variants at one rank, the others at the budget."""
    entry = compare.TABLE[method]
    if method in FAMILY:
        config = compare.config_of(entry, RANK)
    else:
        config = compare.sized(entry, base, compare.BUDGET)
    return minilora.get_peft_model(base, config, seed)


def run_one(job):
    """Train a method at a rate; score it on the splits valid (to choose) and test (to report)."""
    method, rate, seed = job
    config, base, tokenizer = minilora.load("micro")
    settings = TrainConfig(
        iters=200, batch_size=8, learning_rate=rate, mask_prompt=True, seed=seed,
        loraplus_lr_ratio=compare.TABLE[method].loraplus_lr_ratio,
    )  # fmt: skip
    adapters, base = start(method, base, seed)
    train, valid, test = (
        data.encode_rows(data.load_rows("questions", split), tokenizer, settings)[0]
        for split in ("train", "valid", "test")
    )
    with redirect_stderr(io.StringIO()):
        adapters, _ = minilora.train(adapters, base, train, config, settings)
    chosen_by, reported = (
        minilora.evaluate(adapters, base, examples, config) for examples in (valid, test)
    )
    return {
        "method": method,
        "rate": rate,
        "seed": seed,
        "trained": num_parameters(adapters),
        "valid_loss": round(chosen_by["loss"], 5),
        "valid_exact": chosen_by["exact_match"],
        "loss": round(reported["loss"], 5),
        "exact_match": reported["exact_match"],
    }


def best_rate(rows, method):
    """Return the rate with the lowest mean loss on the split valid, over the seeds of TRIED."""
    found = {}
    for row in rows:
        if row["method"] == method and row["seed"] in TRIED:
            found.setdefault(row["rate"], []).append(row["valid_loss"])
    return min(found, key=lambda rate: np.mean(found[rate]))


def at_best(rows, method, column):
    """Return a column of the runs at the method's best rate, in the order of the seeds FRESH."""
    fresh = [row for row in rows if row["seed"] in FRESH]
    return np.array(of(fresh, column, method=method, rate=best_rate(rows, method)))


JOBS = [(method, rate, seed) for seed in TRIED for method in RATES for rate in RATES[method]]

if __name__ == "__main__":
    rows = compare.mapped(run_one, JOBS)
    best = [(method, best_rate(rows, method)) for method in RATES]
    rows += compare.mapped(run_one, [(*pair, s) for pair in (*best, *ONE_RATE) for s in FRESH])
    write_rows("best_rates", rows)

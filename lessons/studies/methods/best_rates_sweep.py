"""Each method at several learning rates, then at its best with further seeds.

About a quarter of an hour of one core. The studies `methods_at_their_best_rate` and
`all_methods_at_their_best_rate` read the CSV.
"""

import numpy as np

import minilora
from minilora import data
from minilora.lessons.helpers import compare
from minilora.lessons.helpers.common import finetune, of, scores_of
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


def run(job):
    """Train a method at a rate; score it on the splits valid (to choose) and test (to report)."""
    method, rate, seed = job
    entry = compare.TABLE[method]
    config = compare.config_of(entry, RANK)
    if method not in FAMILY:
        config = compare.sized(entry, minilora.load("micro").model, compare.BUDGET)
    done = finetune(
        config, seed=seed, batch_size=8, learning_rate=rate,
        loraplus_lr_ratio=entry.loraplus_lr_ratio,
    )  # fmt: skip
    test = scores_of(done.adapters, done.model, data.load_rows("questions", "test"))
    return {
        "method": method, "rate": rate, "seed": seed, "trained": num_parameters(done.adapters),
        "valid_loss": round(done.scores["loss"], 5), "valid_exact": done.scores["exact_match"],
        "loss": round(test["loss"], 5), "exact_match": test["exact_match"],
    }  # fmt: skip


def of_seeds(rows, seeds, column, method, rate):
    """Return a column of the runs of a method at a rate, in the order of the seeds."""
    return np.array([of(rows, column, method=method, rate=rate, seed=s)[0] for s in seeds])


def best_rate(rows, method):
    """Return the rate with the lowest mean loss on the split valid, over the seeds of TRIED."""
    return min(
        RATES[method], key=lambda rate: of_seeds(rows, TRIED, "valid_loss", method, rate).mean()
    )


def at_best(rows, method, column):
    """Return a column of the runs at the method's best rate, in the order of the seeds FRESH."""
    return of_seeds(rows, FRESH, column, method, best_rate(rows, method))


JOBS = [(method, rate, seed) for seed in TRIED for method in RATES for rate in RATES[method]]


def more(rows):
    """Return the jobs at the best rates, with other seeds."""
    best = [(method, best_rate(rows, method)) for method in RATES]
    return [(*pair, seed) for pair in (*best, *ONE_RATE) for seed in FRESH]

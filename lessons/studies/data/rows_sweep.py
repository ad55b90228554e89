"""Rows and epochs: `micro` on N questions that are seen once or several times.

About ten minutes of one core. A step has 16 rows. The learning rate of a case is chosen with the
seeds CHOOSING on the questions' validation rows; the runs that are compared have the seeds FRESH,
rows of their own, and the test rows.
"""

import numpy as np

from minilora import data
from minilora.data.tasks import questions
from minilora.lessons.helpers.common import finetune, of, scores_of

BATCH = 16
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
CHOOSING, FRESH = (5, 6), (0, 1, 2, 3, 4)
VIEWS = (800, 1600, 3200)  # how many rows a run sees, counting a row each time
CASES = [(n, views) for views in VIEWS for n in (100, 200, 400, 800, 1600, 3200) if n <= views]
COLUMNS = ("rows", "views", "rate", "seed")
JOBS = [(*case, rate, seed) for seed in CHOOSING for case in CASES for rate in RATES]


def run(job):
    """Train on a seed's own N rows; return the losses of all three splits, and exact match."""
    n, views, rate, seed = job
    rows = questions("train", n, seed)
    done = finetune(rows=rows, seed=seed, iters=views // BATCH, learning_rate=rate)
    test = scores_of(done.adapters, done.model, data.load_rows("questions", "test"))
    train = scores_of(done.adapters, done.model, rows[:400])
    losses = {"train": train["loss"], "valid": done.scores["loss"], "test": test["loss"]}
    return {**dict(zip(COLUMNS, job)), **losses, "exact": test["exact_match"]}


def best_rate(rows, case):
    """Return the rate with the lowest mean validation loss over the seeds CHOOSING."""
    n, views = case
    chosen = [row for row in rows if row["seed"] in CHOOSING]
    losses = [np.mean(of(chosen, "valid", rows=n, views=views, rate=rate)) for rate in RATES]
    return RATES[int(np.argmin(losses))]


def more(rows):
    """Return the jobs of the seeds FRESH, each case at its best rate."""
    return [(*case, best_rate(rows, case), seed) for case in CASES for seed in FRESH]

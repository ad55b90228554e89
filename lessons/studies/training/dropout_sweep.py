"""Dropout on clean and on noisy labels, with 4,000 training rows and with 64.

About three minutes of one core. A run is 200 steps of 8 rows of the questions on `micro`, all seven
projections at r = 8, alpha = 64: less than half an epoch of 4,000 rows, 25 epochs of 64.
"""

import numpy as np

from minilora import LoraConfig, data
from minilora.lessons.helpers.common import finetune

NOISE = 0.3  # share of wrong answers
ROWS = {4000: (0.0, 0.1), 64: (0.0, 0.05, 0.1, 0.3)}  # rows: rates of dropout
JOBS = [
    (rows, noise, dropout, seed)
    for seed in range(8) for rows in ROWS for noise in (0.0, NOISE) for dropout in ROWS[rows]
    if seed < 3 or (rows == 64 and dropout in (0.0, 0.1))  # what the study compares: eight seeds
]  # fmt: skip


def noisy(rows, share, rng):
    """Return rows in which a share of the rows have exchanged their answers."""
    rows = [dict(row) for row in rows]
    wrong = rng.permutation(len(rows))[: round(share * len(rows))]
    answers = [rows[i]["completion"] for i in np.roll(wrong, 1)]
    for i, answer in zip(wrong, answers):
        rows[i]["completion"] = answer
    return rows


def run(job):
    """Return the row of a job (rows, share of wrong answers, dropout, seed)."""
    rows, noise, dropout, seed = job
    config = LoraConfig(r=8, lora_alpha=64, lora_dropout=dropout, target_modules=("all-linear",))
    some = noisy(data.load_rows("questions", "train")[:rows], noise, np.random.default_rng(seed))
    done = finetune(config, rows=some, seed=seed, batch_size=8)
    return {
        "rows": rows, "noise": noise, "dropout": dropout, "seed": seed,
        "train_loss": float(np.mean([step["loss"] for step in done.history[-20:]])),
        "loss": done.scores["loss"], "exact_match": done.scores["exact_match"],
        "ece": done.scores["ece"],
    }  # fmt: skip

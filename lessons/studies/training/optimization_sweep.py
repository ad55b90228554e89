"""The study `accumulation`: one setting changed at a time, five seeds each.

About ten minutes of one core.
"""

import numpy as np

from lessons.helpers.common import finetune, notes_loss, of, read_sweep, table
from minilora import data

NEVER = 1e9  # a max_grad_norm that nothing reaches
CASES = {
    "all as it is": {},
    "no warm-up": {"warmup_ratio": 0.0},
    "no clipping": {"max_grad_norm": NEVER},
    "no clipping, beta2 0.99": {"max_grad_norm": NEVER, "adam_beta2": 0.99},
    "no clipping, beta2 0.95": {"max_grad_norm": NEVER, "adam_beta2": 0.95},
    "beta2 0.95": {"adam_beta2": 0.95},
    "clipping at 0.1": {"max_grad_norm": 0.1},
    "constant rate": {"lr_schedule": "constant"},
    "constant, half the rate": {"lr_schedule": "constant", "learning_rate": 2e-3},
    "five times the rate": {"learning_rate": 2e-2},
    "five times, constant": {"learning_rate": 2e-2, "lr_schedule": "constant"},
    "linear to zero": {"lr_schedule": "linear"},
    "weight decay 0.1": {"weight_decay": 0.1},
    "weight decay 10": {"weight_decay": 10.0},
    "bad rows": {"bad": 20},
    "bad rows, no clipping": {"bad": 20, "max_grad_norm": NEVER},
    "ten times the rate": {"learning_rate": 4e-2},
    "ten times, no warm-up": {"learning_rate": 4e-2, "warmup_ratio": 0.0},
    "ten times, no clipping": {"learning_rate": 4e-2, "max_grad_norm": NEVER},
    "4 rows, 800 steps": {"batch_size": 4, "iters": 800},
    "64 rows, 50 steps": {"batch_size": 64, "iters": 50},
}


def case(name, column="loss"):
    """Return a column of a case of the sweep, one number per seed."""
    return np.array(of(read_sweep("optimization"), column, case=name))


def show(*names):
    """Print a table of cases: held-out loss, exact match, worst step, loss on the base's notes."""
    rows = []
    for name in names:
        losses, exact = case(name), case(name, "exact_match").mean()
        cells = [
            f"{losses.mean():.4f}",
            f"{losses.min():.4f} to {losses.max():.4f}",
            f"{exact:.0%}",
        ]
        worst, notes = case(name, "worst").mean(), case(name, "notes").mean()
        rows.append([name, *cells, f"{worst:.1f}", f"{notes:.2f}"])
    table(["case", "held-out loss", "five seeds", "exact", "worst step", "base's notes"], rows)


def rows(bad=0):
    """The questions' training rows, `bad` of them answered with 200 random letters."""
    good, rng = data.load_rows("questions", "train"), np.random.default_rng(7)
    for i in rng.choice(len(good), bad, replace=False):
        noise = "".join(map(chr, rng.integers(97, 123, 200)))
        good[i] = {"prompt": good[i]["prompt"], "completion": noise}
    return good


def train(case, seed=0):
    """Return the Run of a case."""
    settings = dict(CASES[case])
    return finetune(rows=rows(settings.pop("bad", 0)), seed=seed, **settings)


def run(job):
    """One run: its held-out scores, the largest loss on the way, what is left of the notes."""
    case, seed = job
    done = train(case, seed)
    losses = [row["loss"] for row in done.history]
    return {
        "case": case,
        "seed": seed,
        "loss": round(done.scores["loss"], 5),
        "exact_match": done.scores["exact_match"],
        "worst": round(max(losses), 3),
        "notes": round(notes_loss(done.adapters, done.base), 4),
    }


SEEDS = range(5)
JOBS = [(case, seed) for case in CASES for seed in SEEDS]

"""One setting changed at a time, five seeds each: about ten minutes of one core.

The studies `accumulation`, `warm_up`, `why_clipping_helps` and `schedules_and_decay` read it.
"""

import numpy as np

from minilora import data
from minilora.lessons.helpers.common import (
    agrees,
    finetune,
    notes_loss,
    of,
    read_sweep,
    spread,
    table,
)

NEVER = 1e9  # a max_grad_norm that nothing reaches
USUAL = "all as it is"  # 200 steps of 16 rows at 4e-3: warm-up, clipping at 1, a cosine to zero
CASES = {
    USUAL: {},
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
    cells = []
    for name in names:
        exact, worst, notes = (case(name, key).mean() for key in ("exact_match", "worst", "notes"))
        cells.append([name, spread(case(name), 4), f"{exact:.0%}", f"{worst:.1f}", f"{notes:.2f}"])
    table(["case", "held-out loss, five seeds", "exact", "worst step", "base's notes"], cells)


def rows(bad):
    """Return the questions' training rows; `bad` of them have an answer of 200 random letters."""
    good, rng = data.load_rows("questions", "train"), np.random.default_rng(7)
    for i in rng.choice(len(good), bad, replace=False):
        noise = "".join(map(chr, rng.integers(97, 123, 200)))
        good[i] = {"prompt": good[i]["prompt"], "completion": noise}
    return good


def train(name, seed=0):
    """Return the Run of a case."""
    settings = {"bad": 0, **CASES[name]}
    return finetune(rows=rows(settings.pop("bad")), seed=seed, **settings)


def again(name, other):
    """Run a case again, check that its loss is the sweep's and not the other's; return the Run."""
    done = train(name)
    loss = done.scores["loss"]
    assert agrees(loss, case(name), case(other)), f"{name}: {loss}, in the sweep {case(name)}"
    return done


def run(job):
    """Return the row of a run: its held-out scores, its largest loss, the loss on the notes."""
    name, seed = job
    done = train(name, seed)
    return {
        "case": name, "seed": seed, "loss": round(done.scores["loss"], 5),
        "exact_match": done.scores["exact_match"],
        "worst": round(max(row["loss"] for row in done.history), 3),
        "notes": round(notes_loss(done.adapters, done.model), 4),
    }  # fmt: skip


JOBS = [(name, seed) for name in CASES for seed in range(5)]

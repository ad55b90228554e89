"""One setting changed at a time, five seeds each: about ten minutes of one core.

The studies `accumulation`, `warm_up`, `why_clipping_helps` and `schedules_and_decay` read it.
"""

import numpy as np

from minilora import data
from minilora.lessons.helpers.common import agrees, finetune, notes_loss, of, read_sweep

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
    """Draw the held-out losses of cases, a dot per seed."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6, 0.8 + 0.4 * len(names)), layout="constrained")
    for name in names[::-1]:
        axes.semilogx(case(name), [name] * 5, "o", color="C0", alpha=0.5)
    axes.set_xlabel("held-out loss, in nats per token; a dot is a seed")
    plt.show()


def rows(bad):
    """Return the questions' training rows; `bad` of them have an answer of 200 random letters."""
    good, rng = data.load_rows("questions", "train"), np.random.default_rng(7)
    for i in rng.choice(len(good), bad, replace=False):
        noise = "".join(map(chr, rng.integers(97, 123, 200)))
        good[i] = {"prompt": good[i]["prompt"], "completion": noise}
    return good


def train(name, seed=0):
    """Return the Run of a case."""
    settings = dict(CASES[name])
    bad = settings.pop("bad", 0)
    return finetune(rows=rows(bad) if bad else None, seed=seed, **settings)


def is_of(done, name, other):
    """Return whether the loss of a Run is that of a case in the sweep, and not the other's."""
    return agrees(done.scores["loss"], case(name), case(other))


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

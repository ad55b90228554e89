"""Lesson 19c: attention or the MLP with one budget, on the questions.

About a minute of one core. The runs are those of sweeps/targets.py, with seeds that did not choose
the learning rate there.
"""

from sweeps import targets

PLACES = {"attention": "q k v o", "MLP": "MLP"}  # the names in sweeps/targets.py
SEEDS = range(3, 11)
JOBS = [(place, targets.BEST[name], seed) for seed in SEEDS for place, name in PLACES.items()]


def run(job):
    """The row of a job (place, rate, seed)."""
    place, rate, seed = job
    row = targets.run(("budget", PLACES[place], rate, seed))
    names = ("trained", "loss", "exact_match")
    return {"place": place, "rate": rate, "seed": seed, **{name: row[name] for name in names}}

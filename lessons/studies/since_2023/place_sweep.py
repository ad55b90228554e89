"""Runs of the study `equal_until_full`: attention or the MLP with one budget, on the questions.

About a minute of one core. The runs are those of targets_sweep.py, with seeds that did not choose
the learning rate there.
"""

from minilora.lessons.studies.lora import targets_sweep as targets

PLACES = {"attention": "q k v o", "MLP": "MLP"}  # the names in targets_sweep.py
SEEDS = range(3, 11)
JOBS = [(place, targets.BEST[name], seed) for seed in SEEDS for place, name in PLACES.items()]


def run(job):
    """The row of a job (place, rate, seed)."""
    place, rate, seed = job
    row = targets.run(("budget", PLACES[place], rate, seed))
    names = ("rate", "seed", "trained", "loss", "exact_match")
    return {"place": place, **{name: row[name] for name in names}}

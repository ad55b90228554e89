"""Every method of `sweeps/compare.py` on micro, at one budget: what it costs, learns and forgets.

    python lessons/sweeps/siblings.py

About twelve minutes of one core: 14 methods, five seeds, 200 steps each, scored on the test rows.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_sweep
from sweeps import compare

SEEDS = 5
NAMES = ("method", "seed", "trained", "loss", "exact_match", "notes_before", "notes_after")


def run(job):
    """The row of a job without its times, which are another machine's."""
    found = compare.run_one(job)
    return {name: round(v, 5) if isinstance(v := found[name], float) else v for name in NAMES}


JOBS = compare.jobs(compare.TABLE, SEEDS, 200)

if __name__ == "__main__":
    write_sweep("siblings", run, JOBS)

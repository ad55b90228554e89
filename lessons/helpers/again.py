"""Run a sweep again, and compare the new runs with the stored ones.

    python -m minilora.lessons.helpers.again             # the sweep of today, another every day
    python -m minilora.lessons.helpers.again --seed 5    # the sweep and the order of seed 5
    python -m minilora.lessons.helpers.again targets     # this sweep

The runs come in a random order, and no further run begins after a minute. Each result is
compared with those of the seeds of its case, in the CSV. Of twenty results, nineteen should be
where 95 % of further seeds are (`common.further_seeds`). If so many are outside that chance alone
has a probability below 1/1,000, the exit status is 1: the package no longer does what the lessons
say.
"""

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context

import numpy as np

from minilora.cli import report_error
from minilora.cli.arguments import Parser
from minilora.config import InputError
from minilora.kernels import threads
from minilora.lessons.helpers.common import STUDIES, further_seeds, number, read_sweep, table
from minilora.lessons.helpers.sweep import load, one_thread

NAMES = sorted(path.stem.removesuffix("_sweep") for path in STUDIES.glob("*/*.csv"))


def run_until(function, jobs, seconds):
    """Return the rows of the jobs that begin within `seconds`; one process per core."""
    begin = partial(run_before, time.time() + seconds, function)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(threads.THREADS, spawn, initializer=one_thread) as processes:
        rows = list(processes.map(begin, jobs))
    return [row for row in rows if row is not None]


def run_before(end, function, job):
    """Run a job, if it is not too late; else return None."""
    return function(job) if time.time() < end else None


def comparisons(row, stored):
    """Return [(column, result, results of the seeds)] of a row: what is positive and has a spread.

    The columns of a sweep up to `seed` name the run, those after it are its results.
    """
    columns = list(stored[0])
    last = columns.index("seed")
    case = {name: number(str(row[name])) for name in columns[:last]}
    seeds = [of for of in stored if all(of[name] == value for name, value in case.items())]
    if not seeds:
        raise InputError(f"the CSV has no run of {case}: run the sweep, which writes it")
    found = []
    for name in columns[last + 1 :]:
        values = [of[name] for of in seeds]
        numbers = all(isinstance(value, float) and value > 0 for value in values)
        if numbers and min(values) < max(values):
            found.append((name, row[name], values))
    return found


def is_outside(again, seeds):
    """Return whether a result is outside the interval of 95 % of further seeds."""
    low, high = further_seeds(seeds, 0.95)
    return not low <= again <= high


def chance(outside, compared):
    """Return the probability that at least so many of the results are outside by chance."""
    return sum(
        math.comb(compared, k) * 0.05**k * 0.95 ** (compared - k)
        for k in range(outside, compared + 1)
    )


def check(name, seed, minutes):
    """Run a part of a sweep, print what differs; return the chance of so many results outside."""
    sweep = load(name)
    order = np.random.default_rng(seed).permutation(len(sweep.JOBS))
    rows = run_until(sweep.run, [sweep.JOBS[i] for i in order], 60 * minutes)
    stored, compared, cells = read_sweep(name), 0, []
    for row in rows:
        for column, again, seeds in comparisons(row, stored):
            compared += 1
            if is_outside(again, seeds):
                low, high = further_seeds(seeds, 0.95)
                run = " ".join(
                    str(value) for value in list(row.values())[: list(row).index("seed")]
                )
                cells.append([run, column, f"{again:.4g}", f"{low:.4g} to {high:.4g}"])
    runs = f"{len(rows)} of {len(sweep.JOBS)} runs again, {compared} results"
    outside = f"{len(cells)} of them outside the interval of 95 % of further seeds"
    print(f"{name}, seed {seed}: {runs}, {outside}")
    if cells:
        table(["case", "result", "again", "further seeds"], cells)
    return chance(len(cells), compared)


def main(argv=None):
    """Check the chosen sweeps; return the exit status: 0, 1 if one differs, or 2 for an error."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("sweeps", nargs="*", choices=[[], *NAMES], help="default: one of them")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="default: today")
    parser.add_argument("--minutes", type=float, default=1, help="no run begins after this time")
    try:
        args = parser.parse_args(argv)
        names = args.sweeps or [NAMES[args.seed % len(NAMES)]]
        chances = [check(name, args.seed, args.minutes) for name in names]
    except (InputError, OSError) as error:
        return report_error(error)
    return int(min(chances) < 0.001)


if __name__ == "__main__":
    sys.exit(main())

"""Run the jobs of a sweep in parallel, and write its CSV.

    python -m minilora.lessons.helpers.sweep alpha rank    # all runs of these two sweeps

A sweep is a module NAME_sweep.py next to its study, with `JOBS` and `run(job)`, which returns the
row of a run as a dict. Some have `more(rows)`, too: further jobs, which follow from the rows of
JOBS.
"""

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minilora.kernels import threads
from minilora.lessons.helpers.common import STUDIES


def mapped(function, jobs, executor=None):
    """Return [function(job), …] of the jobs run in parallel, with a progress bar.

    executor: any `concurrent.futures.Executor` whose workers can import `function`. Default: one
    process per core, with one thread each, so that step times can be compared.
    """
    if executor is None:
        spawn = get_context("spawn")
        with ProcessPoolExecutor(threads.THREADS, spawn, initializer=one_thread) as processes:
            return mapped(function, jobs, processes)
    return list(tqdm(executor.map(function, jobs), total=len(jobs), unit="run", disable=None))


def one_thread():
    """Have this process compute on one thread, a worker of `mapped`."""
    threads.THREADS = 1
    threadpool_limits(1)


def load(name):
    """Import the module of a sweep."""
    path = next(STUDIES.glob(f"*/{name}_sweep.py"))
    return import_module(f"minilora.lessons.studies.{path.parent.name}.{path.stem}")


def write(name):
    """Run all jobs of a sweep and write its CSV, one row per job."""
    sweep = load(name)
    rows = mapped(sweep.run, sweep.JOBS)
    if hasattr(sweep, "more"):
        rows += mapped(sweep.run, sweep.more(rows))
    with open(Path(sweep.__file__).with_suffix(".csv"), "w", newline="") as file:
        file.write(f"# python -m minilora.lessons.helpers.sweep {name}\n")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":  # each process imports this file again
    for name in sys.argv[1:]:
        write(name)

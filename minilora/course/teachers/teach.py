"""Grade submissions, write solutions, prove the exercises (`minilora teach`)."""

import os
import runpy
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from unittest.mock import patch

from ...config import InputError
from ...formats.files import require_new
from ..students import exercises, judge, learn
from ..students.isolation import CONTEXT, ENVIRONMENT, LATE
from . import report, submission


def do_grade(args):
    """Grade submissions; print the results, and write the reports as the results come."""
    paths: dict = {}
    for path in args.submissions:
        name = submission.student(path)
        if name in paths:
            raise InputError(f"two submissions are named {name}: rename one")
        paths[name] = path
    if args.jobs <= 0:
        raise InputError("--jobs must be a whole number from 1")
    if args.out:
        require_new(args.out)
    chosen = [e.id for e in exercises.select(args.only)]
    seed = args.seed
    if seed is None:
        seed = secrets.randbits(32)
        print(f"the seed of the hidden checks is {seed}; keep it private", file=sys.stderr)
    work = partial(grade_submission, exercises.FOLDER, seed)
    results: dict = dict.fromkeys(paths, ({}, []))

    def grade(wanted, jobs):
        """Grade the exercises of `wanted`, {name: ids}, and write what is known so far."""
        with ProcessPoolExecutor(jobs, CONTEXT) as pool:
            futures = {pool.submit(work, paths[name], ids): name for name, ids in wanted.items()}
            for future in as_completed(futures):
                name = futures[future]
                grades, notes = results[name]
                if error := future.exception():
                    ended = judge.Verdict(0.0, f"{report.ENDED}: {error}")
                    failed = exercises.select(wanted[name])
                    new = {e.id: report.grade(e, ended, ended) for e in failed}
                else:
                    new, notes = future.result()
                results[name] = grades | new, notes
                if args.out:
                    report.write(Path(args.out), results, name)

    with patch.dict(os.environ, ENVIRONMENT, clear=True):  # of the judges, too: without the seed
        grade(dict.fromkeys(paths, chosen), args.jobs)
        for name, (grades, _) in results.items():
            if late := [id for id, g in grades.items() if g.is_late]:
                grade({name: late}, 1)  # alone, so that a busy machine costs no points
    is_one = len(paths) == 1
    print(report.feedback(*results[name]) if is_one else report.class_table(results), end="")


def grade_submission(folder, seed, path, ids):
    """Return {id: Grade} of a submission, and notes on its files."""
    exercises.FOLDER = folder
    files, notes = submission.read(path)
    grades = {}
    for e in exercises.select(ids):
        first = judge.verdict(e, files)
        second = first if first.text == LATE else judge.verdict(e, files, seed)
        reasons = exercises.written_reasons(files.get(e.file, b""))
        grades[e.id] = report.grade(e, first, second, reasons)
    return grades, notes


def do_solutions(args):
    """Write the solved files into a folder."""
    learn.write_files(args, solved=True)


def do_check(args):
    """Prove the exercises with lessons/exercises/prove.py; return the exit status."""
    prove = runpy.run_path(str(exercises.LESSONS / "exercises" / "prove.py"))
    return prove["main"](exercises.select(args.only))

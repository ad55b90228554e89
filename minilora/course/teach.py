"""Grade submissions, prove the exercises (`minilora teach`)."""

import ast
import os
import runpy
import secrets
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from unittest.mock import patch

from ..config import InputError
from ..formats.files import new_folder
from . import exercises, judge, report
from .student import CONTEXT, ENVIRONMENT

LARGEST = 2**20  # most bytes of a submitted file that are read


def do_grade(args):
    """Grade submissions; print the results, and write a folder of reports."""
    names = [Path(path).resolve().stem for path in args.submissions]
    for name, path in zip(names, args.submissions):
        if not Path(path).exists():
            raise InputError(f"{path} does not exist: give a folder or a zip file")
        if names.count(name) != 1:
            raise InputError(f"two submissions are named {name}: rename one")
    if args.jobs <= 0:
        raise InputError("--jobs must be a whole number from 1")
    exercises.select(args.only)
    seed = args.seed
    if seed is None:
        seed = secrets.randbits(32)
        print(f"the seed of the hidden checks is {seed}; keep it private", file=sys.stderr)
    work = partial(grade_submission, args.only, seed)
    quiet = patch.dict(os.environ, ENVIRONMENT, clear=True)  # of the judges, too: without the seed
    with quiet, ProcessPoolExecutor(args.jobs, CONTEXT) as pool:
        results = dict(zip(names, pool.map(work, args.submissions)))
    if args.out:
        with new_folder(args.out) as folder:
            report.write_all(folder, results)
    print(report.class_table(results) if len(names) > 1 else report.feedback(results[name]), end="")


def grade_submission(only, seed, path):
    """Return the Grades of a folder or a zip file."""
    chosen = exercises.select(only)
    files = submitted_files(Path(path), {e.file for e in chosen})
    grades = []
    for e in chosen:
        verdicts = [judge.verdict(e, files.get(e.file), s) for s in (None, seed)]
        reasons = written_reasons(files.get(e.file, b""))
        grade = report.Grade(e.id, e.lesson, e.points, *verdicts)
        grades.append(grade._replace(written_points=e.written_points, reasons=reasons))
    return grades


def written_reasons(source):
    """Return the text that a student's file assigns to REASON, without running the file."""
    with suppress(SyntaxError, ValueError):
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REASON":
                return str(ast.literal_eval(node.value)).strip()
    return ""


def submitted_files(path, wanted):
    """Return {name: bytes} of the wanted files, at any depth, of a folder or a zip file.

    The least deep file of a name counts, but none that a link points out to.
    """
    found: dict = {}
    try:
        if path.is_dir():
            files = [p for p in path.rglob("*.py") if p.resolve().is_relative_to(path.resolve())]
            entries = {p.relative_to(path).as_posix(): partial(p.open, "rb") for p in files}
        else:
            archive = zipfile.ZipFile(path)
            entries = {name: partial(archive.open, name) for name in archive.namelist()}
        for name in sorted(entries, key=lambda name: name.count("/")):
            file = PurePosixPath(name).name
            if file in wanted.difference(found):
                with entries[name]() as stream:
                    found[file] = stream.read(LARGEST)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"{path.name} cannot be read: {error}", file=sys.stderr)
    return found


def do_check(args):
    """Prove the exercises with lessons/exercises/prove.py; return the exit status."""
    prove = runpy.run_path(str(exercises.LESSONS / "exercises" / "prove.py"))
    return prove["main"](exercises.select(args.only))

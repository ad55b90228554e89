"""Grade submissions, prove the exercises (`minilora teach`)."""

import os
import runpy
import secrets
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import requires
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from unittest.mock import patch

from ..config import InputError
from ..formats.files import new_folder
from . import exercises, judge, report
from .exercises import LESSONS, PACKAGE, TEMPLATES
from .student import environment

LARGEST = 2**20  # most bytes of a submitted file


def do_autograder(args):
    """Write a zip file that Gradescope unpacks, installs with setup.sh and runs per submission."""
    needs = [f"'{need}'" for need in requires("minilora") or () if "extra ==" not in need]
    only = ["--only", *(e.id for e in exercises.select(args.only))] if args.only else []
    values = {"@NEEDS@": needs, "@SEED@": [str(private_seed(args.seed))], "@ONLY@": only}
    with zipfile.ZipFile(args.out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("setup.sh", "run_autograder"):
            text = (TEMPLATES / name).read_text(encoding="utf-8")
            for key, words in values.items():
                text = text.replace(key, " ".join(words))
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, text)
        for folder, inside in ((PACKAGE, "minilora"), (LESSONS, "minilora/lessons")):
            for file in sorted(folder.rglob("*")):
                parts = file.relative_to(folder).parts
                if file.is_file() and "__pycache__" not in parts and parts[0] != "lessons":
                    archive.write(file, "/".join([inside, *parts]))
    print(f"{args.out}: upload it as the autograder of a programming assignment")


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
    if args.user:
        check_user(args.user)
    exercises.select(args.only)
    work = partial(grade_submission, args.only, private_seed(args.seed), args.user)
    quiet = patch.dict(os.environ, environment())  # the environment of the resource tracker
    with quiet, ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        results = dict(zip(names, pool.map(work, args.submissions)))
    if args.out:
        with new_folder(args.out) as folder:
            report.write_all(folder, results)
    print(report.class_table(results) if len(names) > 1 else report.feedback(results[name]), end="")


def check_user(user):
    """Raise InputError if this process cannot run code as `user`; every submission would fail."""
    try:
        import pwd

        pwd.getpwnam(user)
    except (ImportError, KeyError) as error:
        raise InputError(f"--user {user}: this machine has no such user") from error
    if os.geteuid() != 0:
        raise InputError(f"--user {user} needs root: run the command as root, or without the flag")


def private_seed(seed):
    """Return the seed of the hidden checks; without one, draw it and print it."""
    if seed is None:
        seed = secrets.randbits(32)
        print(f"the seed of the hidden checks is {seed}; keep it private", file=sys.stderr)
    return seed


def grade_submission(only, seed, user, path):
    """Return the Grades of a folder or a zip file."""
    chosen = exercises.select(only)
    files = submitted_files(Path(path), {e.file for e in chosen})
    checked = {e: judge.verdicts(e, files.get(e.file), seed, user) for e in chosen}
    return [report.Grade(e.id, e.lesson, e.points, *both) for e, both in checked.items()]


def submitted_files(path, wanted):
    """Return {name: bytes} of the wanted files, at any depth, of a folder or a zip file.

    The least deep file of a name counts, but none over 1 MB, and none that a link points out to.
    """
    found: dict[str, bytes] = {}
    try:
        if path.is_dir():
            files = [p for p in path.rglob("*.py") if p.resolve().is_relative_to(path.resolve())]
            entries = {p.relative_to(path).as_posix(): partial(p.open, "rb") for p in files}
        else:
            archive = zipfile.ZipFile(path)
            entries = {name: partial(archive.open, name) for name in archive.namelist()}
        for name in sorted(entries, key=lambda name: name.count("/")):
            *folders, file = PurePosixPath(name).parts
            if file in wanted.difference(found) and "__MACOSX" not in folders:
                with entries[name]() as stream:
                    data = stream.read(LARGEST + 1)
                found |= {file: data} if len(data) <= LARGEST else {}
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"{path.name} cannot be read: {error}", file=sys.stderr)
    return found


def do_check(args):
    """Prove the exercises with lessons/exercises/prove.py; return the exit status."""
    prove = runpy.run_path(str(LESSONS / "exercises" / "prove.py"))
    return prove["main"](exercises.select(args.only))

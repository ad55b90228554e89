"""`minilora teach`: a tree for students, the grading of what comes back, the proof of the set."""

import ast
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

from ..config import InputError, require
from ..files import new_folder
from . import report, source
from .exercises import Exercise, load
from .outcome import Stopped
from .proof import prove, table
from .student import SEED, Student
from .verdict import Verdict
from .verdict import check as verdict_of
from .workspace import CHECKS, PROGRESS, write

TRIMMED = {"folder", "mistakes"}


def chosen(only, folder=None):
    """The exercises with these ids, in their order; all of them if there are none."""
    known = load(folder) if folder else load()
    for name in only or ():
        require(name in known, f"there is no exercise {name!r}: choose from {', '.join(known)}")
    return [e for e in known.values() if not only or e.id in only]


def build(args):
    """A folder for students: stubs and properties; no solution, no mistake."""
    exercises = chosen(args.only)
    ids = {e.id for e in exercises}
    with new_folder(args.out) as folder:
        (folder / CHECKS / "exercises").mkdir(parents=True)
        write(folder / PROGRESS, "{}\n")
        write(folder / "README.md", readme(exercises))
        entries = [entry(e, ids) for e in exercises]
        write(folder / CHECKS / "exercises.toml", "\n".join(entries))
        for e in exercises:
            text = source.file_text(e)
            write(folder / f"{e.stem}.py", text)
            write(
                folder / CHECKS / "exercises" / f"{e.stem}.py",
                text if e.kind == "test" else without_mistakes(e.folder / f"{e.stem}.py"),
            )
    print(f"{args.out}: {len(exercises)} exercises, {sum(e.points for e in exercises):g} points")


def entry(exercise, ids):
    """The exercise's entry in TOML, without its mistakes and without what it needs beyond `ids`."""
    lines = ["[[exercise]]"]
    for field in fields(Exercise):
        value = getattr(exercise, field.name)
        if field.name == "needs":
            value = [need for need in value if need in ids]
        if field.name not in TRIMMED:
            value = list(value) if isinstance(value, tuple) else value
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def without_mistakes(path):
    """A Python file of cases and properties without its functions `mistake_…`."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("mistake_"):
            del lines[source.start(node) - 1 : node.end_lineno]
    return "\n".join(lines).rstrip() + "\n"


README = """# Exercises

Each file is a function of minilora without its body. Write it, and check it:

    minilora learn list
    minilora learn next
    minilora learn check ID      without ID: all that you have begun
    minilora learn hint ID       three of them, one at a time
    minilora learn reset ID      a fresh stub; your file is kept under another name

Run a file by itself to step through it in a debugger. What you hand in is this folder. It is
graded by these checks and by hidden ones: the same rules, on other calls.

| exercise | file | lesson | difficulty | minutes | points |
| --- | --- | --- | --- | --- | --- |
"""


def readme(exercises):
    rows = [
        f"| {e.id} | [{e.stem}.py]({e.stem}.py) | {e.lesson} | {e.difficulty} | {e.minutes} "
        f"| {e.points:g} |"
        for e in exercises
    ]
    return README + "\n".join(rows) + "\n"


@dataclass(frozen=True)
class Grade:
    """One exercise of a submission: half of its points for the open checks, half for the hidden."""

    exercise: Exercise
    open: Verdict
    hidden: Verdict
    seconds: float

    @property
    def parts(self):
        """(name, points, of how many, verdict) of both halves."""
        half = self.exercise.points / 2
        return [
            (self.exercise.id, half * self.open.share, half, self.open),
            (f"{self.exercise.id}, hidden", half * self.hidden.share, half, self.hidden),
        ]

    @property
    def points(self):
        return sum(points for _, points, _, _ in self.parts)


def grade(args):
    """Grade a folder, and write the result to standard output or a file."""
    submission = Path(args.submission)
    require(submission.is_dir(), f"{submission} is no folder: name the one that was handed in")
    exercises, seed = chosen(args.only), private_seed(args.seed)
    began = time.perf_counter()
    grades = [graded(e, submission / f"{e.stem}.py", seed) for e in exercises]
    text = report.FORMATS[args.format](grades, time.perf_counter() - began)
    if args.out:
        try:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{args.out} cannot be written: {error.strerror}") from error
        write(args.out, text)
    else:
        print(text, end="")


def private_seed(given):
    """The seed of the hidden checks: --seed, or the environment's, or one nobody can guess."""
    text = os.environ.get(SEED, "") if given is None else str(given)
    if not text:
        seed = secrets.randbits(32)
        print(f"hidden checks drawn from seed {seed} (for you alone)", file=sys.stderr)
        return seed
    require(text.isdecimal(), f"{SEED} must be a whole number, got {text!r}")
    return int(text)


def graded(exercise, path, seed):
    """The Grade of one file, in a process that costs only its own points if it dies."""
    began = time.perf_counter()
    if not path.is_file():
        nothing = Verdict("failed", 0.0, f"{path.name} was not handed in")
        return Grade(exercise, nothing, nothing, 0.0)
    try:
        with Student(exercise, path, 2 * exercise.seconds) as subject:
            seen = verdict_of(exercise, subject)
            hidden = seen
            if seen.status != "todo":
                hidden = verdict_of(exercise, subject, seed, hidden=True)
    except Stopped as stop:
        seen = hidden = Verdict("failed", 0.0, str(stop))
    return Grade(exercise, seen, hidden, time.perf_counter() - began)


def check(args):
    """Prove the set; returns the exit status."""
    proofs = [prove(e) for e in chosen(args.only)]
    print(table(proofs))
    faults = [f"{p.exercise.id}: {fault}" for p in proofs for fault in p.faults]
    mistakes = sum(p.caught for p in proofs)
    print(f"\n{len(proofs)} exercises, {mistakes} planted mistakes caught and told apart")
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if faults else 0

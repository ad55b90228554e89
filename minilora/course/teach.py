"""`minilora teach`: a tree for students, the grading of what comes back, the proof of the set."""

import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..config import InputError, require
from ..formats.files import new_folder
from . import handout, report
from .exercises import Exercise, load
from .outcome import Stopped
from .proof import prove, table
from .student import SEED, Student
from .verdict import Verdict
from .verdict import check as verdict_of
from .workspace import write


def chosen(only):
    """The exercises with these ids, in their order; all of them if there are none."""
    known = load()
    for name in only or ():
        require(name in known, f"there is no exercise {name!r}: choose from {', '.join(known)}")
    return [e for e in known.values() if not only or e.id in only]


def build(args):
    """A folder for students: stubs and properties; no solution, no mistake."""
    exercises = chosen(args.only)
    with new_folder(args.out) as folder:
        handout.write_tree(folder, exercises)
    print(f"{args.out}: {len(exercises)} exercises, {sum(e.points for e in exercises):g} points")


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

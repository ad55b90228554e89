"""`minilora teach`: hand out exercises, grade what comes back, prove the set of exercises."""

import os
import secrets
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..config import require
from ..formats.files import new_folder
from . import gradescope, judge, report
from .exercises import Exercise, load
from .learn import fill, write
from .outcome import Stopped
from .student import SEED, Local, running

README = """# Exercises

Each file is a function of minilora without its body. Write it, and check it:

    minilora learn list
    minilora learn next
    minilora learn check ID      without ID: every exercise that you have begun
    minilora learn hint ID       three of them, one at a time
    minilora learn reset ID      a fresh stub; your file is kept under another name

Run a file by itself to step through it in a debugger. What you hand in is this folder. It is
graded by these checks and by hidden ones: the same rules, on other calls.

| exercise | file | lesson | difficulty | minutes | points |
| --- | --- | --- | --- | --- | --- |
"""
LARGEST = 2**20  # bytes of a file that is handed in


class Grade(NamedTuple):
    """One exercise of a submission: half of its points for the open checks, half for the hidden."""

    exercise: Exercise
    open: judge.Verdict
    hidden: judge.Verdict
    seconds: float

    @property
    def points(self):
        return self.exercise.points * (self.open.share + self.hidden.share) / 2

    @property
    def mistake(self):
        return self.open.mistake or self.hidden.mistake


def chosen(only):
    """Return the exercises with these ids, in their order; all of them if there are none."""
    known = load()
    for name in only or ():
        require(name in known, f"there is no exercise {name!r}: choose from {', '.join(known)}")
    return [e for e in known.values() if not only or e.id in only]


def do_build(args):
    """Make the folder that students get: a workspace of these exercises, and a README."""
    exercises, readme = chosen(args.only), README
    with new_folder(args.out) as folder:
        fill(folder, exercises)
        for e in exercises:
            cells = e.id, f"[{e.file}]({e.file})", e.lesson, e.difficulty, e.minutes
            readme += f"| {' | '.join(map(str, cells))} | {e.points:g} |\n"
        write(folder / "README.md", readme)
    print(f"{args.out}: {len(exercises)} exercises, {sum(e.points for e in exercises):g} points")


def do_grade(args):
    """Grade submissions, each in a process; print or write one format, or a report on all."""
    names = [Path(path).resolve().stem for path in args.submissions]
    for name, path in zip(names, args.submissions):
        require(Path(path).exists(), f"there is no {path}: name a folder or a zip file")
        require(names.count(name) == 1, f"two submissions are called {name}: rename one")
    require(args.jobs > 0, "--jobs must be a whole number from 1")
    require(len(names) == 1 or args.format != "gradescope", "Gradescope wants one submission")
    exercises = chosen(args.only)
    work = partial(graded_submission, args.only, private_seed(args.seed), args.user)
    if args.jobs == 1:
        found = list(map(work, args.submissions))
    else:
        with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
            found = list(pool.map(work, args.submissions))
    results = {name: list(map(Grade, exercises, *zip(*f))) for name, f in zip(names, found)}
    text = getattr(report, f"as_{args.format}")(results)
    if args.report:
        with new_folder(args.report) as folder:
            report.write_all(folder, results)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write(args.out, text)
    else:
        print(text, end="")


def private_seed(given):
    """Return the seed of the hidden checks: --seed, or the environment's, or a random one."""
    text = os.environ.get(SEED, "") if given is None else str(given)
    if not text:
        text = str(secrets.randbits(32))
        print(f"hidden checks drawn from seed {text} (for you alone)", file=sys.stderr)
    require(text.isdecimal(), f"{SEED} must be a whole number, got {text!r}")
    return int(text)


def graded_submission(only, seed, user, path):
    """Return the Grades of a folder or a zip file, without their exercises."""
    exercises = chosen(only)
    files = handed_in(Path(path), {e.file for e in exercises})
    return [graded(e, files.get(e.file), seed, user)[1:] for e in exercises]


def handed_in(path, wanted):
    """Return {name: bytes} of the wanted files in a folder or a zip file; {} if it is unreadable.

    A file may be in a folder within; of several, the least deep counts. Names in a zip are compared
    and never used as paths, a link that leads out of the folder is not followed, and a file larger
    than 1 MB does not count.
    """
    found: dict[str, tuple[int, bytes]] = {}
    try:
        for name, opened in entries(path):
            *folders, file = PurePosixPath(name).parts
            if file in wanted and "__MACOSX" not in folders:
                with opened() as stream:
                    data = stream.read(LARGEST + 1)
                if len(data) <= LARGEST and len(folders) < found.get(file, (99,))[0]:
                    found[file] = len(folders), data
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"{path.name} cannot be read: {error}", file=sys.stderr)
    return {name: data for name, (_, data) in found.items()}


def entries(path):
    """Yield (name, function that opens it) for each file of a folder or a zip file."""
    if path.is_dir():
        for file in sorted(path.rglob("*.py")):
            if file.is_file() and file.resolve().is_relative_to(path.resolve()):
                yield file.relative_to(path).as_posix(), partial(file.open, "rb")
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith("/"):
                yield name, partial(archive.open, name)


def graded(exercise, source, seed, user=None):
    """Return the Grade of one file's bytes, which cost only the file's own points if they fail."""
    began, seen = time.perf_counter(), None
    try:
        if source is None:
            raise Stopped(f"{exercise.file} was not handed in")
        with running(exercise, source, user=user) as subject:
            seen = hidden = judge.check(exercise, subject).with_output(subject)
            if seen.status != "todo":
                hidden = judge.check(exercise, subject, seed, hidden=True)
    except Stopped as stop:
        hidden = judge.Verdict("failed", 0.0, str(stop))
    return Grade(exercise, seen or hidden, hidden, time.perf_counter() - began)


def do_autograder(args):
    """Write the zip file that Gradescope wants for these exercises."""
    only = [e.id for e in chosen(args.only)] if args.only else None
    gradescope.write_zip(args.out, private_seed(args.seed), only)
    print(f"{args.out}: upload it as the autograder of a programming assignment")


def do_check(args):
    proofs = [(e, *prove(e)) for e in chosen(args.only)]
    print("| exercise | lesson | difficulty | minutes | points | mistakes caught | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for e, caught, seconds, _ in proofs:
        cells = [e.id, e.lesson, e.difficulty, e.minutes, f"{e.points:g}"]
        cells += [f"{caught} of {len(e.mistakes)}", f"{seconds:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    mistakes = sum(caught for _, caught, _, _ in proofs)
    print(f"\n{len(proofs)} exercises, {mistakes} planted mistakes caught and told apart")
    faults = [f"fault: {e.id}: {fault}" for e, _, _, found in proofs for fault in found]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def prove(exercise):
    """Return (mistakes caught, seconds of the reference's check, faults) of one exercise."""
    faults = []
    if len(exercise.mistakes) < 3:
        faults.append(f"{len(exercise.mistakes)} planted mistakes: at least three")
    if not exercise.task:
        faults.append("its Python file does not say in its docstring what is to be written")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / exercise.file
        path.write_text(exercise.student_file(), encoding="utf-8")
        status = judge.checked(exercise, path).status
        if status != "todo":
            faults.append(f"the stub is not refused as unwritten but {status}")
        path.write_text(exercise.student_file(solved=True), encoding="utf-8")
        began = time.perf_counter()
        grade = graded(exercise, path.read_bytes(), seed=1)
        seconds = time.perf_counter() - began
    for right in (grade.open, grade.hidden):
        if right.status != "passed":
            return 0, seconds, [*faults, f"the reference {right.status}: {right.text}"]
    found = [(mistake.name, faults_of(exercise, mistake)) for mistake in exercise.mistakes]
    faults += [f"{name}: {fault}" for name, some in found for fault in some]
    return sum(not some for _, some in found), seconds, faults


def faults_of(exercise, mistake):
    """Return the fault of a mistake that cannot be planted, passes, or is taken for another."""
    times = exercise.reference.count(mistake.find) if mistake.find else 1
    if times != 1:
        return [f"its `find` is {times} times in the source of the reference, not once"]
    if not mistake.find and (exercise.kind == "test" or not exercise.mistaken(mistake)):
        return ["it has neither `find` nor a function mistake_… in the exercise's file"]
    if exercise.kind == "test":  # the solution passed, so it catches them all
        return []
    subject = Local(exercise.mistaken(mistake))
    found = (judge.wrong_calls(exercise, subject, rule) for rule in judge.rules(exercise))
    wrong = next(chain.from_iterable(found), None)
    if wrong is None:
        return ["it passes every property"]
    group = judge.diagnose(exercise, subject, wrong.case)
    if [m.name for m in group] != [mistake.name]:
        return [f"it is diagnosed as {' and '.join(m.name for m in group) or 'nothing known'}"]
    return []

"""`minilora teach`: hand out exercises, grade what comes back, prove the set of exercises."""

import os
import secrets
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

from ..config import require
from ..formats.files import new_folder
from . import gradescope, judge, report
from .exercises import TEMPLATES, load
from .learn import fill, write
from .student import SEED, Local

LARGEST = 2**20  # bytes of a file that is handed in


def chosen(only):
    """Return the exercises with these ids, in their order; all of them if there are none."""
    known = load()
    for name in only or ():
        require(name in known, f"there is no exercise {name!r}: choose from {', '.join(known)}")
    return [e for e in known.values() if not only or e.id in only]


def do_build(args):
    """Make the folder that students get: a workspace of these exercises, and a README."""
    exercises = chosen(args.only)
    readme = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    with new_folder(args.out) as folder:
        fill(folder, exercises)
        for e in exercises:
            cells = e.id, f"[{e.file}]({e.file})", e.lesson, e.difficulty, e.minutes
            readme += f"| {' | '.join(map(str, cells))} | {e.points:g} |\n"
        write(folder / "README.md", readme)
    print(f"{args.out}: {len(exercises)} exercises, {sum(e.points for e in exercises):g} points")


def do_autograder(args):
    """Write the zip file that Gradescope wants for these exercises."""
    chosen(args.only)
    gradescope.write_zip(args.out, private_seed(args.seed), args.only)
    print(f"{args.out}: upload it as the autograder of a programming assignment")


def do_grade(args):
    """Grade submissions; print what came out, and write a folder of reports."""
    names = [Path(path).resolve().stem for path in args.submissions]
    for name, path in zip(names, args.submissions):
        require(Path(path).exists(), f"there is no {path}: name a folder or a zip file")
        require(names.count(name) == 1, f"two submissions are called {name}: rename one")
    require(args.jobs > 0, "--jobs must be a whole number from 1")
    chosen(args.only)
    work = partial(graded, args.only, private_seed(args.seed), args.user)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        mapped = (map if args.jobs == 1 else pool.map)(work, args.submissions)
        results = dict(zip(names, mapped))
    if args.out:
        with new_folder(args.out) as folder:
            report.write_all(folder, results)
    print(report.class_table(results) if len(names) > 1 else report.feedback(results[name]), end="")


def private_seed(given):
    """Return the seed of the hidden checks: --seed, or the environment's, or a random one."""
    text = os.environ.get(SEED, "") if given is None else str(given)
    if not text:
        text = str(secrets.randbits(32))
        print(f"hidden checks drawn from seed {text} (for you alone)", file=sys.stderr)
    require(text.isdecimal(), f"{SEED} must be a whole number, got {text!r}")
    return int(text)


def graded(only, seed, user, path):
    """Return the Grades of a folder or a zip file."""
    exercises, grades = chosen(only), []
    files = handed_in(Path(path), {e.file for e in exercises})
    for e in exercises:
        began = time.perf_counter()
        verdicts = judge.verdicts(e, files.get(e.file), seed, user)
        seconds = time.perf_counter() - began
        grades.append(report.Grade(e.id, e.lesson, e.points, *verdicts, seconds))
    return grades


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
            yield name, partial(archive.open, name)


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
    print("".join(f"{fault}\n" for fault in faults), end="", file=sys.stderr)
    return 1 if faults else 0


def prove(exercise):
    """Return (mistakes caught, seconds of grading the reference, faults) of one exercise."""
    faults = []
    if len(exercise.mistakes) < 3:
        faults.append(f"{len(exercise.mistakes)} planted mistakes: at least three")
    if not exercise.task:
        faults.append("its Python file does not say in its docstring what is to be written")
    status = judge.verdicts(exercise, exercise.student_file().encode())[0].status
    if status != "todo":
        faults.append(f"the stub is not refused as unwritten but {status}")
    began = time.perf_counter()
    solution = exercise.student_file(solved=True).encode()
    for right in judge.verdicts(exercise, solution, seed=1):
        if right.status != "passed":
            faults.append(f"the reference {right.status}: {right.text}")
    seconds = time.perf_counter() - began
    found = {mistake.name: fault_of(exercise, mistake) for mistake in exercise.mistakes}
    faults += [f"{name}: {fault}" for name, fault in found.items() if fault]
    return list(found.values()).count(""), seconds, faults


def fault_of(exercise, mistake):
    """Return the fault of a mistake that cannot be planted, passes, or is taken for another."""
    if mistake.find and (times := exercise.reference.count(mistake.find)) != 1:
        return f"its `find` is {times} times in the source of the reference, not once"
    if exercise.is_test:  # the solution passed, so it catches them all
        return ""
    if not (function := exercise.mistaken(mistake)):
        return "it has neither `find` nor a function mistake_… in the exercise's file"
    rules = judge.rules(exercise)
    found = (judge.wrong_calls(exercise, Local(function), rule) for rule in rules)
    wrong = next(chain.from_iterable(found), None)
    if wrong is None:
        return "it passes every property"
    names = [m.name for m in judge.diagnose(exercise, Local(function), wrong.case)]
    said = " and ".join(names) or "nothing known"
    return "" if names == [mistake.name] else f"it is diagnosed as {said}"

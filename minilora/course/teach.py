"""`minilora teach`: a tree for students, the grading of what comes back, the proof of the set."""

import ast
import csv
import io
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

from ..config import InputError, require
from ..formats.files import new_folder
from . import source
from .exercises import Exercise, load
from .judge import Verdict
from .judge import check as verdict_of
from .learn import CHECKS, PROGRESS, write
from .outcome import Stopped
from .proof import prove
from .student import SEED, running

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


def chosen(only):
    """Return the exercises with these ids, in their order; all of them if there are none."""
    known = load()
    for name in only or ():
        require(name in known, f"there is no exercise {name!r}: choose from {', '.join(known)}")
    return [e for e in known.values() if not only or e.id in only]


# --- build ---


def do_build(args):
    """Make the tree that students get: stubs, hints and open checks; no solution, no mistake."""
    exercises = chosen(args.only)
    readme, entries = README, []
    with new_folder(args.out) as folder:
        checks = folder / CHECKS / "exercises"
        checks.mkdir(parents=True)
        for e in exercises:
            stub = source.file_text(e)
            write(folder / f"{e.stem}.py", stub)
            # the file of a test holds its solution
            rules = stub if e.kind == "test" else without_mistakes(e.folder / f"{e.stem}.py")
            write(checks / f"{e.stem}.py", rules)
            entries.append(entry(e, [other.id for other in exercises]))
            cells = e.id, f"[{e.stem}.py]({e.stem}.py)", e.lesson, e.difficulty, e.minutes
            readme += f"| {' | '.join(map(str, cells))} | {e.points:g} |\n"
        write(folder / CHECKS / "exercises.toml", "\n".join(entries))
        write(folder / "README.md", readme)
        write(folder / PROGRESS, "{}\n")
    print(f"{args.out}: {len(exercises)} exercises, {sum(e.points for e in exercises):g} points")


def entry(exercise, ids):
    """Return the exercise's entry in TOML, without its mistakes and its needs beyond `ids`."""
    values = {field.name: getattr(exercise, field.name) for field in fields(Exercise)}
    values["needs"] = [need for need in exercise.needs if need in ids]
    del values["folder"], values["mistakes"]
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["[[exercise]]", *lines]) + "\n"


def without_mistakes(path):
    """Return the text of an exercise's Python file without its functions `mistake_…`."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("mistake_"):
            del lines[source.start(node) - 1 : node.end_lineno]
    return "\n".join(lines).rstrip() + "\n"


# --- grade ---


@dataclass(frozen=True)
class Grade:
    """One exercise of a submission: half of its points for the open checks, half for the hidden."""

    exercise: Exercise
    open: Verdict
    hidden: Verdict
    seconds: float

    @property
    def points(self):
        half = self.exercise.points / 2
        return half * self.open.share + half * self.hidden.share


def do_grade(args):
    """Grade a folder, and write the result to standard output or a file."""
    submission = Path(args.submission)
    require(submission.is_dir(), f"{submission} is no folder: name the one that was handed in")
    exercises, seed = chosen(args.only), private_seed(args.seed)
    began = time.perf_counter()
    grades = [graded(e, submission / f"{e.stem}.py", seed) for e in exercises]
    text = globals()[f"as_{args.format}"](grades, time.perf_counter() - began)
    if not args.out:
        print(text, end="")
        return
    try:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out} cannot be written: {error.strerror}") from error
    write(args.out, text)


def private_seed(given):
    """Return the seed of the hidden checks: --seed, or the environment's, or a random one."""
    text = os.environ.get(SEED, "") if given is None else str(given)
    if not text:
        text = str(secrets.randbits(32))
        print(f"hidden checks drawn from seed {text} (for you alone)", file=sys.stderr)
    require(text.isdecimal(), f"{SEED} must be a whole number, got {text!r}")
    return int(text)


def graded(exercise, path, seed):
    """Return the Grade of one file, whose process costs only the file's own points if it dies."""
    began = time.perf_counter()
    if not path.is_file():
        nothing = Verdict("failed", 0.0, f"{path.name} was not handed in")
        return Grade(exercise, nothing, nothing, 0.0)
    try:
        with running(exercise, path, 2 * exercise.seconds) as subject:
            seen = hidden = verdict_of(exercise, subject)
            if seen.status != "todo":
                hidden = verdict_of(exercise, subject, seed, hidden=True)
    except Stopped as stop:
        seen = hidden = Verdict("failed", 0.0, str(stop))
    return Grade(exercise, seen, hidden, time.perf_counter() - began)


def totals(grades):
    return sum(g.points for g in grades), sum(g.exercise.points for g in grades)


def as_text(grades, seconds):
    lines = []
    for g in grades:
        lines.append(f"{g.exercise.id}: {g.points:g} of {g.exercise.points:g}")
        texts = dict.fromkeys([g.open.text, g.hidden.text])  # one line where they are the same
        lines += [f"  {text}" for text in texts if text != "passed"]
    score, most = totals(grades)
    return "\n".join([*lines, f"together {score:g} of {most:g} points in {seconds:.0f} s"]) + "\n"


def as_json(grades, seconds):
    score, most = totals(grades)
    exercises = [
        {
            "id": g.exercise.id,
            "lesson": g.exercise.lesson,
            "points": g.points,
            "max_points": g.exercise.points,
            "status": g.open.status,
            "hidden_status": g.hidden.status,
            "mistake": g.open.mistake or g.hidden.mistake,
            "output": g.open.text,
            "hidden_output": g.hidden.text,
            "seconds": round(g.seconds, 2),
        }
        for g in grades
    ]
    whole = {"points": score, "max_points": most, "seconds": round(seconds, 2)}
    return json.dumps({**whole, "exercises": exercises}, indent=2, ensure_ascii=False) + "\n"


def as_csv(grades, seconds):
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["exercise", "lesson", "points", "max_points", "status", "hidden", "mistake"])
    for g in grades:
        row = [g.exercise.id, g.exercise.lesson, f"{g.points:g}", f"{g.exercise.points:g}"]
        mistake = g.open.mistake or g.hidden.mistake
        writer.writerow([*row, g.open.status, g.hidden.status, mistake])
    return file.getvalue()


def as_gradescope(grades, seconds):
    """Return the fields that Gradescope documents; one test per kind of check, open and hidden."""
    tests = []
    for n, g in enumerate(grades, 1):
        for part, kind, verdict in ((1, "open", g.open), (2, "hidden", g.hidden)):
            half = g.exercise.points / 2
            tests.append({
                "name": g.exercise.id + ", hidden" * (part - 1),
                "number": f"{n}.{part}",
                "score": half * verdict.share,
                "max_score": half,
                "status": "passed" if verdict.status == "passed" else "failed",
                "output": verdict.text,
                "visibility": "visible",
                "tags": [f"lesson {g.exercise.lesson}", kind],
            })  # fmt: skip
    result = {
        "score": totals(grades)[0],
        "execution_time": round(seconds),
        "output": "Each exercise has open checks and hidden ones: the same rules, on other calls.",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


# --- check ---


def do_check(args):
    """Prove the set; return the exit status."""
    proofs = [(e, prove(e)) for e in chosen(args.only)]
    print("| exercise | lesson | difficulty | minutes | points | mistakes caught | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for e, proof in proofs:
        cells = [e.id, e.lesson, e.difficulty, e.minutes, f"{e.points:g}"]
        cells += [f"{proof.caught} of {len(e.mistakes)}", f"{proof.seconds:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    caught = sum(proof.caught for _, proof in proofs)
    print(f"\n{len(proofs)} exercises, {caught} planted mistakes caught and told apart")
    faults = [f"{e.id}: {fault}" for e, proof in proofs for fault in proof.faults]
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if faults else 0

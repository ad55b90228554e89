"""`minilora teach`: a tree for students, the grading of what comes back, the proof of the set."""

import ast
import csv
import io
import json
import os
import secrets
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import require
from ..formats.files import new_folder, replace_text, writing
from . import judge
from .exercises import Exercise, load, start
from .learn import CHECKS, PROGRESS
from .outcome import Stopped
from .student import SEED, Local, running

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


def do_build(args):
    """Make the tree that students get: stubs, hints and open checks; no solution, no mistake."""
    exercises = chosen(args.only)
    ids, readme, entries = [e.id for e in exercises], README, []
    with new_folder(args.out) as folder:
        checks = folder / CHECKS / "exercises"
        checks.mkdir(parents=True)
        for e in exercises:
            stub = e.student_file()
            replace_text(folder / e.file, stub)
            # the file of a test holds its solution
            rules = stub if e.kind == "test" else without_mistakes(e.folder / e.file)
            replace_text(checks / e.file, rules)
            values = {**asdict(e), "needs": [need for need in e.needs if need in ids]}
            del values["folder"], values["mistakes"]
            entry = [f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in values.items()]
            entries.append("[[exercise]]\n" + "".join(entry))
            cells = e.id, f"[{e.file}]({e.file})", e.lesson, e.difficulty, e.minutes
            readme += f"| {' | '.join(map(str, cells))} | {e.points:g} |\n"
        replace_text(folder / CHECKS / "exercises.toml", "\n".join(entries))
        replace_text(folder / "README.md", readme)
        replace_text(folder / PROGRESS, "{}\n")
    print(f"{args.out}: {len(exercises)} exercises, {sum(e.points for e in exercises):g} points")


def without_mistakes(path):
    """Return the text of an exercise's Python file without its functions `mistake_…`."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("mistake_"):
            del lines[start(node) - 1 : node.end_lineno]
    return "\n".join(lines).rstrip() + "\n"


@dataclass(frozen=True)
class Grade:
    """One exercise of a submission: half of its points for the open checks, half for the hidden."""

    exercise: Exercise
    open: judge.Verdict
    hidden: judge.Verdict
    seconds: float

    @property
    def points(self):
        half = self.exercise.points / 2
        return half * self.open.share + half * self.hidden.share


def do_grade(args):
    submission = Path(args.submission)
    require(submission.is_dir(), f"{submission} is no folder: name the one that was handed in")
    exercises, seed = chosen(args.only), private_seed(args.seed)
    began = time.perf_counter()
    grades = [graded(e, submission / e.file, seed) for e in exercises]
    formats = {"text": as_text, "json": as_json, "csv": as_csv, "gradescope": as_gradescope}
    text = formats[args.format](grades, time.perf_counter() - began)
    if not args.out:
        print(text, end="")
        return
    with writing(args.out):
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    replace_text(args.out, text)


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
    began, seen = time.perf_counter(), None
    try:
        if not path.is_file():
            raise Stopped(f"{path.name} was not handed in")
        with running(exercise, path, 2 * exercise.seconds) as subject:
            seen = hidden = judge.check(exercise, subject)
            if seen.status != "todo":
                hidden = judge.check(exercise, subject, seed, hidden=True)
    except Stopped as stop:
        hidden = judge.Verdict("failed", 0.0, str(stop))
    return Grade(exercise, seen or hidden, hidden, time.perf_counter() - began)


def as_text(grades, seconds):
    lines = []
    for g in grades:
        lines.append(f"{g.exercise.id}: {g.points:g} of {g.exercise.points:g}")
        texts = dict.fromkeys([g.open.text, g.hidden.text])  # one line where they are the same
        lines += [f"  {text}" for text in texts if text != "passed"]
    score, most = sum(g.points for g in grades), sum(g.exercise.points for g in grades)
    return "\n".join([*lines, f"together {score:g} of {most:g} points in {seconds:.0f} s"]) + "\n"


def as_json(grades, seconds):
    result = {
        "points": sum(g.points for g in grades),
        "max_points": sum(g.exercise.points for g in grades),
        "seconds": round(seconds, 2),
        "exercises": [
            {
                "id": g.exercise.id, "lesson": g.exercise.lesson, "points": g.points,
                "max_points": g.exercise.points, "status": g.open.status,
                "hidden_status": g.hidden.status, "mistake": g.open.mistake or g.hidden.mistake,
                "output": g.open.text, "hidden_output": g.hidden.text,
                "seconds": round(g.seconds, 2),
            }
            for g in grades
        ],
    }  # fmt: skip
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


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
        "score": sum(g.points for g in grades), "execution_time": round(seconds),
        "output": "Each exercise has open checks and hidden ones: the same rules, on other calls.",
        "visibility": "visible", "stdout_visibility": "hidden", "tests": tests,
    }  # fmt: skip
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / exercise.file
        path.write_text(exercise.student_file(), encoding="utf-8")
        status = judge.checked(exercise, path).status
        if status != "todo":
            faults.append(f"the stub is not refused as unwritten but {status}")
        path.write_text(exercise.student_file(solved=True), encoding="utf-8")
        began = sum(os.times()[:4])  # CPU time, with that of child processes
        right = judge.checked(exercise, path)
        seconds = sum(os.times()[:4]) - began
    if right.status != "passed":
        return 0, seconds, [*faults, f"the reference {right.status}: {right.text}"]
    if seconds > exercise.seconds / 4:
        faults.append(f"the reference takes {seconds:.1f} s of {exercise.seconds:g}")
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
    wrong = judge.search(exercise, subject, shrink=False)
    if wrong is None:
        return ["it passes every property"]
    group = judge.diagnose(exercise, subject, wrong.case)
    if [m.name for m in group] != [mistake.name]:
        return [f"it is diagnosed as {' and '.join(m.name for m in group) or 'nothing known'}"]
    return []

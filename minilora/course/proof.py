"""`minilora teach check`: the set of exercises proves itself.

Of each exercise: the stub has the reference's signature and docstring and fails, the reference's
own text as a student's file passes, every planted mistake fails and is told from the others, and
all of it in less time than a student is given.
"""

import ast
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import diagnosis, judge, source
from .subject import Local
from .workspace import checked


@dataclass
class Proof:
    """What was found out about an exercise."""

    exercise: object
    caught: int = 0
    seconds: float = 0.0  # of the check of the reference
    faults: list[str] = field(default_factory=list)


def prove(exercise):
    """The Proof of one exercise."""
    proof = Proof(exercise)
    if len(exercise.mistakes) < 3:
        proof.faults.append(f"{len(exercise.mistakes)} planted mistakes: at least three")
    with tempfile.TemporaryDirectory() as folder:
        stub, solution = (_file(exercise, Path(folder), solved) for solved in (False, True))
        status = checked(exercise, stub).status
        if status != "todo":
            proof.faults.append(f"the stub is not refused as unwritten but {status}")
        proof.faults += _differing(exercise)
        began = cpu_seconds()
        right = checked(exercise, solution)
        proof.seconds = cpu_seconds() - began
        if right.status != "passed":
            proof.faults.append(f"the reference {right.status}: {right.text}")
            return proof
        if proof.seconds > exercise.seconds / 4:
            proof.faults.append(
                f"the reference takes {proof.seconds:.1f} s of {exercise.seconds:g}"
            )
        if exercise.kind == "test":
            proof.caught = len(exercise.mistakes)  # else the solution's text would say which not
            proof.faults += [
                f"{m.name}: {e}" for m in exercise.mistakes for e in _unedited(exercise, m)
            ]
        else:
            for mistake in exercise.mistakes:
                faults = faults_of(exercise, mistake)
                proof.caught += not faults
                proof.faults += [f"{mistake.name}: {fault}" for fault in faults]
    return proof


def cpu_seconds():
    """CPU time of this process and of those that it has waited for: a busy machine adds none."""
    return sum(os.times()[:4])


def _file(exercise, folder, solved):
    """The stub or the solution, as a student's file would be."""
    path = folder / f"{exercise.stem}_{'solved' if solved else 'stub'}.py"
    path.write_text(source.file_text(exercise, solved), encoding="utf-8")
    return path


def _differing(exercise):
    """Faults of the stub: a signature or a docstring that is not the reference's."""
    text, names = exercise.sought
    stub = source.Text(None, source.file_text(exercise))
    for name in names:
        ours, theirs = text.definition(name), stub.definition(name)
        if ast.dump(ours.args) != ast.dump(theirs.args):
            yield f"the stub's signature of {name} is not the reference's"
        if ast.get_docstring(ours) != ast.get_docstring(theirs):
            yield f"the stub's docstring of {name} is not the reference's"


def faults_of(exercise, mistake):
    """What is wrong with a planted mistake of a function."""
    return _unedited(exercise, mistake) or _undiagnosed(exercise, mistake)


def _unedited(exercise, mistake):
    """Faults of a mistake that cannot be planted."""
    times = exercise.reference.count(mistake.find) if mistake.find else 1
    if times != 1:
        return [f"its `find` is {times} times in the source of the reference, not once"]
    if not mistake.find and (exercise.kind == "test" or not exercise.mistaken(mistake)):
        return ["it has neither `find` nor a function mistake_… in the exercise's file"]
    return []


def _undiagnosed(exercise, mistake):
    """Faults of a planted mistake that passes, or is taken for another."""
    subject = Local(exercise.mistaken(mistake))
    wrong = judge.search(exercise, subject, shrink=False)
    if wrong is None:
        return ["it passes every property"]
    group = diagnosis.diagnose(exercise, subject, wrong.case)
    if [m.name for m in group] != [mistake.name]:
        return [f"it is diagnosed as {' and '.join(m.name for m in group) or 'nothing known'}"]
    return []


def table(proofs):
    """The exercises as a table in Markdown."""
    rows = [
        "| exercise | lesson | difficulty | minutes | points | mistakes caught | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for proof in proofs:
        e = proof.exercise
        cells = [e.id, e.lesson, e.difficulty, e.minutes, f"{e.points:g}"]
        cells += [f"{proof.caught} of {len(e.mistakes)}", f"{proof.seconds:.2f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)

"""Prove an exercise, for `minilora teach check`.

The stub fails, the reference's own text as a student's file passes, every planted mistake fails
and is told from the others, and the reference takes far less time than a student is given.
"""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from . import judge, source
from .outcome import Local


class Proof(NamedTuple):
    caught: int  # of the planted mistakes
    seconds: float  # of the check of the reference
    faults: list[str]


def prove(exercise):
    """Return the Proof of one exercise."""
    faults = []
    if len(exercise.mistakes) < 3:
        faults.append(f"{len(exercise.mistakes)} planted mistakes: at least three")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{exercise.stem}.py"
        path.write_text(source.file_text(exercise), encoding="utf-8")
        status = judge.checked(exercise, path).status
        if status != "todo":
            faults.append(f"the stub is not refused as unwritten but {status}")
        path.write_text(source.file_text(exercise, solved=True), encoding="utf-8")
        began = cpu_seconds()
        right = judge.checked(exercise, path)
        seconds = cpu_seconds() - began
    if right.status != "passed":
        return Proof(0, seconds, [*faults, f"the reference {right.status}: {right.text}"])
    if seconds > exercise.seconds / 4:
        faults.append(f"the reference takes {seconds:.1f} s of {exercise.seconds:g}")
    caught = 0
    for mistake in exercise.mistakes:
        found = faults_of(exercise, mistake)
        caught += not found
        faults += [f"{mistake.name}: {fault}" for fault in found]
    return Proof(caught, seconds, faults)


def cpu_seconds():
    """Return the CPU time of this process and of its children: a busy machine adds none."""
    return sum(os.times()[:4])


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

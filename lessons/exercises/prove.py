"""Prove the exercises, for `minilora teach check`.

The stub must count as not written, the reference must pass, and every planted mistake must be
caught and diagnosed as itself.
"""

import sys
import time
from itertools import chain

from minilora.course.students import judge
from minilora.course.students.isolation import Local


def main(exercises):
    """Print a table, and the faults on standard error; return 1 if there are faults, else 0."""
    print("| exercise | lesson | difficulty | minutes | points | mistakes caught | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    faults, total = [], 0
    for e in exercises:
        began = time.perf_counter()
        wrong = {}
        try:
            found = faults_of(e)
            wrong = {m.name: fault for m in e.mistakes if (fault := fault_of(e, m))}
        except Exception as error:  # in the entry or in the Python file
            found = [f"{type(error).__name__}: {error}"]
        seconds = time.perf_counter() - began
        found += [f"{name}: {fault}" for name, fault in wrong.items()]
        faults += [f"fault: {e.id}: {fault}" for fault in found]
        caught = len(e.mistakes) - len(wrong)
        total += caught
        cells = e.id, e.lesson, e.difficulty, e.minutes, f"{e.points:g}"
        print(f"| {' | '.join(map(str, cells))} | {caught} of {len(e.mistakes)} | {seconds:.2f} |")
    print(f"\n{len(exercises)} exercises, {total} planted mistakes caught and told apart")
    print("".join(f"{fault}\n" for fault in faults), end="", file=sys.stderr)
    return 1 if faults else 0


def faults_of(exercise):
    """Return the faults of the texts, the stub and the solution of an exercise."""
    stub, solution = (
        {exercise.file: exercise.student_file(solved).encode()} for solved in (False, True)
    )
    is_short = exercise.kind in ("predict", "measure", "design")
    faults = []
    if len(exercise.mistakes) < 3 and not is_short:
        faults.append("fewer than three planted mistakes")
    if len(exercise.hints) != 3:
        faults.append("not three hints, from gentle to plain")
    if not exercise.lesson_file:
        faults.append(f"there is no lesson {exercise.lesson}")
    if exercise.written_points and not exercise.path.with_name(exercise.rubric).exists():
        faults.append(f"there is no {exercise.rubric}")
    if exercise.kind == "debug" and not exercise.mistakes[0].find:
        faults.append("the first mistake is not an edit")
    if exercise.kind in ("write", "debug") and not exercise.rules:
        return [*faults, "no property"]
    if not exercise.task:
        faults.append("the docstring of the Python file has no task")
    if judge.verdict(exercise, stub) != judge.TODO:
        faults.append("the stub does not count as not written")
    verdicts = [judge.verdict(exercise, solution, seed) for seed in (None, 1)]
    return faults + [f"the reference: {v.text}" for v in verdicts if v != judge.PASSED]


def fault_of(exercise, mistake):
    """Return the fault of a mistake that cannot be planted, passes, or is misdiagnosed; else ""."""
    if mistake.find and (times := exercise.reference.count(mistake.find)) != 1:
        return f"its `find` occurs {times} times in the source of the reference, not once"
    if exercise.is_test:  # the solution passed, so it catches them all
        return ""
    subject, rules = Local(exercise.copy(mistake)), [*exercise.rules, judge.REFERENCE]
    found = chain.from_iterable(judge.wrong_calls(exercise, subject, rule) for rule in rules)
    if (wrong := next((one for one in found if not one.mine.crash), None)) is None:
        return "it passes every property, or it only raises"
    said = judge.diagnose(exercise, subject, wrong.case).partition(":")[0] or "nothing known"
    return "" if said == mistake.name else f"it is diagnosed as {said}"

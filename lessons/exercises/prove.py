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
    mistakes, rubric = exercise.mistakes, exercise.path.with_name(exercise.rubric)
    has_arguments = exercise.kind not in ("predict", "measure", "design")
    checks = [
        (len(mistakes) >= 3 or not has_arguments, "fewer than three planted mistakes"),
        (len(exercise.hints) == 3, "not three hints, from gentle to plain"),
        (exercise.lesson_file, f"there is no lesson {exercise.lesson}"),
        (rubric.exists() or not exercise.written_points, f"there is no {exercise.rubric}"),
        (exercise.kind != "debug" or mistakes[0].find, "the first mistake is not an edit"),
        (exercise.rules or exercise.kind not in ("write", "debug"), "no property"),
        (exercise.task, "the docstring of the Python file has no task"),
        (judge.verdict(exercise, stub) == judge.NOT_WRITTEN, "the stub counts as written"),
    ]
    for seed in (None, 1):
        verdict = judge.verdict(exercise, solution, seed)
        checks.append((verdict == judge.PASSED, f"the reference: {verdict.text}"))
    return [fault for is_right, fault in checks if not is_right]


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

"""Find out if a function is right, and if not, on which smallest call and by which usual mistake.

The judge asks a subject for values: `student.Local` in this process, `student.Student` in another.
It never runs a student's code itself.
"""

import inspect
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import calls
from .exercises import Mistake
from .outcome import Crash, Outcome, Stopped, describe, difference, kinds, leaves, same
from .student import Local, running

CALLS = {True: 40, False: 16}  # that a check tries: for the reference's rule, and for a property
ENOUGH = 8  # wrong calls, of which the smallest is shown
SAMPLES = 24  # calls on which a subject and a mistake are compared
REFERENCE = "it gives what the reference gives"  # the rule of every exercise


class Problem(NamedTuple):
    """A call that a subject does not get right."""

    case: dict
    rule: str  # what is true of right answers, and not of this one
    mine: Outcome
    right: Outcome
    detail: str = ""  # what the property's own assertion says


@dataclass(frozen=True)
class Verdict:
    """How an exercise went."""

    status: str  # passed, failed, or todo: nothing written yet
    share: float  # of the points, 0 to 1
    text: str  # what to read, several lines
    mistake: str = ""  # "name: what it is", where one is recognised
    brief: str = ""  # the same in one line

    def with_output(self, subject):
        """Return this Verdict with the first line that the subject printed, where it failed."""
        line = self.status == "failed" and subject.output()
        return replace(self, text=f"{self.text}\n  it printed {line!r}") if line else self


def outcome(exercise, subject, case):
    """Call the subject as `case` says, and return what the exercise observes of it."""
    found = subject.ask("call", *exercise.arguments(case))
    observe = getattr(exercise.checks, "observe", None)
    if found.crash or not observe:
        return found
    try:
        return found._replace(value=observe(found.value, *exercise.arguments(case)))
    except Exception as error:  # `observe` met something that it does not know
        says = "it returned None: does every way through it end in `return`?"
        says = f"the result cannot be read: {error}" if found.value is not None else says
        return Outcome(crash=Crash("unreadable", says))


@lru_cache(2**14)
def _right(exercise, items):
    return outcome(exercise, Local(exercise.right), dict(items))


def right_outcome(exercise, case):
    """Return the reference's outcome, which is computed once per call."""
    return _right(exercise, tuple(case.items()))


def bound(exercise, case):
    """Return how far a float may be from the reference's, on this call."""
    tolerance = getattr(exercise.checks, "tolerance", lambda *_: 0.0)
    as_drawn = exercise.arguments({**case, "stored": "as drawn"})
    wider = case.get("stored") == "float32" and difference(as_drawn, exercise.arguments(case))
    return tolerance(*as_drawn) * (2**29 if wider else 1)  # 2⁻²⁴ in the place of 2⁻⁵³


def rules(exercise):
    """Return {name: property}; the last rule, the reference's answer, has no property."""
    named = vars(exercise.checks).items()
    return {**{n: f for n, f in named if n.startswith("property_")}, REFERENCE: None}


def cases(exercise, rule, seed, hidden):
    """Draw the calls on which a rule is checked."""
    choices = calls.choices(exercise, rules(exercise)[rule], hidden)
    return calls.draw(exercise, seed, rule, choices, CALLS[rule == REFERENCE])


def problem(exercise, subject, case, rule):
    """Return what is wrong with the subject's answer to `case`, a Problem, or None."""
    mine, right = outcome(exercise, subject, case), right_outcome(exercise, case)
    if mine.crash and not same(mine, right, 0):
        return Problem(case, "the call returns", mine, right)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine, right)
    holds = rules(exercise)[rule]
    if holds is None or right.crash:
        equal = same(mine, right, bound(exercise, case))
        return None if equal else Problem(case, REFERENCE, mine, right)

    def function(*arguments):
        answer = subject.ask("call", *arguments)
        if answer.crash:
            raise answer.crash
        return answer.value

    said = " ".join((holds.__doc__ or rule).split())
    try:
        holds(function, *exercise.arguments(case))
    except Crash as error:
        return Problem(case, said, Outcome(crash=error), right)
    except AssertionError as error:
        return Problem(case, said, mine, right, (str(error).splitlines() or [""])[0])
    except Exception as error:  # a result of a kind that the property does not know
        return Problem(case, said, mine, right, f"{type(error).__name__}: {error}")
    return None


def wrong_calls(exercise, subject, rule, seed=0, hidden=False):
    """Yield a Problem for each drawn call that breaks the rule."""
    found = (problem(exercise, subject, c, rule) for c in cases(exercise, rule, seed, hidden))
    return filter(None, found)


def simplest(exercise, subject, wrong, rule):
    """Return the one of these Problems whose call has the fewest numbers."""

    def numbers(one):
        return sum(np.size(leaf) for _, leaf in leaves(exercise.arguments(one.case)))

    least = min(wrong, key=numbers)
    if problem(exercise, subject, least.case, rule) is None:
        return least._replace(rule="the same call gives the same answer twice")
    return least


def diagnose(exercise, subject, case):
    """Return the one or two mistakes that answer `case` and other calls as the subject, or ()."""
    drawn = [case, *calls.draw(exercise, 0, "samples", exercise.checks.CASES, SAMPLES)]
    rows = [(c, outcome(exercise, subject, c), bound(exercise, c)) for c in drawn]
    if all(mine.crash or same(mine, right_outcome(exercise, c), b) for c, mine, b in rows):
        return ()  # the subject only fails to run, where it differs from the reference
    for group in [*permutations(exercise.mistakes, 1), *permutations(exercise.mistakes, 2)]:
        function = exercise.mistaken(*group)
        if function and all(
            same(outcome(exercise, Local(function), c), mine, b) for c, mine, b in rows
        ):
            return group
    return ()


def checked(exercise, path):
    """Return the Verdict on the file at `path`, which runs in a process of its own."""
    try:
        with running(exercise, Path(path).read_bytes()) as subject:
            verdict = check(exercise, subject)
            return verdict.with_output(subject)
    except Stopped as stop:
        return Verdict("failed", 0.0, str(stop))


def check(exercise, subject, seed=0, hidden=False):
    """Return the Verdict on a subject. What a hidden check says names no call and no value.

    Half of the share is for the reference's answers, half for the properties, part by part.
    """
    if exercise.kind == "test":
        return _of_test(exercise, subject, seed, hidden)
    found = {}
    for rule in rules(exercise):
        found[rule] = []
        for wrong in islice(wrong_calls(exercise, subject, rule, seed, hidden), ENOUGH):
            if _todo(exercise, wrong.mine.crash):
                return Verdict("todo", 0.0, "still to be written")
            found[rule].append(wrong)
    broken = {rule: wrongs for rule, wrongs in found.items() if wrongs}
    if not broken:
        return Verdict("passed", 1.0, "passed")
    held = len(found) - len(broken) - (REFERENCE not in broken)
    share = held / max(1, len(found) - 1) / 2 + (REFERENCE not in broken) / 2
    rule, wrongs = next(iter(broken.items()))
    try:
        wrong = simplest(exercise, subject, wrongs, rule)
        group = () if wrong.mine.crash else diagnose(exercise, subject, wrong.case)
    except Stopped:
        wrong, group = wrongs[0], ()
    mistake = "; and ".join(f"{m.name}: {m.says}" for m in group)
    text = "a hidden check fails" if hidden else explained(exercise, wrong)
    if mistake:
        text += f"\n  likely    {mistake}"
    return Verdict("failed", share, text, mistake, mistake or f"not true: {wrong.rule}")


def _todo(exercise, crash):
    return bool(crash and crash.kind == "NotImplementedError" and f"{exercise.id}:" in crash.text)


def _of_test(exercise, subject, seed, hidden):
    """Return the Verdict on a test: its share is that of the planted mistakes that it catches."""
    jobs = [job for job in exercise.jobs if not job or hidden or not job[0].hidden]
    random.Random(seed).shuffle(jobs)  # the reference is there twice: counting calls is no test
    missed: list[Mistake] = []
    for job in jobs:
        crash = subject.ask("check", exercise.module, exercise.edited(*job), exercise.name).crash
        if _todo(exercise, crash):
            return Verdict("todo", 0.0, "still to be written")
        if crash and (not job or crash.kind == "NotImplementedError"):
            text = "your test fails the reference itself, which is right"
            text += "" if hidden else f"\n  it raised {crash.text}"
            return Verdict("failed", 0.0, text)
        missed += () if crash else job
    total = len(jobs) - 2
    caught = total - len(missed)
    text = f"the reference passes your test, which catches {caught} of {total} planted mistakes"
    if not hidden:
        text += "".join(f"\n  not caught: {m.name}: {m.says}" for m in missed)
    return Verdict("failed" if missed else "passed", caught / total if total else 1.0, text)


def explained(exercise, wrong):
    """Explain a Problem in lines: the call, its arguments, what was expected, what came."""
    arguments, mine, right = exercise.arguments(wrong.case), wrong.mine, wrong.right
    names = list(inspect.signature(exercise.right).parameters)
    made = ", ".join(f"{key}={value!r}" for key, value in wrong.case.items())
    lines = [
        f"is true   {wrong.rule}",
        f"not for   {exercise.name}({', '.join(names[: len(arguments)])}), where",
        *(f"  {name:<10}{describe(value)}" for name, value in zip(names, arguments)),
        f"made by   arguments({made})",
    ]
    if mine.crash:
        return "\n  ".join([*lines, f"raised    {mine.crash.text}"])
    if right.crash:
        lines += [f"expected  {right.crash.text}", f"got       {describe(mine.value)}"]
        return "\n  ".join(lines)
    if mine.touched != right.touched:
        lines.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
    if says := kinds(right.value, mine.value):
        lines.append(f"because   {says}")
    elif found := difference(right.value, mine.value, bound(exercise, wrong.case)):
        expected, got, place = found
        lines += [f"expected  {expected}", f"got       {got}", f"first at  {place}"]
    elif wrong.detail:
        lines.append(f"there     {wrong.detail}")
    return "\n  ".join(lines)

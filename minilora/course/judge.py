"""Find out if a function is right, and if not, on which smallest call and by which usual mistake.

The judge asks a subject for values: `student.Local` in this process, `student.Student` in another.
It never runs a student's code itself.
"""

import hashlib
import inspect
import random
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np

from .exercises import Mistake
from .outcome import Crash, Outcome, Stopped, describe, difference, same
from .student import Local, running

CALLS = 40  # calls that a check tries for each rule
SAMPLES = 24  # calls on which a subject and a mistake are compared
SIMPLER = 300  # calls tried in order to find a simpler wrong one
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


def outcome(exercise, subject, case):
    """Call the subject as `case` says, and return what the exercise observes of it."""
    found = subject.ask("call", *exercise.arguments(case))
    observe = getattr(exercise.checks, "observe", None)
    if found.crash or not observe:
        return found
    try:
        return found._replace(value=observe(found.value, *exercise.arguments(case)))
    except Exception as error:  # `observe` met something that it does not know
        return Outcome(crash=Crash("unreadable", f"the result cannot be read: {error}"))


def bound(exercise, case):
    """Return how far a float may be from the reference's, on this call."""
    tolerance = getattr(exercise.checks, "tolerance", lambda *_: 0.0)
    return tolerance(*exercise.arguments(case))


def rules(exercise):
    """Return {name: property}; the last rule, the reference's answer, has no property."""
    named = vars(exercise.checks).items()
    return {**{n: f for n, f in named if n.startswith("property_")}, REFERENCE: None}


def problem(exercise, subject, case, rule):
    """Return what is wrong with the subject's answer to `case`, a Problem, or None."""
    mine, right = outcome(exercise, subject, case), outcome(exercise, Local(exercise.right), case)
    if mine.crash and not same(mine, right, 0):
        return Problem(case, "the call returns", mine, right)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine, right)
    holds = rules(exercise)[rule]
    if holds is None:
        equal = same(mine, right, bound(exercise, case))
        return None if equal else Problem(case, rule, mine, right)

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


def drawn(exercise, seed, name, count=CALLS):
    """Draw `count` cases; they depend on the seed, the exercise's id and `name` alone.

    A choice of CASES is a list, the simplest first, or (lowest, highest) of whole numbers or
    floats. The ends of a range are drawn more often than what lies between them.
    """
    text = f"{seed} {exercise.id} {name}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(text).digest()))
    cases = []
    for _ in range(count):
        case = {"seed": int(rng.integers(2**32))}
        for key, choice in exercise.checks.CASES.items():
            if isinstance(choice, list):
                case[key] = choice[rng.integers(len(choice))]
            elif rng.random() < 0.2:
                case[key] = choice[rng.integers(2)]
            elif all(isinstance(end, int) for end in choice):
                case[key] = int(rng.integers(choice[0], choice[1] + 1))
            else:
                case[key] = float(rng.uniform(*choice))
        cases.append(case)
    return cases


def simpler(exercise, case):
    """Yield cases that differ from `case` in one value, which is simpler."""
    for key, choice in exercise.checks.CASES.items():
        if isinstance(choice, list):
            values = choice[: choice.index(case[key])]
        elif case[key] > choice[0]:
            values = [choice[0]]
            if isinstance(case[key], int):
                values += [(choice[0] + case[key]) // 2, case[key] - 1]
        else:
            values = []
        yield from ({**case, key: value} for value in dict.fromkeys(values))


def search(exercise, subject, seed=0, shrink=True):
    """Return the simplest wrong call (the first, unless `shrink`) as a Problem, or None."""
    for rule in rules(exercise):
        for case in drawn(exercise, seed, rule):
            wrong = problem(exercise, subject, case, rule)
            if wrong and shrink:
                return simplest(exercise, subject, wrong, rule)
            if wrong:
                return wrong
    return None


def simplest(exercise, subject, wrong, rule):
    """Return a Problem as `wrong` whose call cannot be made simpler."""
    again = problem(exercise, subject, wrong.case, rule)
    if again is None:
        return wrong._replace(rule="the same call gives the same answer twice")
    left, cases = SIMPLER, simpler(exercise, again.case)
    while left and (case := next(cases, None)) is not None:
        left -= 1
        try:
            found = problem(exercise, subject, case, rule)
        except Stopped:
            break
        if found:
            again, cases = found, simpler(exercise, found.case)
    return again


def samples(exercise, seed):
    """Draw some calls, to tell mistakes apart by what they do."""
    return drawn(exercise, seed, "samples", SAMPLES)


def diagnose(exercise, subject, case):
    """Return the one or two mistakes that answer `case` and other calls as the subject, or ()."""
    cases = [case, *samples(exercise, seed=0)]
    try:
        rows = [(c, outcome(exercise, subject, c), bound(exercise, c)) for c in cases]
    except Stopped:
        return ()
    right = [outcome(exercise, Local(exercise.right), c) for c in cases]
    if all(mine.crash or same(mine, r, b) for (_, mine, b), r in zip(rows, right)):
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
        with running(exercise, path) as subject:
            return check(exercise, subject)
    except Stopped as stop:
        return Verdict("failed", 0.0, str(stop))


def check(exercise, subject, seed=0, hidden=False):
    """Return the Verdict on a subject. What a hidden check says names no call and no value."""
    if exercise.kind == "test":
        return _of_test(exercise, subject, seed, hidden)
    wrong = search(exercise, subject, seed)
    if wrong is None:
        return Verdict("passed", 1.0, "passed")
    if _todo(exercise, wrong.mine.crash):
        return Verdict("todo", 0.0, "still to be written")
    group = diagnose(exercise, subject, wrong.case)
    mistake = "; and ".join(f"{m.name}: {m.says}" for m in group)
    text = "a hidden check fails" if hidden else explained(exercise, wrong)
    if mistake:
        text += f"\n  likely    {mistake}"
    return Verdict("failed", 0.0, text, mistake, mistake or f"not true: {wrong.rule}")


def _todo(exercise, crash):
    return bool(crash and crash.kind == "NotImplementedError" and f"{exercise.id}:" in crash.text)


def _of_test(exercise, subject, seed, hidden):
    """Return the Verdict on a test: its share is that of the planted mistakes that it catches."""
    mistakes = [m for m in exercise.mistakes if m.hidden == hidden] or exercise.mistakes
    jobs = [(), (), *((m,) for m in mistakes)]  # the reference twice: counting calls is no test
    random.Random(seed).shuffle(jobs)
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
    caught, total = len(mistakes) - len(missed), len(mistakes)
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
        lines.append(f"raised    {mine.crash.text}")
    elif right.crash:
        lines += [f"expected  {right.crash.text}", f"got       {describe(mine.value)}"]
    else:
        if mine.touched != right.touched:
            lines.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
        found = difference(right.value, mine.value, bound(exercise, wrong.case))
        if found:
            expected, got, place = found
            lines += [f"expected  {expected}", f"got       {got}", f"first at  {place}"]
        elif wrong.detail:
            lines.append(f"there     {wrong.detail}")
    return "\n  ".join(lines)

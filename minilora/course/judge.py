"""Find out if a function is right, and if not, on which smallest call and by which usual mistake.

The judge asks a subject for values: `student.Local` in this process, `student.Student` in another.
It never runs a student's code itself.
"""

import inspect
import random
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

from ..config import InputError
from .exercises import Mistake
from .outcome import Crash, Outcome, Stopped, describe, difference, same
from .student import Local, running

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    way = "pip install -e '.[hf,course]' in the clone"
    raise InputError(f"the exercises need hypothesis: {way}") from error

EXAMPLES = 60  # calls that a check tries
SAMPLES = 24  # calls on which a subject and a mistake are compared
SEEDS = st.integers(0, 2**32 - 1)


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


def problem(exercise, subject, case):
    """Return what is wrong with the subject's answer to `case`, a Problem, or None."""
    mine, right = outcome(exercise, subject, case), outcome(exercise, Local(exercise.right), case)
    if mine.crash and not same(mine, right, 0):
        return Problem(case, "the call returns", mine, right)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine, right)

    def function(*arguments):
        answer = subject.ask("call", *arguments)
        if answer.crash:
            raise answer.crash
        return answer.value

    for rule in [f for name, f in vars(exercise.checks).items() if name.startswith("property_")]:
        said = " ".join((rule.__doc__ or rule.__name__).split())
        try:
            rule(function, *exercise.arguments(case))
        except Crash as error:
            return Problem(case, said, Outcome(crash=error), right)
        except AssertionError as error:
            return Problem(case, said, mine, right, (str(error).splitlines() or [""])[0])
        except Exception as error:  # a result of a kind that the property does not know
            return Problem(case, said, mine, right, f"{type(error).__name__}: {error}")
    if not same(mine, right, bound(exercise, case)):
        return Problem(case, "it gives what the reference gives", mine, right)
    return None


def given(exercise, seed, examples, visit, shrink=False):
    """Call `visit(case)` on cases drawn from `seed`; `shrink` one for which it raises."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * shrink,
    )  # fmt: skip
    @hypothesis.given(st.fixed_dictionaries({"seed": SEEDS, **exercise.checks.CASES}))
    def every(case):
        visit(case)

    every()


def search(exercise, subject, seed=0, shrink=True):
    """Return the smallest wrong call (the first, unless `shrink`) as a Problem, or None."""
    found: list[Problem] = []

    def visit(case):
        wrong = problem(exercise, subject, case)
        if wrong:
            found.append(wrong)
            raise AssertionError(wrong.rule)

    try:
        given(exercise, seed, EXAMPLES, visit, shrink)
    except (AssertionError, Stopped):
        if not found:
            raise
    except hypothesis.errors.Flaky:
        return found[-1]._replace(rule="the same call gives the same answer twice")
    return found[-1] if found else None  # hypothesis ends with the smallest


def samples(exercise, seed):
    """Draw some calls, to tell mistakes apart by what they do."""
    cases: list[dict] = []
    given(exercise, seed, SAMPLES, cases.append)
    return cases


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

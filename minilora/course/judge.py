"""Is an answer right, and if not, on which smallest call, and which usual mistake is it?

The judge asks a *subject* for values: `subject.Local` in this process, `student.Student` in
another. It never runs a student's code itself.
"""

import random
from functools import cache
from itertools import permutations
from typing import NamedTuple

from ..config import InputError
from .exercises import Mistake
from .outcome import Crash, Outcome, Stopped, same
from .subject import Local

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    raise InputError("the exercises need hypothesis: pip install 'minilora[course]'") from error

EXAMPLES, SAMPLES = 60, 24  # calls that a check tries, and that a diagnosis compares


class Problem(NamedTuple):
    """A call that a subject does not get right."""

    case: dict
    rule: str  # what is true of right answers, and not of this one
    mine: Outcome
    right: Outcome
    detail: str = ""  # what the property's own assertion says


def outcome(exercise, subject, case):
    """What `subject` makes of the call of `case`, as the exercise observes it."""
    arguments = exercise.arguments(case)
    try:
        value, changed = subject.call(*arguments)
    except Crash as error:
        return Outcome(crash=error)
    try:
        observe = getattr(exercise.checks, "observe", None)
        if observe:
            value = observe(value, *exercise.arguments(case))
    except Exception as error:  # `observe` met something that it does not know
        return Outcome(crash=Crash("unreadable", f"the result cannot be read: {error}"))
    return Outcome(value, changed)


def bound(exercise, case):
    """How far a float may be from the reference's, on this call."""
    tolerance = getattr(exercise.checks, "tolerance", None)
    return tolerance(*exercise.arguments(case)) if tolerance else 0.0


@cache
def reference(exercise_id, module, text, name):
    from .source import compiled

    return Local(compiled(module, text, name))


def right_outcome(exercise, case):
    key = (exercise.id, exercise.module, exercise.reference, exercise.name)
    return outcome(exercise, reference(*key), case)


def problem(exercise, subject, case):
    """What is wrong with the subject's answer to `case`: a Problem, or None."""
    mine, right = outcome(exercise, subject, case), right_outcome(exercise, case)
    if mine.crash and not same(mine, right, 0):
        return Problem(case, "the call returns", mine, right)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine, right)
    for rule in exercise.properties():
        said = " ".join((rule.__doc__ or rule.__name__).split())
        try:
            rule(subject, *exercise.arguments(case))
        except Crash as error:
            return Problem(case, said, Outcome(crash=error), right)
        except AssertionError as error:
            return Problem(case, said, mine, right, (str(error).splitlines() or [""])[0])
        except Exception as error:  # a result of a kind that the property does not know
            return Problem(case, said, mine, right, f"{type(error).__name__}: {error}")
    if not same(mine, right, bound(exercise, case)):
        return Problem(case, "it gives what the reference gives", mine, right)
    return None


class _Found(Exception):
    pass


def _given(exercise, seed, examples, visit, shrink=False):
    """Call `visit(case)` on cases drawn from `seed`; `shrink` one for which it raises _Found."""
    phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=phases[: 1 + shrink],
    )  # fmt: skip
    @hypothesis.given(st.fixed_dictionaries({"seed": SEEDS, **exercise.checks.CASES}))
    def every(case):
        visit(case)

    every()


SEEDS = st.integers(0, 2**32 - 1)


def search(exercise, subject, seed=0, examples=EXAMPLES, shrink=True):
    """The smallest call that `subject` gets wrong (the first, unless `shrink`): Problem or None."""
    found: list[Problem] = []

    def visit(case):
        wrong = problem(exercise, subject, case)
        if wrong:
            found.append(wrong)
            raise _Found

    try:
        _given(exercise, seed, examples, visit, shrink)
    except _Found:
        return found[-1]  # hypothesis ends with the smallest
    except hypothesis.errors.Flaky:
        return found[-1]._replace(rule="the same call gives the same answer twice")
    except Stopped:
        if not found:
            raise
        return found[-1]
    return None


def samples(exercise, seed):
    """Some calls, to tell mistakes apart by what they do."""
    cases: list[dict] = []
    _given(exercise, seed, SAMPLES, cases.append)
    return cases


def diagnose(exercise, subject, case, seed=0):
    """The mistakes whose answers are the subject's, to `case` and to other calls: (), one or two.

    A mistake that only ever fails to run, where it differs from the reference, proves nothing.
    """
    cases = [case, *samples(exercise, seed)]
    try:
        mine = [outcome(exercise, subject, c) for c in cases]
    except Stopped:
        return ()
    bounds, right = [bound(exercise, c) for c in cases], [right_outcome(exercise, c) for c in cases]

    def explains(function):
        telling = False
        for c, m, r, b in zip(cases, mine, right, bounds):
            theirs = outcome(exercise, Local(function), c)
            if not same(theirs, m, b):
                return False
            telling = telling or not (theirs.crash or same(theirs, r, b))
        return telling

    suspects = exercise.mistakes
    for group in [*permutations(suspects, 1), *permutations(suspects, 2)]:
        function = exercise.mistaken(*group)
        if function and explains(function):
            return group
    return ()


def missed(exercise, subject, seed, hidden=False):
    """(Crash on the reference or None, mistakes that the test `subject` lets pass, how many).

    The reference comes twice, at places that the seed decides, so that counting calls is no test.
    """
    mistakes = [m for m in exercise.mistakes if m.hidden == hidden] or list(exercise.mistakes)
    jobs: list[Mistake | None] = [None, None, *mistakes]
    random.Random(seed).shuffle(jobs)
    passed = []
    for job in jobs:
        raised = subject.check(exercise, exercise.edited(job) if job else exercise.reference)
        if job is None and raised:
            return raised, mistakes, len(mistakes)
        if raised and raised.kind == "NotImplementedError":
            return raised, mistakes, len(mistakes)
        if job and not raised:
            passed.append(job)
    return None, passed, len(mistakes)

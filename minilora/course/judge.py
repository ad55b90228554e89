"""Is an answer right, and if not, on which smallest call, and which usual mistake is it?

The judge asks a *subject* for values: `subject.Local` in this process, `student.Student` in
another. It never runs a student's code itself.
"""

from functools import cache
from typing import NamedTuple

from ..config import InputError
from .outcome import Crash, Outcome, Stopped, same
from .subject import Local

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    way = "pip install -e '.[hf,course]' in the clone"
    raise InputError(f"the exercises need hypothesis: {way}") from error

EXAMPLES = 60  # calls that a check tries


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


def given(exercise, seed, examples, visit, shrink=False):
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
        given(exercise, seed, examples, visit, shrink)
    except _Found:
        return found[-1]  # hypothesis ends with the smallest
    except hypothesis.errors.Flaky:
        return found[-1]._replace(rule="the same call gives the same answer twice")
    except Stopped:
        if not found:
            raise
        return found[-1]
    return None

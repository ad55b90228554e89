"""Decide whether a function is right; if not, find a small wrong call and the usual mistake.

The judge asks a subject for values: `student.Local` in this process, `student.Student` in another.
A hidden check has a private seed; an open one has the seed None.
"""

import inspect
import random
from functools import lru_cache
from typing import NamedTuple

from .exercises import compiled
from .outcome import UNWRITTEN, Crash, Outcome, Stopped, describe, difference, leaves, same
from .student import Local, running

REFERENCE = "it gives what the reference gives"  # the last rule of every exercise
CALLS = 40  # calls to compare with the reference, and to tell mistakes apart
CALLS_OF_A_PROPERTY = 16


class Problem(NamedTuple):
    """A call on which a subject breaks a rule."""

    case: tuple
    rule: str  # a sentence that is true of right answers
    mine: Outcome
    detail: str = ""  # the message of the property's assertion


class Verdict(NamedTuple):
    """The result of a check."""

    share: float  # share of the points, 0 to 1
    text: str  # the explanation, several lines
    mistake: str = ""  # "name: diagnosis" of a recognized mistake


PASSED = Verdict(1.0, "passed")
TODO = Verdict(0.0, UNWRITTEN)
MISSING = Verdict(0.0, "the file was not handed in")


def outcomes(exercise, subject, cases):
    """Call the subject on each case; return the Outcomes, with what the exercise compares."""
    found = []
    for case, one in zip(cases, subject.ask(*map(exercise.arguments, cases))):
        try:
            if not one.crash:
                value = exercise.checks.observe(one.value, *exercise.arguments(case))
                one = one._replace(value=value)
        except Exception as error:  # `observe` cannot read this kind of result
            text = f"{describe(one.value)} is not the kind of result that is asked for: {error}"
            one = Outcome(crash=Crash(text))
        found.append(one)
    return found


@lru_cache(2**14)
def expected(exercise, case):
    """Return the reference's Outcome on a call, and the allowed distance."""
    (right,) = outcomes(exercise, Local(exercise.copy()), [case])
    return right, exercise.checks.tolerance(*exercise.arguments(case))


def problem(exercise, subject, case, mine, rule):
    """Return the Problem with the subject's outcome `mine` on `case`, or None."""
    right, bound = expected(exercise, case)
    if mine.crash:  # also if the reference raises: then the proof of the exercise fails
        return Problem(case, "the call returns", mine)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine)
    if rule == REFERENCE:
        return None if same(mine, right, bound) else Problem(case, REFERENCE, mine)

    holds = getattr(exercise.checks, rule)

    def function(*arguments):
        (answer,) = subject.ask(arguments)
        if answer.crash:
            raise answer.crash
        return answer.value

    try:
        holds(function, *exercise.arguments(case))
    except Exception as error:  # the property does not hold, or cannot read this kind of result
        mine = Outcome(crash=error) if isinstance(error, Crash) else mine
        said = " ".join(holds.__doc__.split())
        return Problem(case, said, mine, str(error).partition("\n")[0])
    return None


def wrong_calls(exercise, subject, rule, seed=None):
    """Return a Problem for each drawn call that breaks the rule."""
    drawn = exercise.draw(rule, CALLS if rule == REFERENCE else CALLS_OF_A_PROPERTY, seed)
    pairs = zip(drawn, outcomes(exercise, subject, drawn))
    return [p for case, mine in pairs if (p := problem(exercise, subject, case, mine, rule))]


def diagnose(exercise, subject, case):
    """Return "name: diagnosis" of the mistake that answers like the subject, or an empty string."""
    drawn = [case, *exercise.draw("samples", CALLS)]
    mine = outcomes(exercise, subject, drawn)
    right, bounds = zip(*(expected(exercise, case) for case in drawn))
    if all(map(same, mine, right, bounds)):
        return ""  # the subject differs from the reference on other calls alone
    for m in exercise.mistakes:
        answers = outcomes(exercise, Local(exercise.copy(m)), drawn)
        if all(map(same, answers, mine, bounds)):
            return f"{m.name}: {m.says}"
    return ""


def verdict(exercise, source, seed=None):
    """Return the Verdict on a file's bytes, which a process of its own runs."""
    if source is None:
        return MISSING
    if exercise.is_unchanged(source):
        return TODO
    try:
        with running(exercise, source) as subject:
            return check(exercise, subject, seed)
    except Stopped as stop:
        return Verdict(0.0, str(stop))


def check(exercise, subject, seed=None):
    """Return the Verdict: half of the share is for the properties, half for the right values."""
    if exercise.is_test:
        return check_test(exercise, subject, seed)
    rules = [*exercise.rules, REFERENCE]
    wrong = {rule: wrong_calls(exercise, subject, rule, seed) for rule in rules}
    if not any(wrong.values()):
        return PASSED
    held = [not wrong[rule] for rule in exercise.rules]
    share = (sum(held) / max(1, len(held)) + (not wrong[REFERENCE])) / 2

    def size(one):
        return sum(leaf.size for _, leaf in leaves(exercise.arguments(one.case)))

    least = min(next(filter(None, wrong.values())), key=size)  # of the first broken rule
    mistake = "" if least.mine.crash else diagnose(exercise, subject, least.case)
    if exercise.kind == "debug" and mistake.startswith(f"{exercise.mistakes[0].name}:"):
        mistake = "the planted fault: it is still there"  # its diagnosis is the answer
    # a hidden check says no call and no value
    text = explain(exercise, *least) if seed is None else "failed"
    return Verdict(share, text + f"\n  likely    {mistake}" * bool(mistake), mistake)


def check_test(exercise, subject, seed):
    """Return the Verdict on a test; its share is the share of planted mistakes that it catches."""
    is_open = seed is None
    mistakes = [m for m in exercise.mistakes if not (is_open and m.hidden)]
    tested = [None, *mistakes]  # None is the reference
    random.Random(seed or 0).shuffle(tested)  # counting the calls must not help
    missed = []
    for mistake in tested:
        ((_, _, crash),) = subject.ask((exercise.copy(mistake),))
        if crash and not mistake:
            text = "your test raises on the reference, which is right"
            return Verdict(0.0, text + f"\n  it raised {crash}" * is_open)
        if mistake and not crash:
            missed.append(mistake)
    if not missed:
        return PASSED
    caught = f"{len(mistakes) - len(missed)} of {len(mistakes)} planted mistakes"
    text = f"the reference passes your test, which catches {caught}"
    text += "".join(f"\n  not caught: {m.name}: {m.says}" for m in missed if is_open)
    return Verdict(1 - len(missed) / len(mistakes), text)


def explain(exercise, case, rule, mine, detail):
    """Explain a Problem: the rule, the call, its arguments, the expected and the actual result."""
    arguments = exercise.arguments(case)
    right, bound = expected(exercise, case)
    names = list(inspect.signature(compiled(*exercise.copy().args)).parameters)
    lines = [
        "failed",
        f"is true   {rule}",
        f"not for   {exercise.name}({', '.join(names)})" + ", where" * bool(names),
        *(f"  {name:<9} {describe(value)}" for name, value in zip(names, arguments)),
    ]
    if exercise.checks.CASES:
        case = ", ".join(f"{key}={value!r}" for key, value in case)
        lines.append(f"made by   arguments({case})")
    if mine.crash:
        lines.append(f"raised    {mine.crash}")
    elif mine.touched != right.touched:
        lines.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
    elif found := difference(right.value, mine.value, bound):
        lines += [
            f"expected  {describe(right.value)}",
            f"got       {describe(mine.value)}",
            f"first at  {found}",
        ]
        if mine.value is None:
            lines.append("hint      does every branch of the function end in `return`?")
    elif detail:
        lines.append(f"there     {detail}")
    return "\n  ".join(lines)

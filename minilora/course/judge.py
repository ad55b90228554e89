"""Decide whether a function is right; if not, find a small wrong call and the usual mistake.

The judge asks a subject for values: `student.Local` in this process, `student.Student` in another.
"""

import inspect
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from .outcome import NONE, Crash, Outcome, Stopped, describe, difference, leaves, other_kind, same
from .student import Local, running

REFERENCE = "it gives what the reference gives"  # the last rule of every exercise
CALLS, CALLS_OF_A_PROPERTY = 40, 16  # calls per rule
ENOUGH, SAMPLES = 8, 24  # wrong calls, of which the smallest is shown; calls to tell mistakes apart


class Problem(NamedTuple):
    """A call on which a subject breaks a rule."""

    case: dict
    rule: str  # a sentence that is true of right answers
    mine: Outcome
    detail: str = ""  # the message of the property's assertion


@dataclass(frozen=True)
class Verdict:
    """The result of a check."""

    status: str  # passed, failed, or todo (not written yet)
    share: float  # share of the points, 0 to 1
    text: str  # the explanation, several lines
    mistake: str = ""  # "name: diagnosis" of a recognized mistake


TODO = Verdict("todo", 0.0, "not written yet")


def outcomes(exercise, subject, cases):
    """Call the subject on each case; return the Outcomes, with what the exercise compares."""
    found = []
    observe = getattr(exercise.checks, "observe", lambda value, *_: value)
    for case, one in zip(cases, subject.ask("call", *map(exercise.arguments, cases))):
        try:
            value = None if one.crash else observe(one.value, *exercise.arguments(case))
            found.append(one._replace(value=value))
        except Exception as error:  # `observe` cannot read this kind of result
            says = NONE if one.value is None else f"the result cannot be read: {error}"
            found.append(Outcome(crash=Crash("unreadable", says)))
    return found


@lru_cache(2**14)
def expected(exercise, items):
    """Return the reference's Outcome on the call with these items, and the allowed distance."""
    case = dict(items)
    (right,) = outcomes(exercise, Local(exercise.mistaken()), [case])
    tolerance = getattr(exercise.checks, "tolerance", lambda *_: 0.0)
    as_drawn = exercise.arguments({**case, "stored": "as drawn"})
    wider = case.get("stored") == "float32" and difference(as_drawn, exercise.arguments(case))
    return right, tolerance(*as_drawn) * (2**29 if wider else 1)  # roundings of 2⁻²⁴, not 2⁻⁵³


def problem(exercise, subject, case, mine, rule):
    """Return the Problem with the subject's outcome `mine` on `case`, or None."""
    right, bound = expected(exercise, tuple(case.items()))
    if mine.crash:  # also if the reference raises: then the proof of the exercise fails
        return Problem(case, "the call returns", mine)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine)
    if rule == REFERENCE:
        return None if same(mine, right, bound) else Problem(case, REFERENCE, mine)

    def function(*arguments):
        (answer,) = subject.ask("call", arguments)
        if answer.crash:
            raise answer.crash
        return answer.value

    try:
        getattr(exercise.checks, rule)(function, *exercise.arguments(case))
    except Exception as error:  # the property does not hold, or cannot read this kind of result
        mine = Outcome(crash=error) if isinstance(error, Crash) else mine
        said = " ".join((getattr(exercise.checks, rule).__doc__ or rule).split())
        return Problem(case, said, mine, (str(error).splitlines() or [""])[0])
    return None


def wrong_calls(exercise, subject, rule, seed=0, hidden=False):
    """Yield a Problem for each drawn call that breaks the rule."""
    drawn = exercise.draw(rule, CALLS if rule == REFERENCE else CALLS_OF_A_PROPERTY, seed, hidden)
    pairs = zip(drawn, outcomes(exercise, subject, drawn))
    return filter(None, (problem(exercise, subject, case, mine, rule) for case, mine in pairs))


def diagnose(exercise, subject, case):
    """Return "name: diagnosis" of the mistake that answers like the subject, or an empty string."""
    drawn = [case, *exercise.draw("samples", SAMPLES)]
    mine = outcomes(exercise, subject, drawn)
    right, bounds = zip(*(expected(exercise, tuple(case.items())) for case in drawn))
    if all(m.crash or same(m, r, b) for m, r, b in zip(mine, right, bounds)):
        return ""  # where the subject differs from the reference, it raises
    for m in exercise.mistakes:
        answers = outcomes(exercise, Local(exercise.mistaken(m)), drawn)
        if all(map(same, answers, mine, bounds)):
            return f"{m.name}: {m.says}"
    return ""


def verdicts(exercise, source, seed=None, user=None):
    """Return the Verdicts on a file's bytes: open, and hidden, which without a seed is the same."""
    opened = None
    try:
        if source is None:
            raise Stopped(f"{exercise.file} was not handed in")
        with running(exercise, source, user) as subject:
            opened = hidden = check(exercise, subject)
            if opened.status == "failed" and (line := subject.output()):
                opened = replace(opened, text=f"{opened.text}\n  it printed {line!r}")
            if seed is not None and opened is not TODO:
                hidden = check(exercise, subject, seed, hidden=True)
    except Stopped as stop:
        hidden = Verdict("failed", 0.0, str(stop))
    return opened or hidden, hidden


def check(exercise, subject, seed=0, hidden=False):
    """Return the Verdict: half of the share is for the properties, half for the right values."""
    if exercise.is_test:
        return check_test(exercise, subject, seed, hidden)
    broken = {}
    for rule in [*exercise.rules, REFERENCE]:
        if wrong := list(islice(wrong_calls(exercise, subject, rule, seed, hidden), ENOUGH)):
            broken[rule] = wrong
            if any(is_unwritten(exercise, one.mine.crash) for one in wrong):
                return TODO
    if not broken:
        return Verdict("passed", 1.0, "passed")
    held = [rule for rule in exercise.rules if rule not in broken]
    share = (len(held) / max(1, len(exercise.rules)) + (REFERENCE not in broken)) / 2

    def size(wrong):
        return sum(np.size(leaf) for _, leaf in leaves(exercise.arguments(wrong.case)))

    least = min(next(iter(broken.values())), key=size)
    mistake = "" if least.mine.crash else diagnose(exercise, subject, least.case)
    text = "a hidden check fails" if hidden else explain(exercise, least)  # no call, no value
    return Verdict("failed", share, text + f"\n  likely    {mistake}" * bool(mistake), mistake)


def is_unwritten(exercise, crash):
    """Tell whether a Crash is the stub's NotImplementedError."""
    return crash and crash.kind == "NotImplementedError" and f"{exercise.id}:" in crash.text


def check_test(exercise, subject, seed, hidden):
    """Return the Verdict on a test; its share is the share of planted mistakes that it catches."""
    mistakes = [m for m in exercise.mistakes if hidden or not m.hidden]
    random.Random(seed).shuffle(mistakes)
    missed = []
    for m in [None, *mistakes, None]:  # twice the reference: counting the calls must not help
        source = exercise.module, exercise.edited(m), exercise.name
        ((_, _, crash),) = subject.ask("test", source)
        if is_unwritten(exercise, crash):
            return TODO
        if crash and not m:
            text = "your test raises on the reference, which is right"
            return Verdict("failed", 0.0, text + f"\n  it raised {crash.text}" * (not hidden))
        missed += [m] * bool(m and not crash)
    caught = f"{len(mistakes) - len(missed)} of {len(mistakes)} planted mistakes"
    text = f"the reference passes your test, which catches {caught}"
    text += "".join(f"\n  not caught: {m.name}: {m.says}" for m in missed if not hidden)
    return Verdict("failed" if missed else "passed", 1 - len(missed) / len(mistakes), text)


def explain(exercise, wrong):
    """Explain a Problem: the rule, the call, its arguments, the expected and the actual result."""
    arguments = exercise.arguments(wrong.case)
    mine = wrong.mine
    right, bound = expected(exercise, tuple(wrong.case.items()))
    names = list(inspect.signature(exercise.mistaken()).parameters)[: len(arguments)]
    made = ", ".join(f"{key}={value!r}" for key, value in wrong.case.items())
    lines = [f"is true   {wrong.rule}", f"not for   {exercise.name}({', '.join(names)}), where"]
    lines += [f"  {name:<9} {describe(value)}" for name, value in zip(names, arguments)]
    lines += [f"made by   arguments({made})"]
    if mine.crash:
        lines.append(f"raised    {mine.crash.text}")
    elif mine.touched != right.touched:
        lines.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
    elif says := other_kind(right.value, mine.value):
        lines.append(f"because   {says}")
    elif found := difference(right.value, mine.value, bound):
        lines += [f"expected  {found[0]}", f"got       {found[1]}", f"first at  {found[2]}"]
    elif wrong.detail:
        lines.append(f"there     {wrong.detail}")
    return "\n  ".join(lines)

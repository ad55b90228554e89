"""Decide whether a function is right; if not, find a small wrong call and the usual mistake.

The judge asks a subject for values: `isolation.Local` in this process, `isolation.Student` in
another. A hidden check has a private seed; an open one has the seed None.
"""

import copy
import random
from functools import lru_cache
from itertools import islice, tee
from typing import NamedTuple

import numpy as np

from ..outcome import TYPE, Outcome, Stopped, describe, difference, leaves, lines
from . import exercises
from .isolation import OUTPUT, Local, running

REFERENCE = "it gives what the reference gives"  # the last rules of every exercise
SLOPES = "autograd can differentiate it, and gets what it gets for the reference"
# calls to check a rule; those of REFERENCE also tell mistakes apart; a property has the default
CALLS = {REFERENCE: 40, SLOPES: 4}
CALLS_OF_A_PROPERTY = 16


class Problem(NamedTuple):
    """A call on which a subject breaks a rule."""

    case: tuple
    rule: str  # a sentence that is true of right answers
    arguments: tuple  # of the call
    right: Outcome
    mine: Outcome
    found: str = ""  # how the results differ
    detail: str = ""  # the message of the property's assertion


class Verdict(NamedTuple):
    """The result of a check."""

    share: float  # share of the points, 0 to 1
    text: str  # the explanation, several lines
    mistake: str = ""  # "name: diagnosis" of a recognized mistake


PASSED = Verdict(1.0, "passed")
NOT_WRITTEN = Verdict(0.0, "not written yet")
MISSING = Verdict(0.0, "there is no file for it: `minilora learn init` makes a new stub")


def outcomes(exercise, subject, cases, rule=REFERENCE):
    """Call the subject, or its gradient, on each case; yield Outcomes with what is compared."""
    by = [exercise.parameters.index(n) for n in exercise.differentiable if rule == SLOPES]
    given, asked = tee(map(exercise.arguments, cases))  # made once: the subject gets copies
    for arguments, one in zip(given, subject.ask(asked, by)):
        try:
            if not (one.crash or by):
                value = exercise.checks.observe(one.value, *arguments)
                one = one._replace(value=value)
        except Exception as error:  # `observe` cannot read this kind of result
            text = f"{describe(one.value)} is not the kind of result that is asked for: {error}"
            one = Outcome(crash=text)
        yield one


@lru_cache(2**14)
def expected(exercise, case, rule=REFERENCE):
    """Return the reference's Outcome on a call, and the allowed distance."""
    (right,) = outcomes(exercise, Local(exercise.copy()), [case], rule)
    if rule == SLOPES:
        return right, 1e-3 * max(float(np.abs(leaf).max()) for _, leaf in leaves(right.value))
    return right, exercise.checks.tolerance(*exercise.arguments(case))


def problem(exercise, subject, case, mine, rule):
    """Return the Problem with the subject's outcome `mine` on `case`, or None."""
    arguments = exercise.arguments(case)
    right, bound = expected(exercise, case, rule)
    found = difference(right.value, mine.value, bound, exercise.dtypes)
    wrong = Problem(case, rule, arguments, right, mine, found)
    if mine.crash:  # also if the reference raises: then the proof of the exercise fails
        return wrong if rule == SLOPES else wrong._replace(rule="the call returns")
    if mine.touched != right.touched:
        return wrong._replace(rule="the arguments are left as they are")
    if rule in CALLS:
        return wrong if found else None

    holds = getattr(exercise.checks, rule)
    calls = []

    def function(*arguments):
        given = copy.deepcopy(arguments)  # a property, or a random generator, can change them
        (answer,) = subject.ask([arguments])
        calls.append((given, answer))
        if answer.crash:
            raise RuntimeError(answer.crash)
        return answer.value

    try:
        holds(function, *arguments)
    except Exception as error:  # the property does not hold, or cannot read this kind of result
        other = first_wrong(exercise, calls, Problem(case, rule, arguments, right, mine))
        if other.mine.crash or difference(arguments, other.arguments):  # not the call of the case
            wrong = other
        said = " ".join(holds.__doc__.split())
        return wrong._replace(rule=said, detail=str(error).partition("\n")[0])
    return None


def first_wrong(exercise, calls, problem):
    """Return the Problem with the first call that differs from the reference's, or with the last.

    calls: (arguments, Outcome) of those that a property has made.
    """
    for arguments, mine in calls:
        (right,) = Local(exercise.copy()).ask([arguments])
        bound = exercise.checks.tolerance(*arguments)
        found = difference(right.value, mine.value, bound, exercise.dtypes)
        problem = problem._replace(arguments=arguments, right=right, mine=mine, found=found)
        if mine.crash or found:
            break
    return problem


def wrong_calls(exercise, subject, rule, seed=None, cases=()):
    """Yield a Problem for each call that breaks the rule: of the cases, or of drawn ones."""
    drawn = cases or exercise.draw(rule, CALLS.get(rule, CALLS_OF_A_PROPERTY), seed)
    for case, mine in zip(drawn, outcomes(exercise, subject, drawn, rule)):
        if found := problem(exercise, subject, case, mine, rule):
            yield found


def diagnose(exercise, subject, case):
    """Return "name: diagnosis" of the mistake that answers like the subject, or an empty string."""
    drawn = [case, *exercise.draw("samples", CALLS[REFERENCE])]
    mine = [*outcomes(exercise, subject, drawn)]
    right, bounds = zip(*(expected(exercise, case) for case in drawn))

    def is_like_mine(answers):  # the texts of two crashes may differ
        pairs = zip(answers, mine, bounds)
        return not any(difference(a[:2], b[:2], bound, exercise.dtypes) for a, b, bound in pairs)

    if is_like_mine(right):
        return ""  # the subject differs from the reference on other calls alone
    for m in exercise.mistakes:
        if is_like_mine(outcomes(exercise, Local(exercise.copy(m)), drawn)):
            return f"{m.name}: {m.says}"
    return ""


def verdict(exercise, files, seed=None):
    """Return the Verdict on the exercise's file in `files`, {name: bytes}, in its own process."""
    source = files.get(exercise.file)
    if source is None:
        return MISSING
    if exercise.is_unchanged(source):
        return NOT_WRITTEN
    try:
        with running(exercise, files) as subject:
            return check(exercise, subject, seed)
    except Stopped as stop:
        return Verdict(0.0, str(stop))


def check(exercise, subject, seed=None, cases=()):
    """Return the Verdict: half of the share is for the properties, half for the right values."""
    if exercise.is_test:
        return check_test(exercise, subject, seed)
    rules = [*exercise.rules, REFERENCE]
    if exercise.differentiable:
        rules.append(SLOPES)
    wrong: dict = {}
    for rule in rules:
        found = wrong_calls(exercise, subject, rule, seed, cases)
        # all calls that break the first broken rule; whether a later rule is broken
        wrong[rule] = [*islice(found, 1 if any(wrong.values()) else None)]
    if not any(wrong.values()):
        return PASSED

    def size(one):
        return sum(leaf.size for _, leaf in leaves(one.arguments))

    least = min(next(filter(None, wrong.values())), key=size)  # of the first broken rule
    text = explain(exercise, least)
    if seed is not None:  # a hidden check says no call and no value
        text = text.partition("\n")[0]
    # with given cases, for a debugger, no further calls
    mistake = "" if cases else diagnose(exercise, subject, least.case)
    if exercise.kind == "debug" and mistake.startswith(f"{exercise.mistakes[0].name}:"):
        mistake = "the planted fault: it is still there"  # its diagnosis is the answer
    is_right = not wrong.pop(REFERENCE)
    held = sum(not found for found in wrong.values())
    share = (held / max(1, len(wrong)) + is_right) / 2
    if mistake:
        text += f"\n  likely    {mistake}"
    return Verdict(share, text, mistake)


def check_test(exercise, subject, seed):
    """Return the Verdict on a test; its share is the share of planted mistakes that it catches."""
    is_open = seed is None
    mistakes = [m for m in exercise.mistakes if not (is_open and m.hidden)]
    tested = [None, *mistakes]  # None is the reference
    random.Random(seed or 0).shuffle(tested)  # counting the calls must not help
    missed = []
    for mistake in tested:
        (result,) = subject.ask([(exercise.copy(mistake),)])
        if result.crash and not mistake:
            text = "failed: your test raises on the reference, which is right"
            if is_open:
                text += f"\n  it raised {result.crash}"
            return Verdict(0.0, text)
        if mistake and not result.crash:
            missed.append(mistake)
    if not missed:
        return PASSED
    caught = f"{len(mistakes) - len(missed)} of {len(mistakes)} planted mistakes"
    text = f"failed: the reference passes your test, which catches {caught}"
    text += "".join(f"\n  not caught: {m.name}: {m.says}" for m in missed if is_open)
    return Verdict(1 - len(missed) / len(mistakes), text)


def explain(exercise, wrong):
    """Explain a Problem: its kind, the rule, the call, the expected and the actual result."""
    case, rule, arguments, right, mine, found, detail = wrong
    names = exercise.parameters[: len(arguments)]
    kind = "type" if TYPE in found + detail else "value"
    text = [
        f"rule      {rule}",
        f"broken by {exercise.name}({', '.join(names)})" + (", where" if names else ""),
    ]
    for name, value in zip(names, arguments):
        text += [f"  {line}" for line in lines(name, value)]
    if mine.crash:
        kind = "output" if mine.crash.startswith(OUTPUT) else "exception"
        text.append(f"raised    {mine.crash}")
    elif mine.touched != right.touched:
        kind = "argument"
        text.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
    else:
        if found:
            text += lines("expected", right.value)
        text += lines("got", mine.value)
        if found:
            text.append(f"first at  {found}")
        if detail and detail != found:
            text.append(f"there     {detail}")
        if mine.value is None:
            text.append("hint      does every branch of the function end in `return`?")
    if exercise.checks.CASES:
        command = f"minilora learn check {exercise.id}{exercises.option()}"
        again = f'{command} --call "{dict(case)}"'
        text.append(f"again     {again}    (in this process: breakpoints stop)")
    return "\n  ".join([f"failed: {kind}", *text])

"""Decide whether a function is right; if not, find a small wrong call and the usual mistake.

The judge asks a subject for values: `isolation.Local` in this process, `isolation.Student` in
another. A hidden check has a private seed; an open one has the seed None.
"""

import random
from dataclasses import is_dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from ..outcome import (
    TYPE,
    UNWRITTEN,
    Crash,
    Outcome,
    Stopped,
    describe,
    difference,
    leaves,
    lines,
)  # fmt: skip
from .isolation import OUTPUT, Local, Slopes, running

REFERENCE = "it gives what the reference gives"  # the last rules of every exercise
SLOPES = "autograd can differentiate it, and gets what it gets for the reference"
# calls to check a rule; those of REFERENCE also tell mistakes apart; a property has the default
CALLS = {REFERENCE: 40, SLOPES: 4}
CALLS_OF_A_PROPERTY = 16


class Problem(NamedTuple):
    """A call on which a subject breaks a rule."""

    case: tuple
    rule: str  # a sentence that is true of right answers
    mine: Outcome
    arguments: tuple  # of the call
    found: str = ""  # how the result differs from the reference's
    detail: str = ""  # the message of the property's assertion


class Verdict(NamedTuple):
    """The result of a check."""

    share: float  # share of the points, 0 to 1
    text: str  # the explanation, several lines
    mistake: str = ""  # "name: diagnosis" of a recognized mistake


PASSED = Verdict(1.0, "passed")
TODO = Verdict(0.0, UNWRITTEN)
MISSING = Verdict(0.0, "no file that counts was handed in")


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


def unlike(exercise, case, mine):
    """Return a text on how a value differs from the reference's, or an empty string."""
    right, bound = expected(exercise, case)
    return difference(right.value, mine.value, bound, exercise.dtypes)


def problem(exercise, subject, case, mine, rule):
    """Return the Problem with the subject's outcome `mine` on `case`, or None."""
    arguments = exercise.arguments(case)
    right, _ = expected(exercise, case)
    if mine.crash:  # also if the reference raises: then the proof of the exercise fails
        return Problem(case, "the call returns", mine, arguments)
    if mine.touched != right.touched:
        return Problem(case, "the arguments are left as they are", mine, arguments)
    found = unlike(exercise, case, mine)
    if rule in (REFERENCE, SLOPES):
        if found:
            return Problem(case, REFERENCE, mine, arguments, found)
        return slopes_problem(exercise, subject, case) if rule == SLOPES else None

    holds = getattr(exercise.checks, rule)
    last = [mine, arguments]  # the last call, which broke the rule

    def function(*arguments):
        (answer,) = subject.ask(arguments)
        last[:] = answer, arguments
        if answer.crash:
            raise answer.crash
        return answer.value

    try:
        holds(function, *arguments)
    except Exception as error:  # the property does not hold, or cannot read this kind of result
        said, detail = " ".join(holds.__doc__.split()), str(error).partition("\n")[0]
        if last[0].crash or difference(exercise.arguments(case), last[1]):  # another call
            return Problem(case, said, last[0], last[1], "", detail)
        return Problem(case, said, mine, arguments, found, detail)
    return None


def slopes_problem(exercise, subject, case):
    """Return the Problem with the gradient by the arguments of `exercise.differentiable`."""
    arguments = exercise.arguments(case)
    call = Slopes([[exercise.parameters.index(n) for n in exercise.differentiable], *arguments])
    (right,), (mine,) = Local(exercise.copy()).ask(call), subject.ask(call)
    largest = max(float(np.abs(leaf).max()) for _, leaf in leaves(right.value))
    detail = str(mine.crash or difference(right.value, mine.value, 1e-3 * largest))
    return Problem(case, SLOPES, mine, arguments, "", detail) if detail else None


def wrong_calls(exercise, subject, rule, seed=None, cases=()):
    """Yield a Problem for each call that breaks the rule: of the cases, or of drawn ones."""
    drawn = cases or exercise.draw(rule, CALLS.get(rule, CALLS_OF_A_PROPERTY), seed)
    for case, mine in zip(drawn, outcomes(exercise, subject, drawn)):
        if found := problem(exercise, subject, case, mine, rule):
            yield found


def trivial(exercise):
    """Yield functions that need no thought: constants, an argument, zeros of the right shape."""
    reference = exercise.copy()
    yield from (lambda *_: None, lambda *_: 0, lambda *_: {})
    for number in (0, 1):
        yield lambda *a, number=number: filled(reference(*a), number)
    for n in range(len(exercise.parameters)):
        yield lambda *a, n=n: a[n]
    if exercise.kind == "debug":
        yield exercise.copy(exercise.mistakes[0])


@lru_cache(2**10)
def fewest_wrong(exercise, rule, seed):
    """Return the number of calls that break REFERENCE for the best trivial function.

    For another rule, return 0 if a trivial function keeps it.
    """
    most = CALLS[rule] if rule == REFERENCE else 1
    wrong = (wrong_calls(exercise, Local(f), rule, seed) for f in trivial(exercise))
    return min(len([*islice(found, most)]) for found in wrong)


def filled(value, number):
    """Return a copy of a tree, a tuple or a dataclass in which all numbers are `number`."""
    if isinstance(value, dict):
        return {key: filled(part, number) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**filled(vars(value), number))
    if isinstance(value, list | tuple):
        inner = [filled(part, number) for part in value]
        return value._make(inner) if hasattr(value, "_make") else inner
    is_number = isinstance(value, np.ndarray | np.generic | float | int)
    return np.full_like(value, number) if is_number else value


def diagnose(exercise, subject, case):
    """Return "name: diagnosis" of the mistake that answers like the subject, or an empty string."""
    drawn = [case, *exercise.draw("samples", CALLS[REFERENCE])]
    mine = outcomes(exercise, subject, drawn)
    right, bounds = zip(*(expected(exercise, case) for case in drawn))

    def is_like_mine(answers):  # a Crash is no leaf, None is one
        return not any(difference(*three, exercise.dtypes) for three in zip(answers, mine, bounds))

    if is_like_mine(right):
        return ""  # the subject differs from the reference on other calls alone
    for m in exercise.mistakes:
        planted = Local(exercise.copy(m))
        # one call after the other: the first one differs for most mistakes
        if is_like_mine(outcomes(exercise, planted, [case])[0] for case in drawn):
            return f"{m.name}: {m.says}"
    return ""


def verdict(exercise, files, seed=None):
    """Return the Verdict on the exercise's file in `files`, {name: bytes}, in its own process."""
    source = files.get(exercise.file)
    if source is None:
        return MISSING
    if exercise.is_unchanged(source):
        return TODO
    try:
        with running(exercise, files) as subject:
            return check(exercise, subject, seed)
    except Stopped as stop:
        return Verdict(0.0, str(stop))


def check(exercise, subject, seed=None, cases=()):
    """Return the Verdict: half of the share is for the properties, half for the right values."""
    if exercise.is_test:
        return check_test(exercise, subject, seed)
    rules = [*exercise.rules, REFERENCE, *[SLOPES] * bool(exercise.differentiable)]
    wrong = {rule: [*wrong_calls(exercise, subject, rule, seed, cases)] for rule in rules}
    if not any(wrong.values()):
        return PASSED

    def size(one):
        return sum(leaf.size for _, leaf in leaves(one.arguments))

    least = min(next(filter(None, wrong.values())), key=size)  # of the first broken rule
    if str(least.mine.crash).startswith(f"NotImplementedError: {exercise.id}:"):  # of the stub
        return TODO
    broken = len(wrong.pop(REFERENCE))
    held = []  # no points for what a trivial function keeps, unless more values are right
    for rule, found in wrong.items():
        is_hard = not found and fewest_wrong(exercise, rule, seed)
        if found or is_hard or broken < fewest_wrong(exercise, REFERENCE, seed):
            held.append(not found)
    # with given cases, for a debugger, no further calls
    mistake = "" if cases else diagnose(exercise, subject, least.case)
    if exercise.kind == "debug" and mistake.startswith(f"{exercise.mistakes[0].name}:"):
        mistake = "the planted fault: it is still there"  # its diagnosis is the answer
    # a hidden check says no call and no value
    text = explain(exercise, least) if seed is None else f"failed: {kind(exercise, least)}"
    share = (sum(held) / max(1, len(held)) + (not broken)) / 2
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
        if crash and str(crash).startswith(f"NotImplementedError: {exercise.id}:"):
            return TODO
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


def kind(exercise, wrong):
    """Return the kind of a Problem in a word: exception, output, argument, type or value."""
    right, _ = expected(exercise, wrong.case)
    if wrong.mine.crash:
        return "output" if str(wrong.mine.crash).startswith(OUTPUT) else "exception"
    if wrong.mine.touched != right.touched:
        return "argument"
    return "type" if TYPE in wrong.found + wrong.detail else "value"


def explain(exercise, wrong):
    """Explain a Problem: the rule, the call, its arguments, the expected and the actual result."""
    case, rule, mine, arguments, found, detail = wrong
    right, _ = expected(exercise, case)
    names = [name for name, _ in zip(exercise.parameters, arguments)]
    text = [
        f"failed: {kind(exercise, wrong)}",
        f"is true   {rule}",
        f"not for   {exercise.name}({', '.join(names)})" + ", where" * bool(names),
    ]
    for name, value in zip(names, arguments):
        text += [f"  {line}" for line in lines(name, value)]
    if mine.crash:
        text.append(f"raised    {mine.crash}")
    elif mine.touched != right.touched:
        text.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
    else:
        text += lines("expected", right.value) * bool(found)
        text += lines("got", mine.value)
        text += [f"first at  {found}"] * bool(found)
        text += [f"there     {detail}"] * bool(detail and detail != found)
        if mine.value is None:
            text.append("hint      does every branch of the function end in `return`?")
    if exercise.checks.CASES:
        again = f'minilora learn check {exercise.id} --call "{dict(case)}"'
        text.append(f"again     {again}    (in this process: breakpoints stop)")
    return "\n  ".join(text)

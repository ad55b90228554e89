"""From a judged answer to what a student reads."""

import inspect
from dataclasses import dataclass

from . import diagnosis, judge
from .outcome import Stopped, describe, difference


@dataclass(frozen=True)
class Verdict:
    """How an exercise went."""

    status: str  # passed, failed, or todo: nothing written yet
    share: float  # of the points, 0 to 1
    text: str  # what to read, several lines
    mistake: str = ""  # "name: what it is", where one is recognised
    brief: str = ""  # the same in one line


def check(exercise, subject, seed=0, hidden=False, examples=judge.EXAMPLES):
    """The Verdict on a subject. What a hidden check says names no call and no value."""
    try:
        if exercise.kind == "test":
            return _of_test(exercise, subject, seed, hidden)
        wrong = judge.search(exercise, subject, seed, examples)
    except Stopped as stop:
        return Verdict("failed", 0.0, str(stop))
    if wrong is None:
        return Verdict("passed", 1.0, "passed")
    if _todo(exercise, wrong.mine.crash):
        return Verdict("todo", 0.0, "still to be written")
    group = diagnosis.diagnose(exercise, subject, wrong.case)
    mistake = "; and ".join(f"{m.name}: {m.says}" for m in group)
    text = "a hidden check fails" if hidden else explained(exercise, wrong)
    if mistake:
        text += f"\n  likely    {mistake}"
    return Verdict("failed", 0.0, text, mistake, mistake or f"not true: {wrong.rule}")


def _todo(exercise, crash):
    return bool(crash and crash.kind == "NotImplementedError" and f"{exercise.id}:" in crash.text)


def _of_test(exercise, subject, seed, hidden):
    raised, missed, total = diagnosis.missed(exercise, subject, seed, hidden)
    if _todo(exercise, raised):
        return Verdict("todo", 0.0, "still to be written")
    if raised:
        text = "your test fails the reference itself, which is right"
        return Verdict("failed", 0.0, text if hidden else f"{text}\n  it raised {raised.text}")
    caught = total - len(missed)
    text = f"the reference passes your test, which catches {caught} of {total} planted mistakes"
    if not hidden:
        text += "".join(f"\n  not caught: {m.name}: {m.says}" for m in missed)
    share = caught / total if total else 1.0
    return Verdict("failed" if missed else "passed", share, text)


def explained(exercise, wrong):
    """A Problem in lines: the call, its arguments, what was expected, what came."""
    arguments = exercise.arguments(wrong.case)
    names = list(inspect.signature(exercise.compiled(exercise.reference)).parameters)
    made = ", ".join(f"{key}={value!r}" for key, value in wrong.case.items())
    lines = [
        f"is true   {wrong.rule}",
        f"not for   {exercise.name}({', '.join(names[: len(arguments)])}), where",
        *(f"  {name:<10}{describe(value)}" for name, value in zip(names, arguments)),
        f"made by   arguments({made})",
        *_apart(exercise, wrong, names),
    ]
    return "\n  ".join(lines)


def _apart(exercise, wrong, names):
    """How the answer differs from the reference's."""
    mine, right = wrong.mine, wrong.right
    if mine.crash:
        return [f"raised    {mine.crash.text}"]
    if right.crash:
        return [f"expected  {right.crash.text}", f"got       {describe(mine.value)}"]
    lines = []
    if mine.touched != right.touched:
        lines.append(f"changed   {', '.join(names[n] for n in mine.touched) or 'nothing'}")
    found = difference(right.value, mine.value, judge.bound(exercise, wrong.case))
    if found:
        lines += [f"expected  {found.expected}", f"got       {found.got}", f"first at  {found}"]
    elif wrong.detail:
        lines.append(f"there     {wrong.detail}")
    return lines

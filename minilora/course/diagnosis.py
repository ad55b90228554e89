"""Which usual mistake a wrong answer is, by what it does; which mistakes a test catches."""

import random
from itertools import permutations

from .exercises import Mistake
from .judge import bound, given, outcome, right_outcome
from .outcome import Stopped, same
from .subject import Local

SAMPLES = 24  # calls on which a subject and a mistake are compared


def samples(exercise, seed):
    """Some calls, to tell mistakes apart by what they do."""
    cases: list[dict] = []
    given(exercise, seed, SAMPLES, cases.append)
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

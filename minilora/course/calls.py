"""Draw the calls on which an exercise is checked, from a seed.

A call is a dict with one value for each choice of the exercise's CASES. A choice is a list of
values, or the lowest and the highest value of a range. `stored` says how the arrays are stored.
"""

import hashlib

import numpy as np

LAYOUTS = ("as drawn", "Fortran order", "float32")


def draw(exercise, rule, count, seed=0, hidden=False):
    """Draw `count` calls to check a rule; equal arguments give equal calls.

    Hidden calls have sizes from HIDDEN and vary the storage, with float32 only for the reference,
    because the bounds of properties hold for float64.
    """
    choices = exercise.checks.CASES
    if hidden:
        ways = LAYOUTS[:2] if rule.startswith("property_") else LAYOUTS
        choices = {**choices, "stored": list(ways), **getattr(exercise.checks, "HIDDEN", {})}
    text = f"{seed} {exercise.id} {rule}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(text).digest()))

    def value(choice):
        if isinstance(choice, list):
            return choice[rng.integers(len(choice))]
        if rng.random() < 0.2:  # the ends of a range are drawn often
            return choice[rng.integers(2)]
        if isinstance(choice[0], int):  # small numbers are drawn more often
            return choice[0] + int((choice[1] + 1 - choice[0]) * rng.random() ** 2)
        return float(rng.uniform(*choice))

    return [
        {"seed": int(rng.integers(2**32)), **{key: value(c) for key, c in choices.items()}}
        for _ in range(count)
    ]


def stored(value, way):
    """Return arguments with all float64 arrays as float32, or with all arrays in Fortran order."""
    if isinstance(value, np.ndarray):
        if way == "float32" and value.dtype == np.float64:
            return value.astype(np.float32)
        return np.asfortranarray(value) if way == "Fortran order" else value
    if isinstance(value, dict):
        return {key: stored(inner, way) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(stored(inner, way) for inner in value)
    return value

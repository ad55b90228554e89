"""Draw the calls of an exercise from a seed.

A call is a dict, a value for each choice of CASES. A choice is a list, or (lowest, highest) of a
whole number or a float. `stored` says how the call's arrays are stored.
"""

import hashlib

import numpy as np

LAYOUTS = ("as drawn", "Fortran order", "float32")


def choices(checks, reference, hidden):
    """Return CASES. A hidden check takes other sizes, HIDDEN, and stores arrays in other ways."""
    if not hidden:
        return checks.CASES
    ways = list(LAYOUTS if reference else LAYOUTS[:2])  # a property's bounds are of float64
    return {**checks.CASES, "stored": ways, **getattr(checks, "HIDDEN", {})}


def draw(exercise, seed, name, choices, count):
    """Draw `count` calls, equal for equal seeds, exercises' ids and names; ends of ranges often."""
    text = f"{seed} {exercise} {name}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(text).digest()))

    def value(choice):
        if isinstance(choice, list):
            return choice[rng.integers(len(choice))]
        if rng.random() < 0.2:
            return choice[rng.integers(2)]
        if isinstance(choice[0], int):
            return choice[0] + int((choice[1] + 1 - choice[0]) * rng.random() ** 2)  # more small
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

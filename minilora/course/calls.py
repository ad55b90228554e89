"""Draw the calls of an exercise from a seed.

A call is a dict, a value for each choice of CASES. A choice is a list, or (lowest, highest) of a
whole number or a float. `stored` says how the call's arrays are stored.
"""

import hashlib

import numpy as np

STORED = ("as drawn", "Fortran order", "float32")


def choices(exercise, rule, hidden):
    """Return CASES. A hidden check takes other sizes, HIDDEN, and stores arrays in other ways."""
    if not hidden:
        return exercise.checks.CASES
    other = getattr(exercise.checks, "HIDDEN", {})
    ways = list(STORED if rule is None else STORED[:2])  # a property's bounds are of float64
    return {**exercise.checks.CASES, "stored": ways, **other}


def draw(exercise, seed, name, cases, count):
    """Draw `count` calls from {key: choice}; equal seeds, exercises and names give equal calls.

    The ends of a range are drawn more often than what lies between them.
    """
    text = f"{seed} {exercise.id} {name}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(text).digest()))
    calls = []
    for _ in range(count):
        call = {"seed": int(rng.integers(2**32))}
        for key, choice in cases.items():
            if isinstance(choice, list):
                call[key] = choice[rng.integers(len(choice))]
            elif rng.random() < 0.2:
                call[key] = choice[rng.integers(2)]
            elif all(isinstance(end, int) for end in choice):
                call[key] = int(rng.integers(choice[0], choice[1] + 1))
            else:
                call[key] = float(rng.uniform(*choice))
        calls.append(call)
    return calls


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

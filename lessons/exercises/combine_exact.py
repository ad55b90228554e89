"""combine-exact: combine several adapters into one, without cross terms.

`parts` is a list of (ws, A, B): the weight times the scaling of an adapter, its A (r_i, in) and its
B (out, r_i). Return (A, B) of one adapter of rank Σ r_i whose BA is the sum of ws·BA over the
parts. A stacks the A's of the parts vertically, unscaled and in order; B stacks the ws·B
horizontally. The argument r is not needed.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"adapters": range(1, 4), "out": range(2, 5), "width": range(2, 5), "alike": [False, True]}
HIDDEN = {"adapters": range(4, 6), "out": range(5, 10), "width": range(5, 10)}


def arguments(rng, adapters, out, width, alike):
    ranks = [2] * adapters if alike else range(1, adapters + 1)
    parts = [
        (float(rng.uniform(-3, -1.5) if i % 2 else rng.uniform(1.5, 3)),
         rng.uniform(-1, 1, (ranks[i], width)), rng.uniform(-1, 1, (out, ranks[i])))
        for i in range(adapters)
    ]  # fmt: skip
    return parts, int(rng.integers(1, 5))


def tolerance(*_):
    """float64 products of two numbers."""
    return 2.0**-50


def property_the_sum_of_the_updates(function, parts, r):
    """BA is the weighted sum of the adapters' updates"""
    A, B = function(parts, r)
    expected = sum(ws * (b @ a) for ws, a, b in parts)
    close(np.asarray(B) @ np.asarray(A), expected, 2.0**-46)


def property_ranks_add_up(function, parts, r):
    """A and B have Σ r_i rows and columns, and BA has this rank or its largest possible one"""
    A, B = (np.asarray(factor) for factor in function(parts, r))
    ranks = sum(len(a) for _, a, _ in parts)
    assert len(A) == B.shape[1] == ranks, f"A of {A.shape}, B of {B.shape}"
    assert np.linalg.matrix_rank(B @ A) == min(ranks, len(B), A.shape[1])

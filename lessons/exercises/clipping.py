"""clipping: shorten a gradient that is too long.

Write `clip`; `global_norm` is a helper that you may write too. The norm is √Σ g² over all leaves
of the tree together, a float. Multiply all leaves by one factor, min(1, max_norm/(norm + 1e-6)).
The 1e-6, which PyTorch adds, is optional. Return (clipped tree, norm before clipping).
"""

import numpy as np

from minilora.course.outcome import close
from minilora.optim import global_norm

CASES = {"leaves": range(1, 4), "size": range(2, 5), "limit": [0.25, 0.7, 2.0, 8.0]}
HIDDEN = {"leaves": range(4, 7), "size": range(5, 10)}


def arguments(rng, leaves, size, limit):
    shapes = [(size, 2), (size,), ()]  # matrices, vectors, numbers
    tree = {
        str(i): {"lora_B": np.asarray(rng.uniform(-2, 2, shapes[rng.integers(3)]))}
        for i in range(leaves)
    }
    return {"layers": tree}, limit


def tolerance(*_):
    """With or without the 1e-6: max_norm/norm differs by at most 1e-6/norm, and |g| ≤ norm."""
    return 2e-6


def property_never_longer(function, grads, limit):
    """the norm of all leaves is at most the limit, not shorter than it need be, and the direction
    is kept"""
    clipped, before = function(grads, limit)
    after = global_norm(clipped)
    assert after <= limit * (1 + 2**-40), f"the norm is {after}, the limit {limit}"
    close(after, min(limit, global_norm(grads)), 2e-6)
    for name, node in grads["layers"].items():
        scaled = np.asarray(clipped["layers"][name]["lora_B"]) * before
        close(scaled, node["lora_B"] * after, 2.0**-36)


def property_the_norm_before(function, grads, limit):
    """the second value is the norm before clipping, in full precision"""
    close(function(grads, limit)[1], global_norm(grads), 2.0**-44)


def property_short_ones_stay(function, grads, limit):
    """a gradient within the limit is unchanged"""
    same, before = function(grads, 100.0)
    close(same, grads)
    close(before, global_norm(grads), 2.0**-44)

"""clipping: a gradient that is too long, made shorter."""

import numpy as np

from minilora.course.outcome import close
from minilora.optim import global_norm

CASES = {"leaves": (1, 3), "size": (1, 4), "limit": (0.25, 8)}


def arguments(rng, leaves, size, limit):
    tree = {str(i): {"lora_B": rng.uniform(-2, 2, (size, 2))} for i in range(leaves)}
    return {"layers": tree}, limit


def tolerance(*_):
    """float64: a sum of some 24 squares of at most 4, its root, and a product."""
    return 2.0**-44


def property_never_longer(function, grads, limit):
    """the norm of all leaves together is at most the limit, and the direction stays"""
    clipped, before = function(grads, limit)
    after = global_norm(clipped)
    assert after <= limit * (1 + 2**-40), f"the norm is {after}, the limit {limit}"
    for name, node in grads["layers"].items():
        scaled = np.asarray(clipped["layers"][name]["lora_B"]) * before
        close(scaled, node["lora_B"] * after, 2.0**-36)


def property_short_ones_stay(function, grads, limit):
    """a gradient within the limit comes back as it is"""
    same, before = function(grads, 100.0)
    close(same, grads)
    close(before, global_norm(grads), 2.0**-44)

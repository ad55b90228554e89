"""prefix: keys and values that no token has."""

import numpy as np

from minilora.config import MethodConfig
from minilora.tree import flatten

CASES = {"layers": (1, 2), "n": (8, 12), "kv": [4, 6]}


def arguments(rng, layers, n, kv):
    def layer():
        shapes = {"q_proj": (8, 8), "k_proj": (kv, 8), "v_proj": (kv, 8)}
        attention = {k: {"weight": rng.uniform(-1, 1, s).astype("f4")} for k, s in shapes.items()}
        return {"self_attn": attention}

    base = {"model": {"layers": {str(i): layer() for i in range(layers)}}}
    config = MethodConfig("prefix", num_virtual_tokens=n)
    return base, config, np.random.default_rng(int(rng.integers(1000)))


def observe(result, base, config, rng):
    """Shapes, and of N(0, 1) whether it is spread about as far as it must be: of 32 draws or more
    the deviation is outside [1/2, 2] less than once in a million."""
    return {
        path: (np.shape(w), str(np.asarray(w).dtype), bool(0.5 < np.std(w) < 2))
        for path, w in flatten(result[0]).items()
    }


def property_counted(function, base, config, rng):
    """2·L·n·k numbers: keys and values, in every layer, n of them, as wide as its keys"""
    layers = base["model"]["layers"]
    k = layers["0"]["self_attn"]["k_proj"]["weight"].shape[0]
    count = sum(np.size(w) for w in flatten(function(base, config, rng)[0]).values())
    expected = 2 * len(layers) * config.num_virtual_tokens * k
    assert count == expected, f"{count} numbers in place of {expected}"

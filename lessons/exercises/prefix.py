"""prefix: initialize keys and values that do not come from tokens.

Return a new tree, `adapters`, with two leaves for each layer i, "model.layers.i.self_attn.prefix_k"
and "model.layers.i.self_attn.prefix_v". PREFIX has the two names. `set_leaf` makes the nodes in
between. Each leaf is (n, k) float32 from the standard normal distribution of `rng`; n is
config.num_virtual_tokens, and k is the number of rows of the k_proj weight of the layer.
`projections(base, ("k_proj",))` is {path: shape (out, in)} of the k_proj's.
"""

import numpy as np

from minilora.methods.method import MethodConfig
from minilora.tree import flatten

CASES = {"layers": range(1, 3), "n": range(30, 37), "kv": [8, 10]}
HIDDEN = {"layers": range(3, 5), "n": range(37, 51)}


def arguments(rng, layers, n, kv):
    def layer():
        shapes = {"q_proj": (12, 12), "k_proj": (kv, 12), "v_proj": (kv, 12)}
        attention = {k: {"weight": rng.uniform(-1, 1, s).astype("f4")} for k, s in shapes.items()}
        return {"self_attn": attention}

    base = {"model": {"layers": {str(i): layer() for i in range(layers)}}}
    config = MethodConfig("prefix", num_virtual_tokens=n)
    return base, config, np.random.default_rng(int(rng.integers(1000)))


def config_of_adapter(w):
    """Of 240 draws or more from N(0, 1), the deviation is outside [0.7, 1.4], the mean beyond
    ±0.5, or the largest magnitude below 1.75, less than once in 100 million. A uniform
    distribution with the deviation 1 ends at √3 = 1.732."""
    mean, deviation, largest = np.mean(w), np.std(w), np.max(np.abs(w), initial=0)
    right = 0.7 < deviation < 1.4 and abs(mean) < 0.5 and largest > 1.75
    found = f"mean {mean:.1g}, deviation {deviation:.2g}, largest magnitude {largest:.2g}"
    return "N(0, 1)" if right else found


def observe(result, base, config, rng):
    seen = {}
    for path, w in flatten(result).items():
        seen[path] = np.shape(w), np.asarray(w).dtype.name, config_of_adapter(w)
    return seen | {"a tree": not any("." in name for name in result)}


def property_drawn_from_the_generator(function, base, config, rng):
    """equal generators give equal numbers, other generators differ, and no two rows are equal"""

    def drawn(seed):
        leaves = flatten(function(base, config, np.random.default_rng(seed))).values()
        return np.concatenate([np.asarray(w)[:, :4] for w in leaves])

    first = drawn(1)
    assert np.array_equal(first, drawn(1)), "the same generator gives other numbers"
    assert not np.array_equal(first, drawn(2)), "another generator gives the same numbers"
    assert len(np.unique(first, axis=0)) == len(first), "some rows are equal"


def property_counted(function, base, config, rng):
    """there are 2·L·n·k numbers, almost all different: n keys and n values of width k per layer"""
    layers = base["model"]["layers"]
    k = layers["0"]["self_attn"]["k_proj"]["weight"].shape[0]
    leaves = flatten(function(base, config, rng)).values()
    numbers = np.concatenate([np.ravel(w) for w in leaves])
    expected = 2 * len(layers) * config.num_virtual_tokens * k
    assert numbers.size == expected, f"{numbers.size} numbers instead of {expected}"
    assert len(np.unique(numbers)) > 0.9 * expected, "many numbers are equal"

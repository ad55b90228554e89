"""Leaves taken from the tape's root one by one: no gradient changes."""

import numpy as np
from autograd import grad

from minilora import tree
from minilora.kernels import tape


def test_opened_changes_no_gradient():
    """Leaves at any depth, one read twice, one never; and what is not followed is itself."""
    rng = np.random.default_rng(0)
    t = {
        "a": {"b": {"c": rng.random(3, np.float32)}, "d": rng.random(3)},
        "e": 2.0,
        "f": rng.random(2),
    }

    def f(t):
        return (t["a"]["b"]["c"] * t["a"]["d"] * t["a"]["d"] * t["e"]).sum()

    expected, got = grad(f)(t), grad(lambda t: f(tape.opened(t)))(t)
    assert tree.flatten(got).keys() == tree.flatten(t).keys()
    for path, g in tree.named_leaves(expected):
        assert np.array_equal(g, tree.get(got, path))
        assert getattr(tree.get(got, path), "dtype", float) == getattr(g, "dtype", float)
    assert tape.opened(t) is t
    seen = []
    grad(lambda t: seen.append(type(tape.opened(t)["a"])) or t["e"])(t)
    assert seen == [dict]

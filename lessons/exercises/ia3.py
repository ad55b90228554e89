"""ia3: initialize IA³, with three vectors per layer.

Return a new tree, `adapters`, with one leaf of float32 ones for each path of
`projections(base, TARGETS)`, a dict {path: shape (out, in)}: `set_leaf(adapters, f"{path}.{L}",
array)`. L is "ia3_l", and TARGETS are k_proj, v_proj and down_proj. For a weight (out, in), the
leaf is (out, 1) at k_proj and v_proj, whose outputs are scaled, and (1, in) at down_proj, whose
input is scaled.
"""

import numpy as np

from minilora.tree import flatten

CASES = {"layers": range(1, 3), "biased": [False, True]}
HIDDEN = {"layers": range(3, 6)}
SHAPES = {
    "self_attn": {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)},
    "mlp": {"gate_proj": (12, 8), "up_proj": (12, 8), "down_proj": (8, 12)},
}


def tree(rng, layers, biased=False):
    """Return a base with this number of layers and all projections."""

    def leaf(shape):
        w = {"weight": rng.uniform(-1, 1, shape).astype("f4")}
        return w | ({"bias": np.zeros(shape[0], "f4")} if biased else {})

    nodes = {
        str(i): {part: {name: leaf(shape) for name, shape in shapes.items()}
                 for part, shapes in SHAPES.items()}
        for i in range(layers)
    }  # fmt: skip
    return {"model": {"layers": nodes}}


def arguments(rng, layers, biased):
    return tree(rng, layers, biased), None, np.random.default_rng(0)


def property_counted(function, base, config, rng):
    """a layer has two vectors of the keys' width and one of the hidden units': 4 + 4 + 12"""
    leaves = flatten(function(base, config, rng))
    count = sum(np.count_nonzero(w) for w in leaves.values())
    assert count == 20 * len(base["model"]["layers"]), f"{count} parameters that are not zero"


def property_the_base_at_first(function, base, config, rng):
    """each layer has three vectors, and every scale is one"""
    leaves = flatten(function(base, config, rng))
    assert len(leaves) == 3 * len(base["model"]["layers"]), f"{len(leaves)} vectors"
    assert all(np.all(np.asarray(w) == 1) for w in leaves.values())

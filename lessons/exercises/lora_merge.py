"""lora-merge: merge the adapter of a projection into its weight.

Write `merge_lora`; `lora_delta` is a helper that you may write too or leave out.

`node` has the weight (out, in), an array or quantized, which `dense(w)` turns into a matrix, and
perhaps a bias (out,). With an adapter it also has the entries that `LORA` lists: lora_A (r, in),
lora_B (out, r), lora_scaling and lora_dropout. Return a new node with the weight
W₀ + lora_scaling · BA, a float32 array, with the bias if there is one, and without the entries of
LORA. `without(node, *names)` returns a copy of a node without some entries.
"""

import numpy as np

from minilora import layers, nf4
from minilora.course.outcome import close

CASES = {
    "rows": range(2, 7),
    "width": range(2, 7),
    "r": range(2, 4),
    "alpha": [1.0, 3.0, 16.0],
    "quantized": [False, True],
    "adapted": [True, True, False],
    "biased": [False, True],
}
HIDDEN = {"rows": range(7, 10), "width": range(7, 13), "r": range(4, 6)}


def arguments(rng, rows, width, r, alpha, quantized, adapted, biased):
    weight = rng.uniform(-1, 1, (rows, width)).astype("f4")
    node = {"weight": nf4.quantize(weight) if quantized else weight}
    if adapted:
        node["lora_A"] = rng.uniform(-1, 1, (r, width)).astype("f4")
        node["lora_B"] = rng.uniform(-1, 1, (rows, r)).astype("f4")
        node |= {"lora_scaling": alpha / r, "lora_dropout": 0.1}
    if biased:
        node["bias"] = rng.uniform(-1, 1, rows).astype("f4")
    return (node,)


def tolerance(node):
    """|W₀| ≤ 1, and the update is at most 16: sums of some 20 terms, 2⁻²⁴ each."""
    return 20 * 2**-24 * (1 + 16)


def property_merging_is_an_equation(function, node):
    """the merged projection computes what the projection computes with its adapter"""
    x = np.eye(node["weight"].shape[1], dtype=np.float32)
    merged = function(node)
    left = merged.keys() & set(layers.LORA)
    assert not left, f"the merged node still has {', '.join(sorted(left))}"
    close(layers.linear(x, merged), layers.linear(x, node), tolerance(node))


def property_no_update_no_change(function, node):
    """with B = 0 the merged weight is W₀, dense"""
    if "lora_B" in node:
        nothing = {**node, "lora_B": np.zeros_like(node["lora_B"])}
        close(function(nothing)["weight"], layers.dense(node["weight"]))

"""lora-count: count the parameters of a tree.

Return the number of parameters, an int: the product of `leaf.shape`, summed over
`named_leaves(tree)`. A quantized weight has the shape of its dequantized matrix. Leaves without a
shape, such as the floats `lora_scaling` and `lora_dropout`, are not parameters.
"""

import numpy as np

from minilora import nf4
from minilora.quant import int8

CASES = {
    "rows": range(2, 7),
    "width": range(2, 7),
    "layers": range(3),
    "scheme": ["dense", "nf4", "nf4-dq", "int8"],
}
HIDDEN = {"rows": range(7, 12), "width": range(7, 14), "layers": range(3, 6)}


def arguments(rng, rows, width, layers, scheme):
    def weight():
        w = rng.uniform(-1, 1, (rows, width)).astype("f4")
        if scheme == "int8":
            return int8.quantize(w)
        return w if scheme == "dense" else nf4.quantize(w, 16, scheme == "nf4-dq")

    def layer():
        factors = {"lora_A": np.ones((2, width), "f4"), "lora_scaling": 2.0}
        return {"q_proj": {"weight": weight(), **factors}, "norm": {"weight": np.ones(width, "f4")}}

    return ({"layers": {str(i): layer() for i in range(layers)}, "head": weight()},)


def property_counted_by_hand(function, tree):
    """a layer has a matrix, two rows of lora_A and a norm; storage and scalings do not count"""
    rows, width = tree["head"].shape
    expected = rows * width + len(tree["layers"]) * (rows * width + 3 * width)
    assert function(tree) == expected, f"{function(tree)} instead of {expected}"

"""lowrank-product: compute a projection with LoRA by two thin products.

h = W₀x + lora_scaling · B(Ax) + bias for each row x of the last axis, without forming BA. x is
(..., in). `lora_matmul` computes the middle term from arrays, and `linear` sums all terms.
`node` has the parameters of the projection:

1. "weight" is W₀ (out, in), an array or quantized: `matmul(x, w)` multiplies by either.
2. If there is "lora_A" (r, in), there is also "lora_B" (out, r). A multiplies
   `dropout(x, node["lora_dropout"], rng)` instead of x, and node["lora_scaling"] is s.
3. There may be a "bias" (out,).

Return (..., out). Your function need not reject other leaves.
"""

import numpy as np

from minilora import nf4
from minilora.course.outcome import close
from minilora.layers import LORA, RowRng, dropout
from minilora.tree import without

CASES = {
    "batch": range(1, 3),
    "length": range(1, 4),
    "width": range(2, 6),
    "out": range(2, 6),
    "r": range(2, 4),
    "adapted": [True, True, False],
    "quantized": [False, True],
    "biased": [False, True],
    "p": [0.0, 0.5],
}
HIDDEN = {
    "batch": range(3, 5),
    "length": range(4, 8),
    "width": range(6, 18),
    "r": range(4, 7),
    "p": [0.0, 0.25],
}


def arguments(rng, batch, length, width, out, r, adapted, quantized, biased, p):
    x = rng.uniform(-2, 2, (batch, length, width))
    w = rng.uniform(-2, 2, (out, width))
    node = {"weight": nf4.quantize(w.astype("f4"), 16) if quantized else w}
    if adapted:
        node["lora_A"] = rng.uniform(-2, 2, (r, width))
        node["lora_B"] = rng.uniform(-2, 2, (out, r))
        node |= {"lora_scaling": float(rng.uniform(1.5, 3)), "lora_dropout": p}
    if biased:
        node["bias"] = rng.uniform(-2, 2, out)
    return x, node, RowRng(rng.integers(1000, size=(batch, 1)).tolist())


def tolerance(*_):
    """float64: 17·6 terms of at most 3·4·2·2, some 2¹³ in all, 2⁻⁵³ each; with room, 2⁻⁴⁰."""
    return 2.0**-40


def property_one_matrix(function, x, node, rng):
    """without dropout, h is (W₀ + s·BA)x + bias, where s·BA is formed as a matrix"""
    w = node["weight"]
    w = nf4.dequantize(w).astype("f8") if isinstance(w, nf4.Quantized) else w
    if "lora_A" in node:
        w = w + node["lora_scaling"] * (node["lora_B"] @ node["lora_A"])  # (out, in)
    h = np.einsum("btd,od->bto", x, w) + node.get("bias", 0)
    close(function(x, node, None), h, tolerance())


def property_dropout_of_the_adapter(function, x, node, rng):
    """dropout changes the input of the adapter, not the input of W₀"""
    if "lora_A" in node:
        added = np.asarray(function(x, node, rng)) - function(x, without(node, *LORA), rng)
        no_weight = {"weight": np.zeros_like(node["lora_B"] @ node["lora_A"])}
        alone = without(node, "bias") | no_weight
        z = dropout(x, node["lora_dropout"], rng)
        close(added, function(z, alone, None), tolerance())


def property_nothing_at_first(function, x, node, rng):
    """with B = 0 the adapter adds nothing"""
    if "lora_A" in node:
        nothing = {**node, "lora_B": np.zeros_like(node["lora_B"])}
        close(function(x, nothing, rng), np.asarray(function(x, without(node, *LORA), rng)))

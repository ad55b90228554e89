"""lowrank-product: compute a projection with LoRA by two thin products.

h = W₀x + lora_scaling · B(Ax) + bias for each row x of the last axis, without forming BA. x is
(..., in). `lora_matmul` computes the middle term from arrays, and `linear` sums all terms.
`trained` and `frozen` are the nodes of one projection:

1. W₀ (out, in) is trained["weight"] if there is one, an array, or else frozen["weight"], an array
   or quantized: `matmul(x, w)` multiplies by the first, `frozen_matmul(x, w)` by the second.
2. If `trained` has "lora_A" (r, in), it also has "lora_B" (out, r). A multiplies
   `dropout(x, frozen["lora_dropout"], rng)` instead of x, and frozen["lora_scaling"] is s.
3. If there is a bias (out,), it is trained["bias"], or else frozen["bias"].

Return (..., out). Your function need not reject other leaves.
"""

import numpy as np

from minilora import nf4
from minilora.course.outcome import close
from minilora.layers import RowRng, dropout

CASES = {
    "batch": (1, 2),
    "length": (1, 3),
    "width": (2, 5),
    "out": (2, 5),
    "r": (2, 3),
    "adapted": [True, True, False],
    "weight": ["frozen", "quantized", "trained"],
    "bias": ["none", "frozen", "trained"],
    "p": [0.0, 0.5],
}
HIDDEN = {"batch": (3, 4), "length": (4, 7), "width": (6, 17), "r": (4, 6), "p": [0.0, 0.25]}


def arguments(rng, batch, length, width, out, r, adapted, weight, bias, p):
    x = rng.uniform(-2, 2, (batch, length, width))
    w, other = rng.uniform(-2, 2, (2, out, width))
    trained, frozen = {}, {"weight": w}
    if weight == "quantized":
        frozen["weight"] = nf4.quantize(w.astype("f4"), 16)
    elif weight == "trained":
        trained["weight"] = other
    if adapted:
        trained["lora_A"] = rng.uniform(-2, 2, (r, width))
        trained["lora_B"] = rng.uniform(-2, 2, (out, r))
        frozen |= {"lora_scaling": float(rng.uniform(1.5, 3)), "lora_dropout": p}
    if bias != "none":
        frozen["bias"] = rng.uniform(-2, 2, out)
    if bias == "trained":
        trained["bias"] = rng.uniform(-2, 2, out)
    return x, trained, frozen, RowRng(rng.integers(1000, size=(batch, 1)).tolist())


def tolerance(*_):
    """float64: 17·6 terms of at most 3·4·2·2, some 2¹³ in all, 2⁻⁵³ each; with room, 2⁻⁴⁰."""
    return 2.0**-40


def property_one_matrix(function, x, trained, frozen, rng):
    """without dropout, h is (W₀ + s·BA)x + bias, where s·BA is formed as a matrix"""
    w = (frozen | trained)["weight"]
    w = nf4.dequantize(w).astype("f8") if isinstance(w, nf4.Quantized) else w
    if "lora_A" in trained:
        w = w + frozen["lora_scaling"] * (trained["lora_B"] @ trained["lora_A"])  # (out, in)
    bias = (frozen | trained).get("bias", 0)
    h = np.einsum("btd,od->bto", x, w) + bias
    close(function(x, trained, frozen, None), h, tolerance())


def property_dropout_of_the_adapter(function, x, trained, frozen, rng):
    """dropout changes the input of the adapter, not the input of W₀"""
    if "lora_A" in trained:
        alone = {name: w for name, w in trained.items() if not name.startswith("lora_")}
        added = np.asarray(function(x, trained, frozen, rng)) - function(x, alone, frozen, rng)
        bare = {"weight": np.zeros_like(trained["lora_B"] @ trained["lora_A"])}
        factors = {name: trained[name] for name in ("lora_A", "lora_B")}
        z = dropout(x, frozen["lora_dropout"], rng)
        close(
            added,
            function(z, factors, frozen | bare | {"lora_dropout": 0.0}, None)
            - frozen.get("bias", 0),
            tolerance(),
        )


def property_nothing_at_first(function, x, trained, frozen, rng):
    """with B = 0 the adapter adds nothing"""
    if "lora_A" in trained:
        nothing = {**trained, "lora_B": np.zeros_like(trained["lora_B"])}
        without = {name: w for name, w in trained.items() if not name.startswith("lora_")}
        close(function(x, nothing, frozen, rng), np.asarray(function(x, without, frozen, rng)))

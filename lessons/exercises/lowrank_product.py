"""lowrank-product: a projection with LoRA, by two thin products."""

import numpy as np
from hypothesis import strategies as st

from minilora import nf4
from minilora.course.outcome import close

CASES = {
    "batch": st.integers(1, 2),
    "length": st.integers(1, 3),
    "width": st.integers(2, 5),
    "out": st.integers(2, 5),
    "r": st.integers(1, 3),
    "adapted": st.sampled_from([True, False]),
    "quantized": st.booleans(),
    "bias": st.sampled_from(["none", "frozen", "trained"]),
}


def arguments(rng, batch, length, width, out, r, adapted, quantized, bias):
    x = rng.uniform(-2, 2, (batch, length, width))
    w = rng.uniform(-2, 2, (out, width))
    trained, frozen = {}, {"weight": nf4.quantize(w.astype("f4"), 16) if quantized else w}
    if adapted:
        trained |= {
            "lora_A": rng.uniform(-2, 2, (r, width)),
            "lora_B": rng.uniform(-2, 2, (out, r)),
        }
        frozen |= {"lora_scaling": float(rng.uniform(1.5, 3)), "lora_dropout": 0.0}
    if bias != "none":
        (trained if bias == "trained" else frozen)["bias"] = rng.uniform(-2, 2, out)
    return x, trained, frozen


def tolerance(*_):
    """float64: 5·3 terms of at most 3·2·2·2, some 2⁸ in all, 2⁻⁵³ each; with room, 2⁻⁴²."""
    return 2.0**-42


def property_one_matrix(function, x, trained, frozen):
    """y is (W₀ + s·BA)x + b, where s·BA is formed as a matrix"""
    w = frozen["weight"]
    w = nf4.dequantize(w).astype("f8") if isinstance(w, nf4.Quantized) else w
    if "lora_A" in trained:
        w = w + frozen["lora_scaling"] * (trained["lora_B"] @ trained["lora_A"])  # (out, in)
    bias = (frozen | trained).get("bias", 0)
    close(function(x, trained, frozen), np.einsum("btd,od->bto", x, w) + bias, tolerance())


def property_nothing_at_first(function, x, trained, frozen):
    """with B = 0 the adapter adds nothing"""
    if "lora_A" in trained:
        nothing = {**trained, "lora_B": np.zeros_like(trained["lora_B"])}
        without = {name: w for name, w in trained.items() if not name.startswith("lora_")}
        close(function(x, nothing, frozen), np.asarray(function(x, without, frozen)))

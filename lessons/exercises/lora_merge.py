"""lora-merge: the weight that a projection with its adapter stands for."""

import numpy as np
from hypothesis import strategies as st

from minilora import layers, nf4
from minilora.course.outcome import close
from minilora.methods.operations import MethodOps

CASES = {
    "rows": st.integers(1, 6),
    "width": st.integers(1, 6),
    "r": st.integers(1, 3),
    "alpha": st.sampled_from([1.0, 3.0, 16.0]),
    "quantized": st.booleans(),
    "stacked": st.integers(0, 2),
    "magnitudes": st.booleans(),
}


def arguments(rng, rows, width, r, alpha, quantized, stacked, magnitudes):
    def factors():
        a, b = rng.uniform(-1, 1, (r, width)), rng.uniform(-1, 1, (rows, r))
        return {"lora_A": a.astype("f4"), "lora_B": b.astype("f4")}

    weight = rng.uniform(-1, 1, (rows, width)).astype("f4")
    fixed = {"lora_scaling": alpha / r, "lora_dropout": 0.0}
    trained = factors()
    frozen = {"weight": nf4.quantize(weight) if quantized else weight, **fixed}
    if stacked:
        frozen["lora_stack"] = {str(n): {**factors(), **fixed} for n in range(stacked)}
    elif magnitudes:  # DoRA cannot stand upon another adapter
        trained["lora_magnitude_vector"] = rng.uniform(0.5, 2, rows).astype("f4")
    return trained, frozen


def tolerance(trained, frozen):
    """|W₀| ≤ 1, and each of three updates is at most 16·3: sums of some 12 terms, 2⁻²⁴ each; DoRA
    divides by a norm, and what is multiplied again is at most 2."""
    return 12 * 2**-24 * (1 + 3 * 48)


def property_merging_is_an_equation(function, trained, frozen):
    """x W'ᵀ is what the projection with its adapter computes"""
    x = np.eye(frozen["weight"].shape[1], dtype=np.float32)
    merged = np.asarray(function(trained, frozen))
    close(x @ merged.T, MethodOps(layers).linear(x, trained, frozen), tolerance(trained, frozen))


def property_no_update_no_change(function, trained, frozen):
    """with B = 0 the merged weight is W₀, dense"""
    if "lora_stack" not in frozen and "lora_magnitude_vector" not in trained:
        nothing = {**trained, "lora_B": np.zeros_like(trained["lora_B"])}
        close(function(nothing, frozen), layers.dense(frozen["weight"]))

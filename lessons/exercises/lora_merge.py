"""lora-merge: compute the merged weight of a projection.

`trained` and `frozen` are the nodes of one projection. Begin with its weight,
dense(tree.trained_or_frozen(trained, frozen, "weight")): a trained `weight` replaces the frozen
one. Then, for the leaves that exist:

1. frozen["lora_stack"], a dict: add `lora.delta(node, node)` for each node in it;
2. "lora_A" in trained: add `lora.delta(trained, frozen)`, which is lora_scaling · BA;
3. "lora_magnitude_vector" (out,) in trained: multiply each row of the sum by its magnitude divided
   by its norm, `row_norms(trained, frozen)`;
4. "ia3_l" in trained, (out, 1) or (1, in): multiply by it.

Return the dense weight (out, in).
"""

import numpy as np

from minilora import layers, nf4
from minilora.course.outcome import close
from minilora.methods.registry import MethodOps

CASES = {
    "rows": (2, 6),
    "width": (2, 6),
    "r": (2, 3),
    "alpha": [1.0, 3.0, 16.0],
    "quantized": [False, True],
    "stacked": (0, 2),
    "magnitudes": [False, True],
    "factors": [True, False],
    "replaced": [False, True],
    "ia3": ["none", "rows", "columns"],
}
HIDDEN = {"rows": (7, 9), "width": (7, 12), "r": (4, 5)}


def arguments(rng, rows, width, r, alpha, quantized, stacked, magnitudes, factors, replaced, ia3):
    def drawn():
        a, b = rng.uniform(-1, 1, (r, width)), rng.uniform(-1, 1, (rows, r))
        return {"lora_A": a.astype("f4"), "lora_B": b.astype("f4")}

    weight = rng.uniform(-1, 1, (rows, width)).astype("f4")
    fixed = {"lora_scaling": alpha / r, "lora_dropout": 0.0}
    trained = drawn() if factors else {}
    frozen = {"weight": nf4.quantize(weight) if quantized else weight, **fixed}
    if stacked:
        frozen["lora_stack"] = {
            str(n): {**drawn(), **fixed, "lora_scaling": 0.5 + n} for n in range(stacked)
        }
    elif magnitudes and factors:  # DoRA cannot be trained on top of another adapter
        trained["lora_magnitude_vector"] = rng.uniform(0.5, 2, rows).astype("f4")
    if replaced and ia3 == "none":
        trained["weight"] = rng.uniform(-1, 1, (rows, width)).astype("f4")
    if ia3 != "none":
        shape = (rows, 1) if ia3 == "rows" else (1, width)
        trained["ia3_l"] = rng.uniform(0.5, 2, shape).astype("f4")
    return trained, frozen


def tolerance(trained, frozen):
    """|W₀| ≤ 1, and each of three updates is at most 16·3: sums of some 12 terms, 2⁻²⁴ each; DoRA
    divides by a norm, and what is multiplied again is at most 2."""
    return 12 * 2**-24 * (1 + 3 * 48)


def property_merging_is_an_equation(function, trained, frozen):
    """x W'ᵀ equals the output of the projection with its adapter"""
    x = np.eye(frozen["weight"].shape[1], dtype=np.float32)
    merged = np.asarray(function(trained, frozen))
    close(x @ merged.T, MethodOps(layers).linear(x, trained, frozen), tolerance(trained, frozen))


def property_no_update_no_change(function, trained, frozen):
    """with B = 0 the merged weight is W₀, dense"""
    if "lora_stack" not in frozen and set(trained) == {"lora_A", "lora_B"}:
        nothing = {**trained, "lora_B": np.zeros_like(trained["lora_B"])}
        close(function(nothing, frozen), layers.dense(frozen["weight"]))

"""one-file-mlp: apply the gated feed-forward layer.

gate and up are `linear(x, f"{layer}.mlp.gate_proj", params)`, and the same with up_proj. Return
`linear` of gate·σ(gate)·up with f"{layer}.mlp.down_proj", where σ(a) = 1/(1 + e⁻ᵃ). x and the
result are (N, T, D). autograd must be able to differentiate it by x: use autograd.numpy, and do not
assign into arrays.
"""

import math

import numpy as np

from minilora.course import one_file
from minilora.course.outcome import close
from minilora.course.students.exercises import load

CASES = {"layer": [0, 1], "batch": range(1, 3), "length": range(1, 4), "half": range(1, 4)}
HIDDEN = {"length": range(4, 8), "half": range(4, 7)}


def arguments(rng, layer, batch, length, half):
    adapters, base, _ = load()["one-file-forward"].checks.make_model(rng, 2, 2, half)
    x = rng.uniform(-2, 2, (batch, length, 4 * half))
    params = {name: w for name, w in {**base, **adapters}.items() if f".{layer}.mlp." in name}
    return x, f"model.layers.{layer}", params


def tolerance(*_):
    """float64: three products of at most 72 terms with results of at most 10⁴."""
    return 2.0**-32


def property_both_signs(function, x, layer, params):
    """y(gate) − y(−gate) is down_proj of gate·up, since σ(a) + σ(−a) = 1"""
    gate, up = (one_file.linear(x, f"{layer}.mlp.{n}_proj", params) for n in ("gate", "up"))
    turned = {f"{layer}.mlp.gate_proj": -1, f"{layer}.mlp.gate_proj.lora_B": -1}
    negative = {name: turned.get(name, 1) * w for name, w in params.items()}
    negated = np.asarray(function(x, layer, negative))
    both = function(x, layer, params) - negated  # the last call is the one that a check shows
    close(both, one_file.linear(gate * up, f"{layer}.mlp.down_proj", params), 2 * tolerance())


def mistake_gelu(x, layer, params):
    gate, up = (one_file.linear(x, f"{layer}.mlp.{n}_proj", params) for n in ("gate", "up"))
    normal = 0.5 * (1 + np.vectorize(math.erf)(gate / 2**0.5))
    return one_file.linear(gate * normal * up, f"{layer}.mlp.down_proj", params)

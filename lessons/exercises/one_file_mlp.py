"""one-file-mlp: apply the gated feed-forward layer.

gate and up are `linear(x, f"{layer}.mlp.gate_proj", params)`, and the same with up_proj. Return
`linear` of gate·σ(gate)·up with f"{layer}.mlp.down_proj", where σ(a) = 1/(1 + e⁻ᵃ). x and the
result are (N, T, D).
"""

import numpy as np

from minilora.course.outcome import close
from minilora.course.students.exercises import load

CASES = {"batch": range(1, 3), "length": range(1, 4), "half": range(1, 4)}
HIDDEN = {"length": range(4, 8), "half": range(4, 7)}


def arguments(rng, batch, length, half):
    adapters, base, _ = load()["one-file-forward"].checks.make_model(rng, 1, 2, half)
    x = rng.uniform(-2, 2, (batch, length, 4 * half))
    return x, "model.layers.0", {**base, **adapters}


def tolerance(*_):
    """float64: three products of at most 72 terms with results of at most 10⁴."""
    return 2.0**-32


def property_token_by_token(function, x, layer, params):
    """each token is computed from itself alone"""
    whole = np.asarray(function(x, layer, params))
    close(whole[:, :1], np.asarray(function(x[:, :1], layer, params)), 2.0**-32)

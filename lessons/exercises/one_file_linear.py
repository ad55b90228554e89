"""one-file-linear: apply a projection with its LoRA adapter.

Compute h = W₀x + (α/r)·BAx, with α = ALPHA and r = RANK. W₀ is params[path], and
`matmul(x, params[path])` multiplies x (…, in) by it. If `params` has f"{path}.lora_A" (r, in), it
also has f"{path}.lora_B" (out, r). Without them, h = W₀x. Return h (…, out). Every order of the
products passes, but multiply from left to right: x Aᵀ has r numbers per token, while BA has as many
as W₀. autograd must be able to differentiate it by x, so do not assign into arrays.
"""

import numpy as np

from minilora.course.one_file import RANK, dense, quantize
from minilora.course.outcome import close

# where sizes equal RANK, a product without its transposition has values, which tell it apart
CASES = {
    "layer": [0, 2],
    "rows": range(1, 4),
    "axes": [2, 3],
    "tokens": [2, RANK],
    "out": [RANK, 16],
    "width": [RANK, 64],
    "kind": ["dense", "nf4"],
    "adapted": [True, True, False],
}
HIDDEN = {"rows": range(4, 7), "out": [48], "width": [128, 96]}


def arguments(rng, layer, rows, axes, tokens, out, width, kind, adapted):
    w, path = rng.standard_normal((out, width)), f"model.layers.{layer}.mlp.up_proj"
    params = {path: w if kind == "dense" else quantize(w.astype("f4"))}
    a, b = rng.uniform(-1, 1, (RANK, width)), rng.uniform(-1, 1, (out, RANK))
    if adapted:
        params |= {f"{path}.lora_A": a, f"{path}.lora_B": b}
    params["model.layers.1.mlp.up_proj.lora_A"] = np.ones((RANK, width))  # another projection's
    return rng.uniform(-2, 2, (rows, tokens, width)[-axes:]), path, params


def tolerance(x, *_):
    """float64: sums of 128·8 terms of at most 8, in any order."""
    return 2.0**-35


def with_b(params, factor):
    """Return params with the B's times `factor`."""
    return {name: factor * w if "lora_B" in name else w for name, w in params.items()}


def property_b_zero(function, x, path, params):
    """with B = 0, h is W₀x"""
    h = np.einsum("...i,oi->...o", x, dense(params[path]).astype("f8"))
    close(function(x, path, with_b(params, 0)), h, 2.0**-35)


def property_twice_b(function, x, path, params):
    """twice B adds twice as much to W₀x"""
    zero, once, twice = (np.asarray(function(x, path, with_b(params, k))) for k in (0, 1, 2))
    close(twice - zero, 2 * (once - zero), 2.0**-33)
    assert (once != zero).any() == (f"{path}.lora_A" in params), "B has no effect, or a wrong one"
    assert zero.any(), "h is zero"

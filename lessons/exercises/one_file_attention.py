"""one-file-attention: let each token collect from earlier tokens.

x is (N, T, D). hd is config["head_dim"], and there are H = D/hd heads.

1. q, k and v are `linear(x, f"{layer}.self_attn.q_proj", params)`, and the same with k_proj and
   v_proj. Element hd·h + i of the last axis is element i of head h.
2. Rotate q and k with `apply_rope(·, config["rope_theta"])`, which takes (N, H, T, hd).
3. The scores are q·k/√hd. Token t sees the tokens 0 to t. Apply the softmax over them, without
   overflow for large scores, and multiply by v.
4. Put the heads side by side again, (N, T, D), and apply f"{layer}.self_attn.o_proj" with `linear`.

Return (N, T, D).
"""

import numpy as np

from minilora.course.outcome import close
from minilora.course.students.exercises import load

CASES = {
    "batch": range(1, 3),
    "length": range(1, 6),
    "heads": range(1, 4),
    "half": range(1, 3),
    "large": [False, True],
}
HIDDEN = {"length": range(6, 10), "heads": range(2, 5), "half": range(3, 5)}


def arguments(rng, batch, length, heads, half, large):
    make = load()["one-file-forward"].checks.make_model
    adapters, base, config = make(rng, 1, heads, half)
    x = rng.uniform(-2, 2, (batch, length, 2 * half * heads)) * (30 if large else 1)
    return x, "model.layers.0", {**base, **adapters}, config


def tolerance(x, *_):
    """float64. Scores of up to 10⁶ have errors of 2⁻³³; angles are shared with the reference."""
    return 2.0**-26 * (1 + float(np.abs(x).max())) ** 2


def property_causal(function, x, layer, params, config):
    """a change of the last token does not change earlier outputs"""
    other = x.copy()
    other[:, -1] += 1
    a, b = (np.asarray(function(y, layer, params, config)) for y in (x, other))
    close(b[:, :-1], a[:, :-1], tolerance(x))

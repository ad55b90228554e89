"""one-file-attention: let each token collect from earlier tokens.

x is (N, T, D). hd is config["head_dim"], and there are H = D/hd heads.

1. q, k and v are `linear(x, f"{layer}.self_attn.q_proj", params)`, and the same with k_proj and
   v_proj. Element hd·h + i of the last axis is element i of head h.
2. Rotate q and k with `apply_rope(·, config["rope_theta"])`, which takes (N, H, T, hd).
3. The scores are q·k/√hd. Token t sees the tokens 0 to t. Apply the softmax over them, without
   overflow for large scores, and multiply by v.
4. Put the heads side by side again, (N, T, D), and apply f"{layer}.self_attn.o_proj" with `linear`.

Return (N, T, D). autograd must be able to differentiate it by x: use autograd.numpy, and do not
assign into arrays.
"""

import numpy as np

from minilora.course import one_file
from minilora.course.outcome import close
from minilora.course.students.exercises import load

CASES = {
    "layer": [0, 1],
    "batch": range(1, 3),
    "length": range(1, 6),
    "heads": range(1, 4),
    "half": range(1, 3),
    "large": [False, True],
}
HIDDEN = {"length": range(6, 10), "heads": range(2, 5), "half": range(3, 5)}


def arguments(rng, layer, batch, length, heads, half, large):
    make = load()["one-file-forward"].checks.make_model
    adapters, base, config = make(rng, 2, heads, half)
    x = rng.uniform(-2, 2, (batch, length, 2 * half * heads)) * (30 if large else 1)
    return x, f"model.layers.{layer}", {**base, **adapters}, config


def tolerance(x, *_):
    """float64. Scores of up to 10⁶ have errors of 2⁻³³; angles are shared with the reference."""
    return 2.0**-26 * (1 + float(np.abs(x).max())) ** 2


def property_causal(function, x, layer, params, config):
    """a change of the last token does not change earlier outputs, and token 0 sees only itself"""
    other = x.copy()
    other[:, -1] += 1
    a, b = (np.asarray(function(y, layer, params, config)) for y in (x, other))
    close(b[:, :-1], a[:, :-1], tolerance(x))
    first = one_file.linear(x[:, :1], f"{layer}.self_attn.v_proj", params)
    close(a[:, :1], one_file.linear(first, f"{layer}.self_attn.o_proj", params), tolerance(x))


def attend(x, layer, params, config, weigh, swap=(0, 2, 1, 3)):
    """Compute attention with weigh(scores) for the softmax, and another exchange of the axes."""
    N, T, D = x.shape
    q, k, v = (one_file.linear(x, f"{layer}.self_attn.{n}_proj", params) for n in "qkv")
    hd = config["head_dim"]
    shape = (N, T, D // hd, hd) if swap[1] == 2 else (N, D // hd, T, hd)
    q, k, v = (np.transpose(np.reshape(y, shape), swap) for y in (q, k, v))
    q, k = (one_file.apply_rope(y, config["rope_theta"]) for y in (q, k))
    p = weigh(q @ np.swapaxes(k, -1, -2) / hd**0.5)
    mixed = np.transpose(p @ v, swap).reshape(x.shape)
    return one_file.linear(mixed, f"{layer}.self_attn.o_proj", params)


def softmax(scores):
    p = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return p / np.sum(p, axis=-1, keepdims=True)


def mistake_mask_after_the_softmax(x, layer, params, config):
    mask = np.tri(x.shape[1])
    return attend(x, layer, params, config, lambda scores: softmax(scores) * mask)


def mistake_heads_cut_wrong(x, layer, params, config):
    def weigh(scores):
        return softmax(np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf))

    return attend(x, layer, params, config, weigh, (0, 1, 2, 3))


def mistake_largest_not_subtracted(x, layer, params, config):
    def weigh(scores):
        p = np.exp(scores) * np.tri(x.shape[1])
        return p / np.sum(p, axis=-1, keepdims=True)

    return attend(x, layer, params, config, weigh)

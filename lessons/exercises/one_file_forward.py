"""one-file-forward: compute the logits of a Llama.

1. `params` is {**base, **adapters}, one dict with the entries of both. (The dicts of autograd do
   not know the operator |.)
2. x is params["model.embed_tokens"][tokens], (N, T, D), with tokens (N, T).
3. For i from 0 to config["num_hidden_layers"] − 1, layer = f"model.layers.{i}":
   x ← x + attention(h, layer, params, config), with h = rms_norm(x, w, config) and
   w = params[f"{layer}.input_layernorm"]; then x ← x + mlp(h, layer, params), with h the norm of
   the new x and w = params[f"{layer}.post_attention_layernorm"].
4. Return the logits (N, T, V): `rms_norm` of x with params["model.norm"], times the transpose of
   params["model.embed_tokens"] (V, D).

autograd must be able to differentiate it by `adapters`, so do not assign into arrays.
"""

import numpy as np

from minilora.course.one_file import RANK, rms_norm
from minilora.course.outcome import close

CASES = {"batch": range(1, 3), "length": range(1, 5), "layers": range(1, 4), "half": range(1, 3)}
HIDDEN = {"length": range(5, 9), "layers": range(2, 5), "half": range(3, 5)}


def make_model(rng, layers, heads, half, vocab=11):
    """Return (adapters, base, config) of a small model with D = 2·half·heads and random weights."""
    width = 2 * half * heads
    config = {"num_hidden_layers": layers, "head_dim": 2 * half, "rope_theta": 100.0,
              "rms_norm_eps": 0.1, "vocab_size": vocab}  # fmt: skip
    base = {"model.embed_tokens": rng.uniform(-1, 1, (vocab, width)),
            "model.norm": rng.uniform(0.5, 2, width)}  # fmt: skip
    adapters = {}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            base[f"{layer}.{name}"] = rng.uniform(0.5, 2, width)
        shapes = {f"self_attn.{n}_proj": (width, width) for n in "qkvo"}
        shapes |= {f"mlp.{n}_proj": (3 * width, width) for n in ("gate", "up")}
        for name, shape in (shapes | {"mlp.down_proj": (width, 3 * width)}).items():
            path = f"{layer}.{name}"
            base[path] = rng.uniform(-1, 1, shape) / shape[1] ** 0.5
            adapters[f"{path}.lora_A"] = rng.uniform(-1, 1, (RANK, shape[1])) / shape[1] ** 0.5
            adapters[f"{path}.lora_B"] = rng.uniform(-0.5, 0.5, (shape[0], RANK))
    return adapters, base, config


def arguments(rng, batch, length, layers, half):
    adapters, base, config = make_model(rng, layers, 2, half)
    return adapters, base, rng.integers(0, 11, (batch, length)), config


def tolerance(*_):
    """float64: at most four layers, each of which may amplify an error of 2⁻⁵⁰ some 100 times."""
    return 2.0**-24


def property_causal(function, adapters, base, tokens, config):
    """the last token changes the logits of the last position, and of no earlier one"""
    other = tokens.copy()
    other[:, -1] = (tokens[:, -1] + 1) % 11
    a, b = (np.asarray(function(adapters, base, t, config)) for t in (tokens, other))
    assert a.shape == (*tokens.shape, 11), f"logits of the shape {a.shape}"
    close(b[:, :-1], a[:, :-1], 2.0**-24)
    assert (b[:, -1] != a[:, -1]).any(), "the last logits have not changed"


def property_without_sublayers(function, adapters, base, tokens, config):
    """if o_proj and down_proj are zero, the logits are those of the normalized embeddings"""
    ends = ("o_proj", "down_proj")
    without = {name: 0 * w if name.endswith(ends) else w for name, w in base.items()}
    x = base["model.embed_tokens"][tokens]
    expected = rms_norm(x, base["model.norm"], config) @ base["model.embed_tokens"].T
    close(function({}, without, tokens, config), expected, 2.0**-40)

"""memory-estimate: estimate the memory of a training step.

Return a dict of bytes with exactly these keys:

- "frozen weights": the bytes of the base as it is stored, `nbytes(model.base)`;
- "trained weights": four bytes per parameter of the adapters (`num_parameters`);
- "their gradients": the same number;
- "Adam's two moments": ADAM_FLOATS float32 numbers per trained parameter;
- "activations": tokens times `activation_floats(adapters, model.config)` float32 numbers.
"""

import numpy as np

from minilora import nf4
from minilora.config import ModelConfig
from minilora.model import Model

CASES = {
    "layers": range(1, 4),
    "r": range(1, 5),
    "tokens": range(1, 65),
    "quantized": [False, True],
}
HIDDEN = {"layers": range(4, 7), "r": range(5, 10), "tokens": range(65, 1000)}


def arguments(rng, layers, r, tokens, quantized):
    config = ModelConfig(32, 16, 24, layers, 2, 1, 8)

    def weight():
        w = rng.uniform(-1, 1, (16, 16)).astype("f4")
        return nf4.quantize(w) if quantized else w

    def factors():
        return {"lora_A": np.ones((r, 16), "f4"), "lora_B": np.zeros((16, r), "f4")}

    def tree(leaf):
        nodes = {str(i): {"self_attn": {"q_proj": leaf()}} for i in range(layers)}
        return {"model": {"layers": nodes}}

    base = tree(lambda: {"weight": weight()})
    return tree(factors), Model(config, base, ops=None), tokens  # a module cannot be pickled


def property_only_the_activations_grow(function, adapters, model, tokens):
    """twice as many tokens double the activations and change nothing else"""
    once, twice = (function(adapters, model, n) for n in (tokens, 2 * tokens))
    changed = {part for part in once if once[part] != twice[part]}
    assert changed == {"activations"}, f"these parts changed: {sorted(changed)}"
    assert twice["activations"] == 2 * once["activations"]


def property_twelve_bytes(function, adapters, model, tokens):
    """a trained parameter needs 4 bytes, its gradient 4, and the moments of Adam 8"""
    parts = function(adapters, model, tokens)
    trained = sum(
        w.size for layer in adapters["model"]["layers"].values()
        for w in layer["self_attn"]["q_proj"].values()
    )  # fmt: skip
    names = ("trained weights", "their gradients", "Adam's two moments")
    assert [parts[name] / trained for name in names] == [4, 4, 8]

"""One training step in a process of its own: its peak memory, measured and predicted.

python -m minilora.lessons.helpers.one_step SCHEME LAYERS prints, in MB, by how much the
process grew, what the estimate predicts, and how much of that is activations.
The study `the_memory_of_a_step` runs it.
"""

import sys

import numpy as np

import minilora
from minilora import LoraConfig, ModelConfig, TrainConfig, kernels, optim
from minilora.evaluation import memory
from minilora.formats.hf_folder import shapes
from minilora.layers import value_and_grad
from minilora.quant.schemes import is_projection, quantize_leaf
from minilora.tree import arrays, flatten, unflatten

B, T = 4, 64


def step(scheme, width, layers):
    """Do a step of LoRA on a random Llama of width `width`, and return its estimate."""
    heads = width // 64
    config = ModelConfig(
        vocab_size=256, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=64,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    leaves = {}
    for path, shape in shapes(config).items():  # never two dense weights at once
        w = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        leaves[path] = quantize_leaf(path, w, scheme) if is_projection(path) else w
    model = minilora.Model(config, unflatten(leaves), kernels.ops)
    lora_config = LoraConfig(target_modules="all-linear")
    adapters, model = minilora.get_peft_model(model, lora_config, rng)
    tokens = rng.integers(256, size=(B, T))
    batch = {"tokens": tokens, "targets": tokens, "mask": np.ones((B, T), np.float32)}
    batch["segment_starts"] = 0 * tokens
    _, gradient = value_and_grad(minilora.loss)(adapters, model, batch)
    trained = arrays(adapters)
    rates = dict.fromkeys(flatten(trained), 1e-3)
    optim.adamw(trained, gradient, optim.adamw_init(trained), rates, TrainConfig())
    return memory.memory_estimate(adapters, model, B * T)


if __name__ == "__main__":
    scheme, layers = sys.argv[1], int(sys.argv[2])
    step(scheme, 128, 1)  # so that the kernels are loaded
    before = memory.peak_rss_mb()
    predicted = step(scheme, 512, layers)
    print(
        memory.peak_rss_mb() - before, sum(predicted.values()) / 1e6, predicted["activations"] / 1e6
    )

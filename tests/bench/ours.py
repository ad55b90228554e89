"""The cases of minilora: `python tests/bench/ours.py FOLDER CASE [ARGUMENTS]`; see __main__.py."""

from dataclasses import replace

import numpy as np
from cases import (
    BATCH,
    LENGTH,
    NEW_TOKENS,
    PROMPT,
    SMALL,
    SMALL_SHAPE,
    main,
    report,
    tokens,
    weight,
)

import minilora
from minilora import LoraConfig, Model, ModelConfig, TrainConfig, kernels, training
from minilora.batching import Example
from minilora.kernels import nf4, weights
from minilora.lessons.helpers.pretraining import random_params
from minilora.optim import clip


def step(model, targets, rows=BATCH, length=LENGTH, checkpointing=False):
    """Return a training step without arguments: loss, gradient, clip and AdamW."""
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    adapters, model = minilora.get_peft_model(model, lora_config, rng=0)
    settings = TrainConfig(batch_size=rows, gradient_checkpointing=checkpointing)
    ids = tokens(model.config.vocab_size, rows, length + 1).tolist()
    examples = [[Example(row, [1] * len(row))] for row in ids]
    state = minilora.start(adapters, settings)

    def run():
        nonlocal state
        _, grads, _ = training.gradient_at(state.adapters, model, examples, 0, settings)
        grads, _ = clip(grads, settings.max_grad_norm)
        state = training.update(state, grads, settings.learning_rate, settings)

    return run


def lora_step(folder, targets, scheme="none", option=""):
    """option: `checkpointed`; `bfloat16` for products, and for the storage of a dense base; and for
    the embedding of the other side, `embedding32`, or `embedding16` (with those products)."""
    low_precision = not option.startswith("embedding")
    dtype = "bfloat16" if option in ("bfloat16", "embedding16") else "float32"
    model = minilora.load("smollm2", scheme, None, low_precision, dtype).model
    names = tuple(targets.split(","))
    report(step(model, names, checkpointing=option == "checkpointed"), repeat=5)


def small_step(folder):
    config = ModelConfig(**SMALL, head_dim=SMALL["hidden_size"] // SMALL["num_attention_heads"])
    model = Model(config, random_params(config, np.random.default_rng(0)), kernels.ops)
    report(step(model, ("q_proj", "v_proj"), *SMALL_SHAPE), repeat=50)


def quantize(folder, rows, columns):
    w = weight(rows, columns)
    report(lambda: nf4.quantize(w), repeat=30)


def dequantize(folder, rows, columns):
    q = nf4.quantize(weight(rows, columns))
    report(lambda: weights.dense(q), repeat=100)


def matvec(folder):
    q = nf4.quantize(weight(4096, 4096))
    x = weight(1, 4096)[0]
    report(lambda: weights.matvec(q, x), repeat=50)


def generate(folder, scheme):
    model, _ = minilora.load("smollm2", scheme, low_precision=True)
    endless = model._replace(config=replace(model.config, eos_token_id=()))
    report(lambda: list(minilora.generate({}, endless, PROMPT, max_tokens=NEW_TOKENS)), repeat=3)


if __name__ == "__main__":
    main(lora_step, small_step, quantize, dequantize, matvec, generate)

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
from minilora.tree import named_leaves


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


def products(folder, targets):
    """Only the matrix products of a step, as many and in the same shapes, in NumPy.

    Forward y = xWᵀ; backward ∂L/∂x = gW, and for the factors xAᵀ again, ∂L/∂A and ∂L/∂B. Attention
    per head: QKᵀ and PV; backward QKᵀ again, gVᵀ, dS·K, dSᵀ·Q and Pᵀg.
    """
    model, _ = minilora.load("smollm2", low_precision=False)
    rng = np.random.default_rng(0)
    rows = BATCH * LENGTH
    weights = [(path.split(".")[-2], w) for path, w in named_leaves(model.base) if w.ndim == 2]
    x = {n: rng.standard_normal((rows, n), np.float32) for _, w in weights for n in w.shape}
    x[8] = rng.standard_normal((rows, 8), np.float32)
    heads = BATCH * model.config.num_attention_heads
    q = rng.standard_normal((heads, LENGTH, model.config.head_dim), np.float32)
    p = rng.standard_normal((heads, LENGTH, LENGTH), np.float32)

    def run():
        for name, w in weights:
            out, width = w.shape
            x[width] @ w.T
            x[out] @ w
            if name in targets.split(","):
                a, b = w[:8], w[:, :8]
                for _ in range(2):
                    x[width] @ a.T
                x[8] @ b.T
                x[out] @ b
                x[8] @ a
                x[out].T @ x[8]
                x[8].T @ x[width]
        for _ in range(model.config.num_hidden_layers):
            for _ in range(3):
                q @ q.swapaxes(1, 2)
            for _ in range(4):
                p @ q

    report(run, repeat=5)


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
    main(lora_step, small_step, products, quantize, dequantize, matvec, generate)

"""The cases of minilora: `python tests/bench/ours.py FOLDER CASE [ARGUMENTS]`; see __main__.py."""

import numpy as np
from cases import (
    BATCH,
    LENGTH,
    NEW_TOKENS,
    PROMPT,
    SMALL,
    SMALL_BATCH,
    SMALL_LENGTH,
    main,
    report,
    tokens,
    weight,
)

import minilora
from lessons.helpers.pretraining import random_params
from minilora import LoraConfig, ModelConfig, TrainConfig, kernels, training
from minilora.batching import Example
from minilora.kernels import nf4, weights
from minilora.optim import adamw_init, clip
from minilora.tree import arrays, named_leaves


def step(config, base, targets, rows=BATCH, length=LENGTH, checkpointing=False):
    """Return a training step without arguments: loss, gradient, clip and AdamW."""
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    adapters, base = minilora.get_peft_model(base, lora_config, rng=0)
    settings = TrainConfig(batch_size=rows, gradient_checkpointing=checkpointing)
    ids = tokens(config.vocab_size, rows, length + 1).tolist()
    examples = [[Example(row, [1] * len(row))] for row in ids]
    ops = minilora.operations(adapters, base)
    parallel_map, shards = kernels.parallel(ops, 0)
    now = [adapters, adamw_init(arrays(adapters))]

    def run():
        _, grads, _ = training.gradient_at(
            now[0], base, examples, 0, config, settings, ops, parallel_map, shards
        )
        grads, _ = clip(grads, settings.max_grad_norm)
        now[:] = training.update(now[0], grads, now[1], settings.learning_rate, settings)

    return run


def lora_step(folder, targets, scheme="none", option=""):
    """option: `checkpointed`, or `embedding32` for a float32 embedding as on the other side."""
    low_precision = option != "embedding32"
    config, base, _ = minilora.load("smollm2", scheme, low_precision=low_precision)
    names = tuple(targets.split(","))
    report(step(config, base, names, checkpointing=option == "checkpointed"), repeat=5)


def small_step(folder):
    config = ModelConfig(**SMALL, head_dim=SMALL["hidden_size"] // SMALL["num_attention_heads"])
    base = random_params(config, np.random.default_rng(0))
    report(step(config, base, ("q_proj", "v_proj"), SMALL_BATCH, SMALL_LENGTH), repeat=50)


def products(folder, targets):
    """Only the matrix products of a step, as many and in the same shapes, in NumPy.

    Forward y = xWᵀ; backward ∂L/∂x = gW, and for the factors xAᵀ again, ∂L/∂A and ∂L/∂B. Attention
    per head: QKᵀ and PV; backward QKᵀ again, gVᵀ, dS·K, dSᵀ·Q and Pᵀg.
    """
    config, base, _ = minilora.load("smollm2", low_precision=False)
    rng = np.random.default_rng(0)
    rows = BATCH * LENGTH
    weights = [(path.split(".")[-2], w) for path, w in named_leaves(base) if w.ndim == 2]
    x = {n: rng.standard_normal((rows, n), np.float32) for _, w in weights for n in w.shape}
    x[8] = rng.standard_normal((rows, 8), np.float32)
    heads = BATCH * config.num_attention_heads
    q = rng.standard_normal((heads, LENGTH, config.head_dim), np.float32)
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
        for _ in range(config.num_hidden_layers):
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
    config, base, _ = minilora.load("smollm2", scheme, low_precision=True)
    endless = ModelConfig(**{**vars(config), "eos_token_id": ()})
    report(
        lambda: list(minilora.generate({}, base, PROMPT, endless, max_tokens=NEW_TOKENS)), repeat=3
    )


if __name__ == "__main__":
    main(lora_step, small_step, products, quantize, dequantize, matvec, generate)

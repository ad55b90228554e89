"""What minilora takes: `python tests/bench/ours.py CASE FOLDER [ARGUMENTS]` prints one JSON object.

FOLDER holds SmolLM2-135M-Instruct in float32, for transformers; here it is read from the file that
was fetched. Every case runs in a process of its own, so that its peak memory is its own.
"""

import cProfile
import json
import pstats
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "lessons"))

from cases import ADAM, BATCH, LENGTH, SMALL, SMALL_BATCH, prompt, report, seconds, tokens
from sweeps.pretraining import random_params

import minilora
from minilora import LoraConfig, ModelConfig, TrainConfig, training
from minilora.batching import Example
from minilora.config import ALL_LINEAR
from minilora.kernels import (
    fused_attention,
    fused_loss,
    fused_projection,
    nf4,
    num_threads,
    ops,
    parallel_map,
    weights,
)
from minilora.kernels.threads import THREADS
from minilora.optim import adamw_init, clip
from minilora.tree import arrays

PARTS = {  # functions whose own time is products with the NumPy around them
    "weights": (weights.tiled_matmul, weights.tiled_matmul_backward),
    "factors": (fused_projection.project, fused_projection.project_backward,
                fused_projection.down_project),
    "attention": (fused_attention.attention_forward, fused_attention.attention_backward,
                  fused_attention.probabilities),
    "head": (fused_loss._log_z, fused_loss._head_gradient),
}  # fmt: skip
WAITING = ("~", "<method 'acquire' of '_thread.lock' objects>")


def examples(vocab, rows, length):
    # lists, as from encode_rows: a mask of NumPy integers would make the gradient float64
    ids = tokens(vocab, rows, length + 1).tolist()
    return [[Example(row, [1] * len(row))] for row in ids]


def step(config, base, targets, rows=BATCH, length=LENGTH, checkpointing=False):
    """One whole training step, as a function without arguments: loss, gradient, clip, AdamW."""
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    adapters, base = minilora.get_peft_model(base, lora_config, np.random.default_rng(0))
    settings = TrainConfig(**ADAM, batch_size=rows, gradient_checkpointing=checkpointing)
    sequences = examples(config.vocab_size, rows, length)
    kept = [adapters, adamw_init(arrays(adapters))]

    def run():
        loss, grads, _ = training.gradient_at(
            kept[0], base, sequences, 0, config, settings, ops, parallel_map, num_threads()
        )
        grads, _ = clip(grads, settings.max_grad_norm)
        kept[:] = training.update(kept[0], grads, kept[1], settings.learning_rate, settings)
        return loss

    return run


def of_smollm2(folder, targets="q_proj,v_proj", scheme="none", *options):
    """options: `checkpointed`, and `embedding32` for a float32 embedding as on the other side."""
    targets = ALL_LINEAR if targets == "all" else tuple(targets.split(","))
    # stored as `minilora train` does; without the tokenizer, which the other side lacks too
    low_precision = "embedding32" not in options
    config, base = minilora.load("smollm2", scheme, low_precision=low_precision)[:2]
    return step(config, base, targets, checkpointing="checkpointed" in options)


def of_small(folder):
    config = ModelConfig(**SMALL, head_dim=SMALL["hidden_size"] // SMALL["num_attention_heads"])
    base = random_params(config, np.random.default_rng(0))
    return step(config, base, ("q_proj", "v_proj"), *SMALL_BATCH)


def lora_step(folder, *arguments):
    report(seconds(of_smollm2(folder, *arguments)))


def small_step(folder):
    report(seconds(of_small(folder), repeat=50))


def profile(folder, name, *arguments):
    """Where one of the cores spends a step: seconds of products with weights, of loops, and so on.

    Seen by a profiler, which makes Python's calls slower: without it "the rest" is less.
    """
    run = {"lora": of_smollm2, "small": of_small}[name](folder, *arguments)
    run()
    profiler, steps = cProfile.Profile(), 5 if name == "lora" else 100
    began = time.perf_counter()
    profiler.runcall(lambda: [run() for _ in range(steps)])
    whole = (time.perf_counter() - began) / steps
    mine = [vars(module).values() for key, module in sys.modules.items() if "minilora" in key]
    loops = [f.py_func for values in mine for f in values if hasattr(f, "py_func")]
    part_of = {
        (function.__code__.co_filename, function.__code__.co_name): part
        for part, functions in {**PARTS, "loops": loops}.items()
        for function in functions
    }
    part_of[WAITING] = "waiting"
    parts = dict.fromkeys(part_of.values(), 0.0)
    for (path, _, function), (_, _, own, *_) in pstats.Stats(profiler).stats.items():
        if part := part_of.get((path, function)):
            parts[part] += own / steps
    print(json.dumps({**parts, "rest": whole - sum(parts.values()), "seconds": whole}))


def first_loss(folder):
    """From the shell to the first loss, the GGUF file as it was fetched."""
    config, base, _ = minilora.load("smollm2", "nf4-dq")
    report([step(config, base, ("q_proj", "v_proj"))()])


def scaled_step(folder, layers, length, checkpointing=""):
    """A step of the first so many layers of the model."""
    config, base, _ = minilora.load("smollm2", "nf4-dq")
    layers = int(layers)
    config = ModelConfig(**{**vars(config), "num_hidden_layers": layers})
    nodes = {str(i): base["model"]["layers"][str(i)] for i in range(layers)}
    base = {**base, "model": {**base["model"], "layers": nodes}}
    run = step(config, base, ("q_proj", "v_proj"), BATCH, int(length), bool(checkpointing))
    report(seconds(run, repeat=3))


def quantize(folder, rows, columns):
    w = np.random.default_rng(0).standard_normal((int(rows), int(columns)), dtype=np.float32)
    report(seconds(lambda: nf4.quantize(w), repeat=30))


def dequantize(folder, rows, columns):
    w = np.random.default_rng(0).standard_normal((int(rows), int(columns)), dtype=np.float32)
    q = nf4.quantize(w)
    report(seconds(lambda: nf4.dequantize(q), repeat=100))


def matvec(folder, scheme="nf4"):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4096, 4096), dtype=np.float32)
    x = rng.standard_normal(4096, dtype=np.float32)
    q = nf4.quantize(w)
    report(seconds((lambda: nf4.matvec(q, x)) if scheme == "nf4" else (lambda: w @ x), repeat=50))


def generate(folder, scheme="none"):
    config, base, _ = minilora.load("smollm2", scheme, low_precision=True)
    ids = prompt(folder)
    never_ends = ModelConfig(**{**vars(config), "eos_token_id": ()})

    def run():
        return sum(1 for _ in minilora.generate({}, base, ids, never_ends, max_tokens=48))

    report(seconds(run, repeat=3))


def floor(folder, targets="q_proj,v_proj"):
    """Nothing but the matrix products of a step, the same number in the same shapes.

    Forward, y = xWᵀ; backward, ∂L/∂x = gW, and for the adapters Ax once more, ∂L/∂A and ∂L/∂B. The
    first layer hands no gradient further down. Attention, by tokens that see some keys: QKᵀ and PV
    forward; backward QKᵀ once more, gVᵀ, dS·K, dSᵀ·Q and Pᵀg. The head by tiles, there and back.
    """
    config, base, _ = minilora.load("smollm2")
    targets = ALL_LINEAR if targets == "all" else tuple(targets.split(","))
    hd, K = config.head_dim, config.num_key_value_heads
    G = config.num_attention_heads // K
    shares = THREADS if BATCH >= THREADS else 1

    def share(seed):
        rng, rows = np.random.default_rng(seed), BATCH // shares

        def some(*shape):
            return rng.standard_normal(shape, dtype=np.float32)

        widths = (config.hidden_size, config.intermediate_size, K * hd, 8)
        x = {n: some(rows * LENGTH, n) for n in widths}
        A = {n: some(8, n) for n in x}
        B = {n: some(n, 8) for n in x}
        q, k = some(rows, K, G * LENGTH, hd), some(rows, K, LENGTH, hd)
        p = some(rows, K, G * fused_attention.QUERIES, LENGTH)
        return x, A, B, q, k, p, some(rows * LENGTH, fused_loss.TILE)

    def products(x, A, B, q, k, p, z):
        for i, layer in base["model"]["layers"].items():
            for part in ("self_attn", "mlp"):
                for name, node in layer[part].items():
                    w = node["weight"]
                    out, width = w.shape
                    x[width] @ w.T
                    enters = i == "0" and name in ("q_proj", "k_proj", "v_proj")
                    if not enters:
                        x[out] @ w
                    if name in targets:
                        x[width] @ A[width].T, x[8] @ B[out].T
                        x[width] @ A[width].T, x[out] @ B[out]
                        x[out].T @ x[8], x[8].T @ x[width]
                        if not enters:
                            x[8] @ A[width]
            for b, some, keys in fused_attention.query_chunks(q, k):
                some, seen, s = q[b, :, some], k[b, :, keys], p[b, :, :, keys]
                for _ in range(3):
                    some @ seen.swapaxes(-1, -2)
                s @ seen, s @ seen, s.swapaxes(-1, -2) @ some, s.swapaxes(-1, -2) @ some
        for _, tile in weights.tiles(base["model"]["embed_tokens"]["weight"], fused_loss.TILE):
            x[config.hidden_size] @ tile.T, z[:, : len(tile)] @ tile

    parts = [share(i) for i in range(shares)]
    report(seconds(lambda: parallel_map(lambda part: products(*part), parts), repeat=5))


CASES = (
    lora_step, first_loss, small_step, scaled_step, quantize, dequantize, matvec, generate, floor,
    profile,
)  # fmt: skip
if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {case.__name__: case for case in CASES}[name](*arguments)

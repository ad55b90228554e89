"""Runs whose products with the frozen weights are in float32 or in bfloat16.

    minilora fetch smollm2

Three minutes per core. The base is NF4 with double quantization. `micro` learns the questions in
200 steps, in float32 also from an A with another last bit. SmolLM2 learns 16 tool calls by heart in
20 steps of 4 rows. Both are scored with products in float32 and in bfloat16.
"""

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers import toolcalls
from minilora.lessons.helpers.common import finetune
from minilora.quant.schemes import COMPUTE_DTYPES, with_compute_dtype
from minilora.tree import arrays, overlay, tree_map

NUDGED = "float32, nudged"
JOBS = [("smollm2", dtype, 0) for dtype in COMPUTE_DTYPES]
JOBS += [("micro", dtype, seed) for seed in range(8) for dtype in (*COMPUTE_DTYPES, NUDGED)]


def nudged(adapters):
    """Return adapters whose numbers are the next ones in float32; zeros stay."""
    after = tree_map(lambda w: np.nextafter(w, 2 * w), arrays(adapters))
    return overlay(adapters, after)


def task(name):
    """Return (rows to train on, rows to score, settings of the training run)."""
    if name == "smollm2":
        rows = toolcalls.rows("train")[:16]
        return rows, rows, {"iters": 20, "batch_size": 4, "learning_rate": 1e-3}
    return data.load_rows("questions", "train"), data.load_rows("questions", "valid"), {}


def run(job):
    """Train one adapter; return its scores with products in both types."""
    name, products, seed = job
    rows, held_out, settings = task(name)
    model, tokenizer = minilora.load(name, "nf4-dq")
    model = with_compute_dtype(model, products.partition(",")[0])
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapters, model = minilora.get_peft_model(model, config, seed)
    start = nudged(adapters) if products == NUDGED else adapters
    trained = finetune(
        name=name, scheme="nf4-dq", rows=rows, held_out=held_out, start=(start, model), seed=seed,
        **settings,
    ).adapters  # fmt: skip
    examples, _ = data.encode_rows(held_out, tokenizer, TrainConfig(mask_prompt=True))
    row = {"model": name, "products": products, "seed": seed}
    for dtype in COMPUTE_DTYPES:
        scored = with_compute_dtype(model, dtype)
        scores = minilora.evaluate(trained, scored, examples, quiet=True)
        row |= {f"loss_{dtype}": scores["loss"], f"exact_{dtype}": scores["exact_match"]}
    return row

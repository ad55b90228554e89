"""A QLoRA adapter merged in four ways, after a fast and after a gentle run.

About a minute of one core. A run is 200 steps of 16 rows on `micro` in NF4 with double
quantization, all seven projections at r = 8.
"""

import numpy as np

import minilora
from minilora import data
from minilora.layers import dense, lora_delta
from minilora.lessons.helpers.common import finetune, scores_of
from minilora.lora import adapted_paths
from minilora.tree import get

RATES = (1e-3, 4e-3)
SEEDS = (0, 1, 2, 3, 4)
WAYS = {
    "apart": "adapter separate",
    "dequantized": "Ŵ + ΔW",
    "dequantized_4bit": "Ŵ + ΔW in 4 bits again",
    "original": "W + ΔW",
    "original_4bit": "W + ΔW in 4 bits",
}
JOBS = [(rate, seed) for seed in SEEDS for rate in RATES]


def merged_ways(adapters, model):
    """{name: dense or 4-bit model without an adapter}."""
    merged = minilora.merge(adapters, model)
    original = minilora.merge(adapters, minilora.load("micro").model)
    return {
        "dequantized": merged,
        "dequantized_4bit": minilora.quantize(merged, "nf4-dq"),
        "original": original,
        "original_4bit": minilora.quantize(original, "nf4-dq"),
    }


def median_size(adapters, model):
    """The median of ‖ΔW‖/‖W‖ over the adapted projections."""
    found = []
    for path in adapted_paths(adapters):
        W = dense(get(model.base, path)["weight"])
        found.append(np.linalg.norm(lora_delta(get(adapters, path))) / np.linalg.norm(W))
    return float(np.median(found))


def run(job):
    rate, seed = job
    return scored(finetune(scheme="nf4-dq", seed=seed, learning_rate=rate), rate, seed)


def scored(done, rate, seed):
    """The row of a run."""
    rows = data.load_rows("questions", "valid")
    row = {"rate": rate, "seed": seed, "size": median_size(done.adapters, done.model)}
    row |= {"apart": done.scores["loss"], "exact_apart": done.scores["exact_match"]}
    for name, model in merged_ways(done.adapters, done.model).items():
        scores = scores_of({}, model, rows)
        row |= {name: scores["loss"], f"exact_{name}": scores["exact_match"]}
    return row

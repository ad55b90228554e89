"""Runs of lessons 19b, 19c and 20: how many random letters an adapter of `micro` learns by heart.

About seven minutes of one core.

python lessons/sweeps/capacity.py
"""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import write_sweep

import minilora
from minilora import LoraConfig, TrainConfig, data, nf4
from minilora.config import ALL_LINEAR, ATTENTION, MLP
from minilora.methods import registry
from minilora.optim import from_bfloat16, to_bfloat16
from minilora.tree import get, num_parameters, tree_map, unflatten

LETTERS = "abcdefghijklmnop"  # 16 of them: an unknown letter has 4 bits
ANSWER, KEY = 12, 3  # letters
ONE_MATRIX = "model.layers.1.mlp.down_proj.weight"
PLACES = {"all": ALL_LINEAR, "attention": ATTENTION, "MLP": MLP}
RATES = {"lora": 1e-2, "matrix": 1e-2, "full": 1e-3}


def facts(n, seed):
    """Return n rows: a key of 3 letters, and an answer of 12 random letters."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in rng.permutation(len(LETTERS) ** KEY)[:n]:
        key = "".join(LETTERS[number // 16**i % 16] for i in range(KEY))
        answer = "".join(rng.choice(list(LETTERS), ANSWER))
        rows.append({"prompt": f"{key}:", "completion": answer})
    return rows


def start(base, size, place, layer, seed):
    """Return (adapters, frozen): LoRA in a layer or "every" one, one matrix, or every leaf."""
    if size == "full":
        return registry.full(base, None, None)
    if size == "matrix":
        return unflatten({ONE_MATRIX: np.array(get(base, ONE_MATRIX))}), base
    layers = None if layer == "every" else (layer,)
    config = LoraConfig(
        r=size, lora_alpha=8, target_modules=PLACES[place], layers_to_transform=layers
    )
    return minilora.get_peft_model(base, config, np.random.default_rng(seed))


def bits_learned(adapters, frozen, examples, config):
    """Return Σ (4 bits − the cross-entropy in bits) over the letters of all answers.

    The end of the text is a target as well. It has no information, but its loss is subtracted.
    """
    score = minilora.evaluate(adapters, frozen, examples, config)
    return 4 * ANSWER * len(examples) - score["loss"] * score["tokens"] / np.log(2)


def int8(w):
    """Round to 255 values between −absmax and absmax of the matrix."""
    absmax = np.abs(w).max()
    return np.round(w / absmax * 127) / 127 * absmax


ROUNDED = {
    "bfloat16": lambda w: from_bfloat16(to_bfloat16(w)),
    "int8": int8,
    "nf4": lambda w: nf4.quantize(w, 64).dequantize(),
}


def run_one(job):
    """Train on n facts, all of them in every step; return the bits learned per parameter."""
    size, place, layer, n, steps, seed = job
    config, base, tokenizer = minilora.load("micro")
    settings = TrainConfig(
        iters=steps, batch_size=n, learning_rate=RATES.get(size, RATES["lora"]),
        mask_prompt=True, seed=seed,
    )  # fmt: skip
    examples, _ = data.encode_rows(facts(n, seed), tokenizer, settings)
    adapters, frozen = start(base, size, place, layer, seed)
    with redirect_stderr(io.StringIO()):
        adapters, _ = minilora.train(adapters, frozen, examples, config, settings)
    trained = num_parameters(adapters)
    bits = {"bits": bits_learned(adapters, frozen, examples, config) / trained}
    for name, function in ROUNDED.items():
        rounded = tree_map(lambda w, f=function: f(w).astype("f4"), adapters)
        bits[f"bits_{name}"] = bits_learned(rounded, frozen, examples, config) / trained
    return {
        "size": size,
        "place": place,
        "layer": layer,
        "facts": n,
        "steps": steps,
        "seed": seed,
        "trained": trained,
        "offered": round(4 * ANSWER * n / trained, 4),
        **{name: round(float(value), 4) for name, value in bits.items()},
    }


CASES = (  # size, place, layer, facts, steps
    (1, "all", 1, 10, 500), (1, "all", 1, 19, 500), (1, "all", 1, 38, 500), (1, "all", 1, 76, 500),
    (2, "all", 1, 38, 500), (4, "all", 1, 38, 500),
    (1, "all", 0, 38, 500), (1, "all", 2, 38, 500),
    (3, "all", 1, 114, 500), (1, "all", "every", 114, 500),
    (3, "attention", 1, 48, 500), (2, "MLP", 1, 44, 500), ("matrix", "all", 1, 76, 500),
    (1, "all", 1, 38, 1500), ("full", "all", 1, 76, 500),
)  # fmt: skip
JOBS = [(*case, seed) for seed in range(5) for case in CASES]

if __name__ == "__main__":
    write_sweep("capacity", run_one, JOBS)

"""A linear head and an adapter of rank 1 on right and on broken data.

About two minutes of one core. A run is 200 steps of 16 rows on `micro`. Held-out rows are always
right; only the training data are broken, in one of `FAULTS`.
"""

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig, data
from minilora.batching import Example

RATE = 2e-1, 2e-2  # of the head, of the adapter
FAULTS = ("none", "shuffled labels", "answers cut", "mask inverted")
SEEDS = (0, 1, 2, 3, 4)
CASES = [("head", fault) for fault in FAULTS[:2]] + [("rank 1", fault) for fault in FAULTS]
JOBS = [(*case, seed) for case in CASES for seed in SEEDS]


def shuffled(rows, rng):
    """The same prompts and the same completions, but not each other's."""
    order = rng.permutation(len(rows))
    return [{**row, "completion": rows[i]["completion"]} for row, i in zip(rows, order)]


def examples_of(fault, split, words, seed=0):
    """Prepared examples of a split, broken as `fault` says."""
    rows = data.load_rows("questions", split)
    rows = shuffled(rows, np.random.default_rng(seed)) if fault == "shuffled labels" else rows
    length = 70 if fault == "answers cut" else 256  # a row has 75 tokens
    settings = TrainConfig(mask_prompt=True, max_seq_length=length)
    examples, _ = data.encode_rows(rows, words, settings)
    if fault == "mask inverted":
        examples = [Example(e.tokens, [1 - m for m in e.mask]) for e in examples]
    return examples


def check(job, iters=200, **settings):
    """(row, history) of a job (trained, fault, seed)."""
    trained, fault, seed = job
    model, words = minilora.load("micro")
    adapter_config = MethodConfig("head")
    if trained != "head":
        adapter_config = LoraConfig(r=1, lora_alpha=2, target_modules=("all-linear",))
    adapters, _ = minilora.get_peft_model(model, adapter_config, seed)
    train_config = TrainConfig(
        iters=iters, batch_size=16, learning_rate=RATE[trained == "rank 1"], seed=seed, **settings
    )
    examples = examples_of(fault, "train", words, seed)
    held_out = examples_of("none", "valid", words)
    valid = held_out if settings else ()
    adapters, history = minilora.train(
        adapters, model, examples, train_config, valid, quiet=not valid
    )
    scores = minilora.evaluate(adapters, model, held_out)
    losses = [step["loss"] for step in history if "loss" in step]
    row = {
        "trained": trained, "fault": fault, "seed": seed,
        "train_loss": float(np.mean(losses[-20:])), "loss": scores["loss"],
        "exact_match": scores["exact_match"],
    }  # fmt: skip
    return row, history


def run(job):
    return check(job)[0]

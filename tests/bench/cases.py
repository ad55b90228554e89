"""What both sides of a comparison share: the sizes, the tokens, how time and memory are taken."""

import json
import resource
import time
from pathlib import Path

import numpy as np

BATCH, LENGTH = 4, 128
ADAM = {"learning_rate": 2e-4, "max_grad_norm": 1.0}
SMALL_BATCH = (16, 64)
SMALL = {  # 0.75 million parameters
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 300, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip


def tokens(vocab, rows, length):
    return np.random.default_rng(1).integers(0, vocab, (rows, length))


def prompt(folder):
    """Ids of a prompt of a few words."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).encode("The sea is").ids


def seconds(run, repeat=5):
    """The time of each of `repeat` calls, after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


def report(times):
    """One JSON object: median time in seconds, peak memory as the operating system counts it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": float(np.median(times)), "peak_mb": peak}))

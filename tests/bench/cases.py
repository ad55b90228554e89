"""What both sides of a comparison share: the sizes, the tokens, and the measurement."""

import json
import resource
import sys
import time

import numpy as np

BATCH, LENGTH = 4, 128
SMALL_SHAPE = 16, 64  # rows, tokens
SMALL = {  # 0.75 million parameters
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 300, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
PROMPT = [504, 6136, 314]  # any ids
NEW_TOKENS = 48


def tokens(vocab_size, rows, length):
    return np.random.default_rng(1).integers(0, vocab_size, (rows, length))


def weight(rows, columns):
    rng = np.random.default_rng(0)
    return rng.standard_normal((int(rows), int(columns)), dtype=np.float32)


def report(run, repeat):
    """Print {"seconds": the median of `repeat` calls after one, "peak_mb": of the process}."""
    run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": float(np.median(times)), "peak_mb": peak}))


def main(*cases):
    folder, name, *arguments = sys.argv[1:]
    {case.__name__: case for case in cases}[name](folder, *arguments)

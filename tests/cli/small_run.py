"""A base of two layers and twenty rows, for the tests that start many runs."""

import json

import numpy as np
from sweeps.pretraining import llama, random_params

from minilora.data.tokenizer import ByteTokenizer
from minilora.formats.pretrained import save_pretrained


def write_base_and_rows(folder):
    """Write `base`, a folder with random weights, and `rows.jsonl` into the folder."""
    config = llama(16, 24, 2, 2, 1)
    params = random_params(config, np.random.default_rng(0))
    save_pretrained(folder / "base", config, params, ByteTokenizer())
    rows = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

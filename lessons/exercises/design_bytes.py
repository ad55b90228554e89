"""design-bytes: choose how to store a base, and an adapter, under a budget of bytes.

`micro` is to answer the built-in questions. Base and adapter together may take at most 120,000
bytes; in float32, the base alone takes 382,000. You choose how its projections are stored, and the
settings of LoRA and of the run, with at most 960 training rows: batch_size times iters.

The held-out loss must be below 0.25 nats per token. Return a dict with exactly these keys: "scheme"
("none", "int8", "fp4", "nf4" or "nf4-dq"), "r", "lora_alpha", "target_modules" (a list of names
such as "q_proj", or ["all-linear"]), "learning_rate", "batch_size" (at least 4), "iters" and
"warmup_ratio". The check trains with them, which takes about ten seconds, and says bytes and loss.

Write into REASON the bytes of the base, of the embedding in it, and of the adapter in your design,
computed on paper. Where would you spend another 20,000 bytes, and why there?
"""

import json
import runpy
from pathlib import Path

DESIGN = runpy.run_path(str(Path(__file__).with_name("design_rows.py")))
BYTES, ROWS, LOSS = 120_000, 960, 0.25
RIGHT = DESIGN["RIGHT"]


def observe(answer):
    """Return a word for this kind of answer."""
    others = dict(answer)
    scheme = others.pop("scheme")
    text = json.dumps(others, default=int)
    _, size, rows = DESIGN["costs"](text, scheme)
    if size > BYTES or rows > ROWS:
        return f"{size:,} bytes, {rows:,} rows: above the budget"
    loss = DESIGN["held_out_loss"](text, scheme)
    return RIGHT if loss < LOSS else f"{size:,} bytes, and a held-out loss of {loss:.3f}"


def property_good_within_the_budget(function):
    """the bytes are within the budget, and the held-out loss is below the limit"""
    found = observe(function())
    assert found == RIGHT, found


def settings():
    """Return the settings, a dict."""
    return {
        "scheme": "nf4-dq",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["all-linear"],
        "learning_rate": 1e-2,
        "batch_size": 4,
        "iters": 240,
        "warmup_ratio": 0.06,
    }

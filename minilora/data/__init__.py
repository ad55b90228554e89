"""From a user's rows to examples: JSONL, chat templates, tokenizers, the built-in data sets.

Read `rows.py` first. `tasks.py` and `toolcalls.py` generate the built-in data sets.
"""

from ..batching import Example, batch_at, collate, pack
from .rows import encode, load_rows, prepare, read_rows

__all__ = [
    "Example", "batch_at", "collate", "encode", "load_rows", "pack", "prepare", "read_rows",
]  # fmt: skip

"""From a user's rows to examples: JSONL, chat templates, tokenizers, the built-in data sets.

Read `rows.py` first. `tasks.py` and `toolcalls.py` generate the built-in data sets.
"""

from ..batching import Example, batch_at, collate, pack  # noqa: F401
from .rows import encode, load_rows, prepare, read_rows  # noqa: F401

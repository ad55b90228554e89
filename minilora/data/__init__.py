"""Turn rows of a user into examples: JSONL, chat templates, tokenizers, built-in data sets.

Read `rows.py` first, then `encoding.py`. `tasks.py` generates the built-in data sets.
"""

from ..batching import Example, batch_at, collate  # noqa: F401
from .encoding import encode, encode_rows  # noqa: F401
from .packing import pack_examples  # noqa: F401
from .rows import load_rows  # noqa: F401

"""From examples to batches: padding, and the order of an epoch.

This file generalizes part 5 of `lessons/00_qlora_in_one_file.py` to examples of any length. A batch
is four arrays (B, T): `tokens`, `targets` (the next token of each), `mask` (1 where the loss counts
the target) and `segment_starts` (where each token's example begins; it sees nothing earlier).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .config import InputError
from .tree import Array


class Example(NamedTuple):
    """Token ids, and a mask: 1 for each token that the model is trained to predict, else 0.

    answer: 1 for each token that an evaluation compares (exact match) if its mask is 1, else 0;
    None: as `mask`.
    """

    tokens: list[int]
    mask: list[int]
    answer: list[int] | None = None


Row = list[Example]  # of a batch: one example, or several that are packed (data/packing.py)


def collate(rows: Sequence[Row]) -> dict[str, Array]:
    """Return the batch {name: (B, T)} of B rows, padded on the right (mask 0)."""
    T = max(sum(len(example.tokens) - 1 for example in row) for row in rows)
    names = ("tokens", "targets", "mask", "segment_starts")
    batch = {name: np.zeros((len(rows), T), np.int64) for name in names}
    for i, row in enumerate(rows):
        start = 0
        for tokens, mask, _ in row:
            end = start + len(tokens) - 1
            batch["tokens"][i, start:end] = tokens[:-1]
            batch["targets"][i, start:end] = tokens[1:]
            batch["mask"][i, start:end] = mask[1:]
            batch["segment_starts"][i, start:] = start
            start = end
        batch["segment_starts"][i, end:] = end  # the padding is a segment of its own
    return batch | {"mask": batch["mask"].astype(np.float32)}


def batch_at(rows: Sequence[Any], step: int, size: int, seed: int) -> list[Any]:
    """Return batch number `step`; each epoch uses every row once, in a new order.

    The result depends only on the arguments, so a resumed run has no position to restore.
    """
    batch = []
    for i in range(step * size, (step + 1) * size):
        epoch, position = divmod(i, len(rows))
        batch.append(rows[_order(len(rows), epoch, seed)[position]])
    return batch


@lru_cache(maxsize=4)
def _order(n: int, epoch: int, seed: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(n)


def token_array(name: str, ids: Any, vocab_size: int, ndim: int) -> Array:
    """Return token ids as an array; raise InputError unless all are ids of the vocabulary.

    name: what the message calls the ids. ndim: 1 for a list of ids, 2 for a batch (B, T). Layers
    and compiled loops rely on this check: in NumPy, the id −1 would be the last row of a matrix.
    """
    shape = "a list of token ids" if ndim == 1 else "token ids of the shape (B, T)"
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of different lengths; the check of the dtype raises
        array = np.array(None)
    if array.size == 0:
        raise InputError(f"{name} is empty: give some text")
    if array.dtype.kind not in "iu" or array.ndim != ndim:
        got = f"got {array.dtype} of the shape {array.shape}"
        raise InputError(f"{name} must be {shape}, {got}: encode a text with tokenizer.encode")
    wrong = array[(array < 0) | (array >= vocab_size)]
    if wrong.size:
        vocabulary = f"the vocabulary has the ids 0 to {vocab_size - 1}"
        advice = "encode texts with the tokenizer of this model"
        raise InputError(f"{name} has the token id {wrong[0]}, but {vocabulary}: {advice}")
    return array

"""From examples to batches: packing, padding, and the order of an epoch.

Part 5 of `lessons/00_qlora_in_one_file.py`, made general: examples of any length. An `Example` is
its tokens with a mask that says which of them are targets. A batch is four arrays (B, T): `tokens`,
`targets` (the next token of each), `mask` (1 where the target counts) and `segment_starts` (where
each token's example begins, so that no token sees another example of its row).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .tree import Array


class Example(NamedTuple):
    """Token ids, and for each of them 1 if the model is to learn to say it."""

    tokens: list[int]
    mask: list[int]


def pack(examples: list[Example], length: int) -> list[list[Example]]:
    """Put examples into bins of at most `length` tokens: longest first, each where it fits best.

    The examples of a bin stay separate: `collate` notes where each begins.
    """
    bins: list[list[Example]] = []
    with_room: list[list[list[Example]]] = [[] for _ in range(length)]  # by free tokens
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        need = len(example.tokens) - 1
        room = next((n for n in range(need, length) if with_room[n]), None)
        if room is None:
            room = length - 1
            bins.append([])
            with_room[room].append(bins[-1])
        best = with_room[room].pop()
        best.append(example)
        with_room[room - need].append(best)
    return bins


def collate(bins: Sequence[list[Example]]) -> dict[str, Array]:
    """Make a batch, a row per bin, padded on the right with tokens that never count."""
    T = max(sum(len(example.tokens) - 1 for example in row) for row in bins)
    names = ("tokens", "targets", "mask", "segment_starts")
    batch = {name: np.zeros((len(bins), T), np.int64) for name in names}
    for i, row in enumerate(bins):
        start = 0
        for tokens, mask in row:
            end = start + len(tokens) - 1
            batch["tokens"][i, start:end] = tokens[:-1]
            batch["targets"][i, start:end] = tokens[1:]
            batch["mask"][i, start:end] = mask[1:]
            batch["segment_starts"][i, start:] = start
            start = end
        batch["segment_starts"][i, start:] = min(start, T - 1)
    return batch | {"mask": batch["mask"].astype(np.float32)}


def batch_at(bins: list[list[Example]], step: int, size: int, seed: int) -> list[list[Example]]:
    """Return the bins of batch number `step`: a new order every epoch, each bin once per epoch.

    The result depends on (seed, step) alone, so a resumed run has no position to restore.
    """
    batch = []
    for i in range(step * size, (step + 1) * size):
        epoch, position = divmod(i, len(bins))
        batch.append(bins[_order(len(bins), epoch, seed)[position]])
    return batch


@lru_cache(maxsize=4)
def _order(n: int, epoch: int, seed: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(n)

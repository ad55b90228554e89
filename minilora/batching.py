"""From examples to batches: packing, padding, and the order of an epoch.

Part 5 of `lessons/00_qlora_in_one_file.py`, made general: examples of any length. An `Example` is
its tokens with a mask that says which of them are targets. A batch is four arrays (B, T): `tokens`,
`targets` (the next token of each), `mask` (1 where the target counts) and `starts` (where each
token's example begins, so that packed neighbours stay invisible to each other).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """Token ids, and for each of them 1 if the model is to learn to say it."""

    tokens: list[int]
    mask: list[int]


def pack(examples, length):
    """Bins of examples that fit together in `length` tokens: best fit, longest first.

    Examples keep to themselves: `collate` notes where each begins.
    """
    bins: list[list[Example]] = []
    with_room: list[list] = [[] for _ in range(length)]  # with_room[n]: bins with n tokens free
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


def collate(bins):
    """A batch of bins (lists of examples), padded on the right with tokens that never count."""
    T = max(sum(len(e.tokens) - 1 for e in some) for some in bins)
    batch = {k: np.zeros((len(bins), T), np.int64) for k in ("tokens", "targets", "mask", "starts")}
    for row, some in enumerate(bins):
        at = 0
        for tokens, mask in some:
            end = at + len(tokens) - 1
            batch["tokens"][row, at:end] = tokens[:-1]
            batch["targets"][row, at:end] = tokens[1:]
            batch["mask"][row, at:end] = mask[1:]
            batch["starts"][row, at:] = at
            at = end
        batch["starts"][row, at:] = min(at, T - 1)
    batch["mask"] = batch["mask"].astype(np.float32)
    return batch


def batch_at(bins, step, size, seed):
    """The bins of batch number `step`: every epoch a new order, each bin once.

    A function of (seed, step) alone, so a resumed run has no position to restore.
    """
    picked = []
    for i in range(step * size, (step + 1) * size):
        epoch, position = divmod(i, len(bins))
        picked.append(bins[_order(len(bins), epoch, seed)[position]])
    return picked


@lru_cache(maxsize=4)
def _order(n, epoch, seed):
    return np.random.default_rng([seed, epoch]).permutation(n)

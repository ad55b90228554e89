"""Packing: several short examples share a row of a batch, so that fewer tokens are padding."""

from bisect import bisect_left, insort_left
from operator import itemgetter

from ..batching import Row


def pack_examples(examples, length) -> list[Row]:
    """Put examples into rows by best fit: at most `length` − 1 input tokens per row.

    The last token of an example is only a target. A longer example has a row of its own.
    """
    rows: list[Row] = []
    unfilled: list[tuple[int, Row]] = []  # (free tokens, row); of equals, the last filled is first
    free_tokens = itemgetter(0)
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        need = len(example.tokens) - 1
        best = bisect_left(unfilled, need, key=free_tokens)
        if best == len(unfilled):
            rows.append([])
            unfilled.append((length - 1, rows[-1]))
        free, row = unfilled.pop(best)
        row.append(example)
        insort_left(unfilled, (free - need, row), key=free_tokens)
    return rows

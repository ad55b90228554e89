"""Packing: several short examples share a row of a batch, so that fewer tokens are padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from ..batching import Example, Row
from ..config import InputError


def pack_examples(examples: Sequence[Example], length: int) -> list[Row]:
    """Put examples into rows by best fit: at most `length` − 1 input tokens per row.

    The last token of an example is only a target.
    """
    rows: list[Row] = []
    unfilled: list[tuple[int, int, Row]] = []  # (free tokens, −time of the last example, row)
    for time, example in enumerate(sorted(examples, key=lambda e: -len(e.tokens))):
        need = len(example.tokens) - 1
        if need >= length:
            what = f"an example of {need + 1} tokens is longer than {length}"
            raise InputError(f"{what}: encode its row with this max_seq_length")
        best = bisect_left(unfilled, need, key=lambda entry: entry[0])
        if best == len(unfilled):
            rows.append([])
            unfilled.append((length - 1, -time, rows[-1]))
        free, _, row = unfilled.pop(best)
        row.append(example)
        insort(unfilled, (free - need, -time, row))
    return rows

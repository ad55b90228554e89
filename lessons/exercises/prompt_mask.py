"""prompt-mask: make tokens, targets and the mask of a batch.

`sequences` is a list of rows. Each row is a list of examples. An example has two lists of one
length, `example.tokens` and `example.mask`. A model that reads token i predicts token i + 1, so an
example of n tokens has n − 1 positions: the inputs are all tokens but the last, and the targets are
all but the first. A position counts if the mask of its target is 1. The examples of a row follow
one another; T is the number of positions of the longest row.

Return a dict of arrays (rows, T): whole numbers "tokens", "targets" and "segment_starts", and
"mask" of zeros and ones (any type). "segment_starts" has at each position the column where its
example begins. In the padding on the right, the mask is 0 and segment_starts is at most the
position; tokens and targets may have any value there.
"""

import numpy as np

from minilora.batching import Example

CASES = {"rows": range(1, 4), "packed": range(1, 4), "longest": range(1, 7)}
HIDDEN = {"rows": range(4, 7), "packed": range(1, 5), "longest": range(7, 21)}


def arguments(rng, rows, packed, longest):
    def example():
        n = int(rng.integers(1, longest + 1))
        prompt = int(rng.integers(0, n))
        tokens = [int(t) for t in rng.permutation(np.arange(10, 60))[:n]]
        return Example(tokens, [0] * prompt + [1] * (n - prompt))

    first = Example([7, 8, 9], [0, 1, 1])  # at least two positions
    batch = [[example() for _ in range(packed)] for _ in range(rows)]
    batch[0].insert(0, first)
    return (batch,)


def observe(result, sequences):
    """Return the mask, and the other arrays without the padding."""
    lengths = np.array([sum(len(e.tokens) - 1 for e in row) for row in sequences])
    mask = np.asarray(result["mask"])
    at = np.arange(mask.shape[1])
    real = at < lengths[:, None]
    kept = {
        name: np.asarray(result[name]) * real for name in ("tokens", "targets", "segment_starts")
    }
    below = bool((np.asarray(result["segment_starts"]) <= at).all())
    return {**kept, "mask": mask.astype(float), "segment_starts up to the position": below}


def property_every_target_once(function, sequences):
    """the targets that count are the tokens whose mask is 1, except the first of each example"""
    batch = function(sequences)
    for row, some in enumerate(sequences):
        kept = np.asarray(batch["targets"])[row][np.asarray(batch["mask"])[row] > 0]
        expected = [t for e in some for t, m in zip(e.tokens[1:], e.mask[1:]) if m]
        assert kept.tolist() == expected, f"row {row}: {kept.tolist()} instead of {expected}"


def property_the_next_token(function, sequences):
    """within an example, a token's target is the token after it"""
    batch = {name: np.asarray(part) for name, part in function(sequences).items()}
    for row, some in enumerate(sequences):
        at = 0
        for e in some:
            end = at + len(e.tokens) - 1
            assert batch["tokens"][row, at:end].tolist() == e.tokens[:-1]
            assert batch["targets"][row, at:end].tolist() == e.tokens[1:]
            starts = batch["segment_starts"][row, at:end]
            assert (starts == at).all(), "segment_starts must be where the example begins"
            at = end


def mistake_targets_across_examples(sequences):
    rows = [
        (
            [t for e in row for t in e.tokens],
            [m for e in row for m in e.mask],
            [at for at, e in zip(beginnings(row), row) for _ in e.tokens],
        )
        for row in sequences
    ]
    T = max(len(tokens) - 1 for tokens, *_ in rows)
    names = "tokens", "targets", "mask", "segment_starts"
    batch = {name: np.zeros((len(rows), T), int) for name in names}
    for i, (tokens, mask, starts) in enumerate(rows):
        n = len(tokens) - 1
        batch["tokens"][i, :n] = tokens[:-1]
        batch["targets"][i, :n] = tokens[1:]
        batch["mask"][i, :n] = mask[1:]
        batch["segment_starts"][i, :n] = starts[:-1]
    return batch


def beginnings(row):
    """Return the columns where the examples of a row begin if they are joined."""
    return np.cumsum([0, *(len(e.tokens) for e in row[:-1])]).tolist()

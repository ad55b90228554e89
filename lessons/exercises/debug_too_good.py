"""debug-too-good: a loss that falls to zero, and a model that has learned nothing.

A training script calls `make_batch`. After a few steps the loss is 0.00, on held-out rows, too. But
the trained model only repeats: whatever token it reads, it predicts the same token again. Find the
fault in `make_batch` and repair it, in one line.

The result is a dict of arrays (N, T). At each position the model reads "tokens" and predicts
"targets". "mask" is 1 where a target is a token of the answer, and 0 in the prompt and the padding.
Only positions with mask 1 count.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"n": range(1, 4), "longest": range(3, 7)}
HIDDEN = {"n": range(4, 7), "longest": range(7, 13)}


def arguments(rng, n, longest):
    lengths = [longest, *rng.integers(3, longest + 1, n - 1)]
    rows = [rng.permutation(np.arange(10, 60))[:length].tolist() for length in lengths]
    return rows, [int(rng.integers(1, length)) for length in lengths]


def observe(result, *_):
    """Return what counts in each row: the tokens that are read, and the targets."""
    counts = np.asarray(result["mask"]) > 0
    names = ("tokens", "targets")
    return {name: [np.asarray(result[name])[i][c] for i, c in enumerate(counts)] for name in names}


def property_the_next_token(function, rows, prompts):
    """a target that counts is the token after the one that is read"""
    for row, *pairs in zip(rows, *observe(function(rows, prompts)).values()):
        assert len(pairs[0]) > 0, "nothing counts"
        for read, target in zip(*pairs):
            assert row[row.index(read) + 1] == target, f"{read} is read, {target} predicted"


def property_the_answer_counts(function, rows, prompts):
    """the targets that count are the tokens of the answer"""
    targets = observe(function(rows, prompts))["targets"]
    close(targets, [np.array(row[prompt:]) for row, prompt in zip(rows, prompts)])


def make_batch(rows, prompts):
    """Return the arrays of a batch: tokens, targets and mask, each (N, T).

    rows: N lists of tokens. prompts: how many of the first tokens of each row are its prompt.
    """
    longest = max(len(row) for row in rows)
    padded = np.zeros((len(rows), longest), np.int64)
    is_answer = np.zeros((len(rows), longest))
    for i, (row, prompt) in enumerate(zip(rows, prompts)):
        padded[i, : len(row)] = row
        is_answer[i, prompt : len(row)] = 1
    return {
        "tokens": padded[:, :-1],
        "targets": padded[:, 1:],
        "mask": is_answer[:, 1:],
    }

"""debug-batch-size: a held-out loss that depends on the size of the batch.

`held_out_loss` scores rows of tokens. With another batch_size it gives another loss for the same
rows and the same model. Only if all rows have the same length, it gives the same loss. Find the
fault and repair it, in one line. The result must be the mean over all targets, for every batch
size. The targets are the tokens of a row except the first. Its END is a target, too: the model must
learn to stop.
"""

from itertools import pairwise

import numpy as np

from minilora.course.outcome import close

CASES = {"n": range(2, 5), "longest": range(3, 6), "batch_size": range(1, 4)}
HIDDEN = {"n": range(5, 9), "longest": range(6, 9), "batch_size": range(2, 6)}


def arguments(rng, n, longest, batch_size):
    lengths = [2, longest, *rng.integers(2, longest + 1, n - 2)]
    rows = [[*rng.integers(1, 8, length - 1).tolist(), 0] for length in lengths]
    return rows, rng.standard_normal((8, 8)), batch_size


def tolerance(*_):
    """float64: sums of some tens of numbers below 10."""
    return 2.0**-42


def property_the_batch_size(function, rows, logits, _):
    """the loss is the same for every batch size, and log V if all logits are equal"""
    close(function(rows, logits, len(rows)), function(rows, logits, 1), tolerance())
    close(function(rows, 0 * logits, len(rows)), np.log(len(logits)), tolerance())


def property_every_target_counts_once(function, rows, logits, batch_size):
    """a row twice in the data counts twice, whatever is in its batch"""
    three = [rows[0], rows[0], rows[1]]
    p = np.exp(logits) / np.sum(np.exp(logits), axis=1, keepdims=True)
    losses = [-np.log(p[t, target]) for row in three for t, target in pairwise(row)]
    close(function(three, logits, 3), np.mean(losses), tolerance())


def held_out_loss(rows, logits, batch_size):
    """Return the mean loss in nats per target of rows, lists of tokens that end with END.

    The model is a table: logits[t] are the logits of the token after t.
    """
    END = 0  # it also fills a batch on the right
    total = 0.0
    count = 0.0
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        longest = max(map(len, batch))
        padded = np.full((len(batch), longest), END)
        mask = np.zeros((len(batch), longest))
        for i, row in enumerate(batch):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = 1
        tokens, targets, counts = padded[:, :-1], padded[:, 1:], mask[:, 1:]
        scores = logits[tokens]  # (N, T, V)
        of_targets = np.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        losses = np.log(np.sum(np.exp(scores), axis=-1)) - of_targets
        total += np.sum(losses * counts)
        count += np.sum(counts)
    return total / count

"""cross-entropy: compute the loss that training minimizes.

The logits of a position are hidden · headᵀ, (B, T, V). Its loss is −log softmax(logits)[target],
with the natural logarithm. Return the mean of the losses that the mask keeps, a number. The mask
keeps at least one target. Logits of several thousand must not overflow.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "batch": range(1, 4),
    "length": range(1, 5),
    "vocab": range(2, 7),
    "large": [False, True],
}
HIDDEN = {"length": range(5, 10), "vocab": range(7, 41)}


def arguments(rng, batch, length, vocab, large):
    hidden = rng.uniform(-2, 2, (batch, length, 3)) * (1000 if large else 1)
    head = rng.uniform(-2, 2, (vocab, 3))
    mask = (rng.random((batch, length)) < 0.6).astype(float)
    mask[-1, -1] = 1  # at least one target
    return hidden, head, rng.integers(0, vocab, (batch, length)), mask


def tolerance(hidden, head, targets, mask):
    """float64: a logit is a sum of three terms of at most 2·|h|, and the mean is no larger."""
    return 2.0**-48 * (1 + 6 * float(np.abs(hidden).max()))


def property_a_guess(function, hidden, head, targets, mask):
    """if all tokens are equally likely, the loss is log V"""
    close(function(0 * hidden, head, targets, mask), np.log(len(head)), 2.0**-48)


def property_what_the_mask_drops(function, hidden, head, targets, mask):
    """targets that the mask drops change nothing"""
    other = np.where(mask > 0, targets, (targets + 1) % len(head))
    close(function(hidden, head, other, mask), function(hidden, head, targets, mask))

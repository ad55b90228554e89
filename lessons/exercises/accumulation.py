"""accumulation: compute one large batch as several micro-batches.

`shards` has (n, loss, grad) per micro-batch: the number of target tokens n, the mean loss over
these tokens, and the gradient of this mean, a tree. `total` is the sum of all n. `loss` and `grads`
are the sums of the shards before these: 0.0 and {} at first. Return (loss, gradient) with these
shards added, each with the weight n/total. The gradient is a float32 tree of the same structure.
`tree_map` applies a function to the leaves of one or several trees.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"parts": range(1, 5), "size": range(1, 4), "alike": [False, True], "later": [False, True]}
HIDDEN = {"parts": range(5, 10), "size": range(4, 8)}


def arguments(rng, parts, size, alike, later):
    counts = [7.0] * parts if alike else [float(n) for n in rng.integers(1, 9, parts)]
    some = [
        (n, float(rng.uniform(0, 4)), {"lora_B": rng.uniform(-1, 1, (size, 2)).astype("f4")})
        for n in counts
    ]
    if not later:
        return some, sum(counts), 0.0, {}
    before = {"lora_B": rng.uniform(-1, 1, (size, 2)).astype("f4")}  # the sums of an earlier call
    return some, 2 * sum(counts), float(rng.uniform(0, 4)), before


def observe(result, *_):
    """Return the result and the type of the gradient."""
    loss, grads = result
    if not isinstance(grads, dict):
        return result
    return loss, grads, {name: np.asarray(g).dtype.name for name, g in grads.items()}


def tolerance(*_):
    """float32 gradients of at most 2: nine products and nine sums, 2⁻²⁴ each; a loss up to 8."""
    return 40 * 2.0**-24


def check_mean(parts, answer):
    """Assert that the loss is between those of the parts, and the gradient is like theirs."""
    loss, grads = answer
    losses = [part for _, part, _ in parts]
    assert min(losses) - 2**-20 <= loss <= max(losses) + 2**-20, f"the loss is {loss}"
    assert np.shape(grads["lora_B"]) == parts[0][2]["lora_B"].shape


def property_every_token_counts_alike(function, parts, *_):
    """a part of n tokens counts like n parts of one token with the same loss and gradient"""
    single = [(1.0, loss, grads) for n, loss, grads in parts for _ in range(int(n))]
    loss, grads = function(parts, float(len(single)), 0.0, {})
    check_mean(parts, (loss, grads))
    one_by_one = function(single, float(len(single)), 0.0, {})
    # up to 72 sums of float32 numbers of at most 1
    close((loss, grads), one_by_one, 128 * 2.0**-24)


def property_a_mean(function, parts, *_):
    """if all parts have the same loss and gradient, so has the whole"""
    _, loss, grads = parts[0]
    alike = [(n, loss, grads) for n, *_ in parts]
    total = sum(n for n, *_ in parts)
    close(function(alike, total, 0.0, {}), (loss, grads), tolerance())


def property_the_sums_so_far(function, parts, total, *before):
    """the shards of a batch can come in several calls, each with the sums of the one before"""
    whole = function(parts, total, *before)
    for part in parts:
        before = function([part], total, *before)
    close(before, whole, tolerance())
    check_mean(parts, function(parts, sum(n for n, *_ in parts), 0.0, {}))

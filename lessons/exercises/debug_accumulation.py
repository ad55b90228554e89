"""debug-accumulation: a run that stops learning early.

`train` sums the gradients of several micro-batches before each step. With accumulate = 1 it learns
well. With accumulate = 4, the loss falls in the first quarter of the run, and then it stays. Find
the fault and repair it, in one line. A step over several micro-batches must do what a step over one
large batch with the same rows does.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "steps": range(4, 7),
    "accumulate": range(1, 5),
    "rate": [0.05, 0.1],
    "warmup": range(1, 3),
}
HIDDEN = {"steps": range(6, 9), "accumulate": range(2, 7), "warmup": range(3, 5)}


def arguments(rng, steps, accumulate, rate, warmup):
    sizes = rng.integers(1, 5, steps * accumulate)
    batches = [(rng.standard_normal((n, 3)), rng.standard_normal(n)) for n in sizes]
    return rng.uniform(-1, 1, 3), batches, accumulate, rate, warmup


def tolerance(*_):
    """float64: some hundred sums and products, numbers of some tens."""
    return 2.0**-38


def merged(batches, accumulate):
    """Put the rows of each `accumulate` micro-batches together."""
    parts = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    return [tuple(map(np.concatenate, zip(*part))) for part in parts]


def property_one_large_batch(function, w, batches, accumulate, *settings):
    """micro-batches give the weights and the rates of large batches with the same rows"""
    batches = batches[: len(batches) // 2 * 2]
    large = function(w, merged(batches, 2), 1, *settings)
    close(function(w, batches, 2, *settings), large, tolerance())
    after, rates = large
    assert len(rates) == len(batches) // 2, "there are not as many rates as steps"
    assert np.abs(after - w).max() >= 1e-9, "the weights are the same as before"


def property_rates(function, w, batches, accumulate, learning_rate, warmup):
    """the first rate is a share of the warm-up, and the number of steps decides over the others"""
    _, rates = function(w, batches, 1, learning_rate, warmup)
    close(rates[0], learning_rate / warmup, tolerance())
    close(function(w, [b for b in batches for _ in "ab"], 2, learning_rate, warmup)[1], rates)


def train(w, micro_batches, accumulate, learning_rate, warmup):
    """Fit y = x·w by gradient descent; return (w, the rate of each step).

    micro_batches: pairs of x (n, D) and y (n,). A step follows every `accumulate` of them. The rate
    rises during `warmup` steps, and then falls to zero at the end of the run.
    """
    steps = len(micro_batches) // accumulate
    gradient, rows, rates = 0.0, 0, []
    for i, (x, y) in enumerate(micro_batches, 1):
        gradient = gradient + 2 * (x @ w - y) @ x  # the sum over the rows
        rows += len(y)
        if i % accumulate == 0:
            step = i // accumulate
            rise, fall = step / warmup, (steps + 1 - step) / (steps + 1 - warmup)
            rate = learning_rate * max(0, min(1, rise, fall))
            w = w - rate * gradient / rows
            rates.append(rate)
            gradient, rows = 0.0, 0
    return w, rates

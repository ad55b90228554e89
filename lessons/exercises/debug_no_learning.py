"""debug-no-learning: a loss that stays, to the last digit.

`train` adapts a frozen matrix W to data, with two factors A and B. It runs without an error, but
all losses are equal to the last digit, and a larger learning rate changes nothing. Find the fault
and repair it, in one line. The first loss, before any step, must stay that of W alone.
"""

import numpy as np

from minilora import optim
from minilora.config import TrainConfig

CASES = {"rows": range(4, 7), "width": range(4, 7), "r": range(2, 4), "alpha": [3.0, 8.0]}
HIDDEN = {"rows": range(7, 10), "width": range(7, 10)}
RIGHT = "the loss falls, and the first loss is that of W alone"


def arguments(rng, rows, width, r, alpha):
    W = rng.uniform(-1, 1, (rows, width))
    x = rng.standard_normal((32, width))
    update = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, width)) / width
    return W, x, x @ (W + update).T, r, alpha, int(rng.integers(1000))


def observe(result, W, x, y, *_):
    """Return a word for this kind of start, whatever random numbers it uses."""
    losses, A, B = result
    of_w = np.mean((x @ W.T - y) ** 2)
    # a quotient of two equal means of some hundred float64 numbers
    if abs(losses[0] / of_w - 1) > 2.0**-40:
        return "the first loss is not that of W alone"
    if losses[-1] == losses[0]:
        return "all losses are equal"
    sizes = np.linalg.svd(B @ A, compute_uv=False)
    if sizes[1] <= 1e-6 * sizes[0]:
        return "the update has rank 1"
    return RIGHT if losses[-1] < 0.9 * losses[0] else "the loss hardly falls"


def property_it_learns(function, *arguments):
    """the last loss is lower than the first"""
    losses, _, _ = function(*arguments)
    assert losses[-1] < losses[0], f"the losses are {losses[0]:.6f} and {losses[-1]:.6f}"


def property_the_first_loss(function, *arguments):
    """the first loss is that of W alone, and the loss falls"""
    seen = observe(function(*arguments), *arguments)
    assert seen == RIGHT, seen


def train(W, x, y, r, alpha, seed):
    """Train factors A (r, in) and B (out, r) so that y = x W'ᵀ, where W' = W + (α/r)·BA.

    Return (losses, A, B): the mean squared error on all rows before each of 25 steps.
    """
    rng = np.random.default_rng(seed)
    factors = {
        "A": rng.uniform(-1, 1, (r, W.shape[1])) / np.sqrt(W.shape[1]),
        "B": np.zeros((W.shape[0], r)),
    }
    state, config = optim.adamw_init(factors), TrainConfig()
    losses = []
    for _ in range(25):
        A, B = factors["A"], factors["B"]
        error = x @ (W + alpha / r * B @ A).T - y
        losses.append(np.mean(error**2))
        rows = rng.permutation(len(x))[:16]  # the gradient is that of 16 random rows
        G = 2 * error[rows].T @ x[rows] / error[rows].size  # the gradient of W'
        gradient = {"A": alpha / r * B.T @ G, "B": alpha / r * G @ A.T}
        factors, state = optim.adamw(factors, gradient, state, {"A": 0.03, "B": 0.03}, config)
    return losses, A, B

"""debug-resume: a run that goes on differently after a stop.

`take_steps` is the optimizer of a training script. A long run is done in two parts: the state of
the first part is saved, and the second part starts from it. The weights then differ from those of a
run without a stop: right after the stop, the steps have the wrong size. Find the fault and repair
it, in one line. A run without a stop must give the same numbers as now.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "steps": range(2, 5),
    "stop": range(1, 4),
    "decay": [0.0, 0.1],
    "rate": [0.01, 0.1],
    "width": range(2, 4),
}
HIDDEN = {"steps": range(5, 9), "stop": range(4, 7)}


def arguments(rng, steps, stop, decay, rate, width):
    share = 1 - 0.9**stop, 1 - 0.999**stop  # the weights of the moments sum to this
    state = {
        "m": share[0] * rng.uniform(-1, 1, width),
        "v": share[1] * rng.uniform(0.1, 1, width),
        "step": stop,
    }
    gradients = list(rng.uniform(-1, 1, (steps, width)))
    return rng.uniform(-1, 1, width), gradients, state, rate, decay


def tolerance(*_):
    """float64, numbers of at most 2: about ten roundings per step, ten steps."""
    return 2.0**-44


def property_a_stop_changes_nothing(function, weights, gradients, state, *settings):
    """two parts, the second with the state of the first, give the weights of one run"""
    whole = function(weights, gradients, state, *settings)
    part = function(weights, gradients[:1], state, *settings)
    close(function(part[0], gradients[1:], part[1], *settings), whole, tolerance())
    assert whole[1]["step"] == state["step"] + len(gradients)


def property_a_first_step(function, weights, gradients, _, rate, decay):
    """from a new state, the first step is the learning rate in each weight, without decay"""
    new = {"m": 0 * weights, "v": 0 * weights, "step": 0}
    after, state = function(weights, gradients[:1], new, rate, 0.0)
    close(np.abs(after - weights), np.full_like(weights, rate), 1e-6)
    resumed, _ = function(after, gradients[1:2], state, rate, 0.0)
    close(resumed, function(weights, gradients[:2], new, rate, 0.0)[0], tolerance())


def take_steps(weights, gradients, state, rate, decay):
    """Take one step of AdamW per gradient; return (weights, state).

    state: the moments "m" and "v", and "step", the number of steps so far. It is zero at first.
    """
    m, v = state["m"], state["v"]
    for t, g in enumerate(gradients, state["step"] + 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat = m / (1 - 0.9**t)  # the moments begin at zero and are too small at first
        v_hat = v / (1 - 0.999**t)
        weights = weights - rate * decay * weights
        weights = weights - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    return weights, {"m": m, "v": v, "step": state["step"] + len(gradients)}

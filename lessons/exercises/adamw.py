"""adamw: take one step of AdamW over a tree.

`params` and `grads` are trees of the same structure. `state` is {"m": tree, "v": tree, "step":
number of steps so far}. t is step + 1; β₁, β₂, ε and λ are adam_beta1, adam_beta2, adam_eps and
weight_decay of `train_config`; η = learning_rates[path] is the learning rate of the leaf at a
dotted path (`named_leaves` and `flatten` give the paths):

    m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
    θ ← θ − η·λ·θ − η·m̂/(√v̂ + ε), with m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ)

Return (new params, new state) as new trees, with the same three keys in the state. The arrays keep
the type of `params`, float32 or float64.
"""

from dataclasses import replace

import numpy as np

from minilora.config import TrainConfig
from minilora.course.outcome import close
from minilora.optim import adamw_init

CASES = {
    "rows": range(1, 5),
    "step": range(31),
    "decay": [0.0, 0.1],
    "eps": [1e-8, 0.1],
    "beta1": [0.9, 0.6],
    "beta2": [0.99, 0.9],
    "single": [False, True],
}
HIDDEN = {"rows": range(5, 10), "step": range(31, 91), "decay": [0.3]}


def arguments(rng, rows, step, decay, eps, beta1, beta2, single):
    def tree(low=-1.0, share=1.0):
        draw = {"lora_A": rng.uniform(low, 1, (2, rows)), "lora_B": rng.uniform(low, 1, rows)}
        return {"layer": {k: (share * x).astype("f4" if single else "f8") for k, x in draw.items()}}

    # after t steps the weights of the moments sum to 1 − βᵗ, and at the start to 0
    m, v = tree(share=1 - beta1**step), tree(0.01, 1 - beta2**step)
    rates = {"layer.lora_A": 0.01, "layer.lora_B": 0.16}
    config = TrainConfig(weight_decay=decay, adam_eps=eps, adam_beta1=beta1, adam_beta2=beta2)
    return tree(), tree(), {"m": m, "v": v, "step": step}, rates, config


def tolerance(params, *_):
    """Numbers of at most 3: about ten roundings of 2⁻⁵³, or of 2⁻²⁴ for float32."""
    return 2.0**-47 if params["layer"]["lora_A"].dtype == "f8" else 2.0**-18


def property_length_of_the_first_step(function, params, grads, state, rates, config):
    """at the first step m̂/√v̂ is the sign of the gradient, so without decay the step has size η"""
    config = replace(config, weight_decay=0.0)
    new, _ = function(params, grads, adamw_init(params), rates, config)
    for name, p in params["layer"].items():
        eta, g = rates[f"layer.{name}"], grads["layer"][name]
        # √v̂ = |g|, to which ε is added
        length = eta * np.abs(g) / (np.abs(g) + config.adam_eps)
        close(np.abs(new["layer"][name] - p), length, 2.0**-40 if p.dtype == "f8" else 2.0**-20)


def property_steps_are_counted(function, params, grads, state, rates, config):
    """the new state counts one more step"""
    _, new = function(params, grads, state, rates, config)
    assert new["step"] == state["step"] + 1, f"step {new['step']} after step {state['step']}"

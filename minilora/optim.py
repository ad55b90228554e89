"""AdamW, clipping by global norm and learning-rate schedules: pure functions of trees.

This file adds to part 6 of `lessons/00_qlora_in_one_file.py`: weight decay, other schedules and a
learning rate per parameter. The trees contain only trained parameters, so frozen ones do not change
or decay.
"""

import math
from typing import Any

import numpy as np

from .config import TrainConfig
from .tree import Array, Tree, named_leaves, tree_map, unflatten


def adamw_init(params: Tree) -> Tree:
    """Return the state before the first step: {"m": zeros, "v": zeros, "step": 0}."""
    return {"m": tree_map(np.zeros_like, params), "v": tree_map(np.zeros_like, params), "step": 0}


def adamw(
    params: Tree,
    grads: Tree,
    state: Tree,
    learning_rates: dict[str, float],
    train_config: TrainConfig,
) -> tuple[Tree, Tree]:
    """Take one step of Adam with decoupled weight decay (Loshchilov and Hutter 2019, Alg. 2).

    learning_rates: {path of a leaf: its learning rate}. Returns new trees (params, state); the
    arguments do not change.
    """
    b1, b2, decay = train_config.adam_beta1, train_config.adam_beta2, train_config.weight_decay
    t = state["step"] + 1
    m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
    v = tree_map(lambda v, g: b2 * v + (1 - b2) * (g * g), state["v"], grads)

    def step(p: Array, m: Array, v: Array, lr: float) -> Array:
        # θ ← θ − η·λ·θ − η·m̂/(√v̂ + ε),  m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)
        denominator = np.sqrt(v) / math.sqrt(1 - b2**t) + train_config.adam_eps
        p = p * (1 - lr * decay)
        return p - lr / (1 - b1**t) * m / denominator

    params = tree_map(step, params, m, v, unflatten(learning_rates))
    return params, {"m": m, "v": v, "step": t}


# {name: (init, step)}; `methods/registry.py` adds muon
OPTIMIZERS: dict[str, tuple[Any, Any]] = {"adamw": (adamw_init, adamw)}


def global_norm(grads: Tree) -> float:
    """Compute √Σ g² over the elements of all leaves."""
    return math.sqrt(sum(float(np.vdot(g, g)) for _, g in named_leaves(grads)))


def clip(grads: Tree, max_norm: float) -> tuple[Tree, float]:
    """Scale to a norm of at most `max_norm` (Pascanu et al. 2013); return (gradients, old norm)."""
    norm = global_norm(grads)
    factor = min(1.0, max_norm / (norm + 1e-6))  # the 1e-6 as in torch.nn.utils.clip_grad_norm_
    return (grads if factor == 1.0 else tree_map(lambda g: g * factor, grads)), norm


def get_lr(step: int, train_config: TrainConfig) -> float:
    """Return the learning rate of step 0, 1, …, with the values of transformers' schedulers.

    Linear warm-up over ⌈warmup_ratio·iters⌉ steps, starting at zero; then constant, linear to zero,
    or half a cosine to zero. Their name of the first one is constant_with_warmup.

    >>> config = TrainConfig(iters=100, learning_rate=1e-3, warmup_ratio=0.1)
    >>> [get_lr(step, config) for step in (0, 5, 10, 100)]
    [0.0, 0.0005, 0.001, 0.0]
    """
    warmup = math.ceil(train_config.warmup_ratio * train_config.iters)
    if step < warmup:
        return train_config.learning_rate * (step / warmup)
    rest = max(1, train_config.iters - warmup)
    done = (step - warmup) / rest
    shares = {"constant": 1.0, "linear": (train_config.iters - step) / rest}
    shares["cosine"] = 0.5 * (1 + math.cos(math.pi * done))
    return train_config.learning_rate * max(0.0, shares[train_config.lr_schedule])

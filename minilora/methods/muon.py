"""Muon (Jordan et al. 2024), an optimizer for matrices: each update is made nearly orthogonal.

It trains the matrices of the layers. AdamW trains all other leaves, for example norms, biases and
the vectors of IA³.
"""

import numpy as np

from ..optim import adamw, adamw_init
from ..tree import flatten, layer_of, overlay, tree_map, unflatten
from . import ia3

MOMENTUM = 0.95


def muon_init(params):
    """Return the state before the first step: momenta of the matrices, m and v of the others."""
    matrices, others = split_matrices(params)
    return {"momentum": tree_map(np.zeros_like, matrices)} | adamw_init(others)


def muon(params, grads, state, learning_rates, train_config):
    """Take one step; arguments and results are those of `adamw`."""
    matrices, others = split_matrices(params)
    # `tree_map` follows its first tree, so the gradients and rates may have more leaves
    others, moments = adamw(others, grads, state, learning_rates, train_config)
    momentum = tree_map(lambda m, g: MOMENTUM * m + g, state["momentum"], grads)

    def step(w, m, g, lr):
        # W ← W − η·λ·W − η·√max(1, out/in)·UVᵀ, with USVᵀ = μM + G (Nesterov)
        update = orthogonalize(MOMENTUM * m + g) * max(1.0, w.shape[0] / w.shape[1]) ** 0.5
        return w * (1 - lr * train_config.weight_decay) - lr * update

    matrices = tree_map(step, matrices, momentum, grads, unflatten(learning_rates))
    return overlay(matrices, others), {"momentum": momentum} | moments


def split_matrices(params):
    """Return the tree of the matrices of the layers, and the tree of all other leaves."""
    leaves = flatten(params)
    matrices = {
        p: w
        for p, w in leaves.items()
        if w.ndim == 2 and layer_of(p) >= 0 and not p.endswith(ia3.L)  # a vector as (out, 1)
    }
    others = {p: w for p, w in leaves.items() if p not in matrices}
    return unflatten(matrices), unflatten(others)


def orthogonalize(m):
    """Return nearly UVᵀ of m = USVᵀ: five Newton-Schulz iterations bring S to about 0.7 to 1.2."""
    if m.shape[0] > m.shape[1]:
        return orthogonalize(m.T).T
    x = m / (np.linalg.norm(m) + 1e-7)
    for _ in range(5):
        # X ← aX + bXXᵀX + c(XXᵀ)²X: each singular value s becomes as + bs³ + cs⁵
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x

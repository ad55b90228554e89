"""The largest curvature of a loss: the largest eigenvalue of its Hessian, by Lanczos's iteration.

The study `a_or_b` compares it with the best learning rates of the methods.
"""

import numpy as np

from minilora.tree import flatten, tree_map, unflatten


def largest_curvature(gradient, at, units, steps=20, eps=1e-3, seed=0):
    """Return the largest eigenvalue of S·H·S, where H is the Hessian of a loss at a tree.

    gradient: the function from a tree of parameters to the gradient of the loss there. at: the tree
    of float32 arrays. units: {path of a leaf: its element of the diagonal matrix S}.
    steps: the number of products with H. Each takes two gradients.
    """
    S = np.concatenate([np.full(w.size, units[path]) for path, w in flatten(at).items()])
    v = np.random.default_rng(seed).standard_normal(S.size)
    V = np.zeros((0, S.size))
    HV = np.zeros((0, S.size))
    for _ in range(min(steps, S.size)):
        # Power iteration, with each vector made orthogonal to all earlier ones. Two passes, because
        # one leaves rounding errors.
        for _ in range(2):
            v = v - V.T @ (V @ v)
        V = np.vstack([V, v / np.linalg.norm(v)])
        # Hv ≈ (∇L(θ + εv) − ∇L(θ − εv)) / 2ε
        up, down = (vector(gradient(moved(at, sign * eps * S * V[-1]))) for sign in (1, -1))
        HV = np.vstack([HV, S * (up - down) / (2 * eps)])
        v = HV[-1]
    T = V @ HV.T
    return float(np.linalg.eigvalsh((T + T.T) / 2)[-1])


def vector(tree):
    """Return all elements of a tree as one float64 vector."""
    return np.concatenate([w.ravel() for w in flatten(tree).values()]).astype(np.float64)


def moved(tree, step):
    """Return the tree with a vector added to its elements, in the order of `vector`."""
    leaves = flatten(tree)
    ends = np.cumsum([w.size for w in leaves.values()])[:-1]
    parts = dict(zip(leaves, np.split(step.astype(np.float32), ends)))
    steps = unflatten({path: parts[path].reshape(w.shape) for path, w in leaves.items()})
    return tree_map(np.add, tree, steps)

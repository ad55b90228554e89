"""Weights of the kinds that a quantizer meets, for its own tests and for those against peers."""

import numpy as np

KINDS = ("normal", "heavy-tailed", "sparse", "tiny", "huge", "mixed")
SHAPES = ((3, 5), (7, 64), (1, 1), (2, 31), (65, 129), (17, 96), (64, 256), (4096,), (1, 2, 333))


def weights(kind, shape, seed=0):
    """An array (shape) float32 of that kind."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)
    if kind == "heavy-tailed":
        w = rng.standard_cauchy(shape)
    elif kind == "sparse":  # whole blocks of zeros among them
        w *= rng.random(shape) < 0.01
    elif kind == "tiny":
        w *= 1e-30
    elif kind == "huge":
        w *= 1e33
    elif kind == "mixed":  # rows that differ by orders of magnitude
        w *= 10.0 ** rng.integers(-6, 6, (*shape[:-1], 1))
    return w.astype(np.float32)

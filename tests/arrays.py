"""Random weights of several kinds, for the tests of quantizers and the comparisons with peers."""

import numpy as np

from minilora import nf4

KINDS = ("normal", "heavy-tailed", "sparse", "tiny", "huge", "mixed", "halfway")
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
    elif kind == "halfway":  # so close to a midpoint that the last bit decides the code
        four_bit = np.tile([code.midpoints for code in nf4.CODEBOOKS.values()], 8).ravel()
        midpoints = np.concatenate([four_bit, (np.arange(-127, 127) + 0.5) / 127])
        absmax, bits = rng.uniform(0.5, 2), rng.integers(-2, 3, shape)
        w = absmax * rng.choice(midpoints, shape) * (1 + bits / 2**24)
        w.reshape(-1)[::16] = absmax
    return w.astype(np.float32)

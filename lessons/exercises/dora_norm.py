"""dora-norm: compute the norm of each row of the updated weight.

w is (out, in), a dense float32 array or a quantized weight, which `kernels.ops.dense(w)` turns into
a matrix; a is (r, in), b is (out, r), scaling is a float. Return the norm (the root of the sum of
the squares) of each row of W₀ + scaling·BA, (out,) float32, and 1 for a row of zeros. Keep the
decorator, which hides the function from autograd.
"""

import numpy as np

from minilora import nf4
from minilora.course.outcome import close

CASES = {
    "out": range(2, 5),
    "width": range(2, 5),
    "r": range(1, 3),
    "quantized": [False, True],
    "zeros": [False, True],
}
HIDDEN = {"out": range(5, 10), "width": range(5, 10), "r": range(3, 5)}


def arguments(rng, out, width, r, quantized, zeros):
    w = rng.uniform(-2, 2, (out, width)).astype("f4")
    a, b = rng.uniform(-1, 1, (r, width)).astype("f4"), rng.uniform(-1, 1, (out, r)).astype("f4")
    if zeros:
        w[0], b[0] = 0, 0
    return nf4.quantize(w, 16) if quantized else w, float(rng.uniform(1.5, 3)), a, b


def tolerance(*_):
    """float32: a norm of at most √9·(2 + 3·4), nine squares and five terms each: 2⁻²⁴·42·14."""
    return 588 * 2.0**-24


def property_unit_rows(function, w, scaling, a, b):
    """divided by its norm, each row of W₀ + s·BA has length 1, except rows of zeros"""
    dense = nf4.dequantize(w) if isinstance(w, nf4.Quantized) else w
    updated = dense.astype("f8") + scaling * (b.astype("f8") @ a)
    norms = np.asarray(function(w, scaling, a, b))
    assert norms.shape == (len(updated),), f"shape {norms.shape} for {len(updated)} rows"
    lengths = np.linalg.norm(updated, axis=1)
    close(norms.astype("f8"), np.where(lengths == 0, 1, lengths), tolerance())

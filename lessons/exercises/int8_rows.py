"""int8-rows: a row of weights in 127ths of its largest."""

import numpy as np

CASES = {
    "rows": (1, 4),
    "width": (1, 6),
    "zeros": [False, True],
    "negative": [False, True],
}


def arguments(rng, rows, width, zeros, negative):
    w = rng.uniform(-3, 3, (rows, width)).astype("f4") * 4.0 ** np.arange(rows, dtype="f4")[:, None]
    if negative:
        w = -np.abs(w)
    if zeros:
        w[0] = 0
    return (w,)


def property_half_a_step(function, w):
    """code · absmax/127 is off by at most half of that step"""
    codes, absmax = (np.asarray(part) for part in function(w))
    assert codes.dtype == np.int8, f"codes of {codes.dtype}"
    step = absmax.astype("f8")[:, None] / 127
    # the scale and the product round before the code does, 2⁻²⁴ of at most 127 each
    assert (np.abs(codes * step - w) <= step * (0.5 + 2**-15)).all()


def property_the_largest_is_127(function, w):
    """in every row that is not zero the largest code is 127, and none is −128"""
    codes = np.asarray(function(w)[0]).astype(int)
    assert (np.abs(codes).max(axis=1) == np.where(w.any(axis=1), 127, 0)).all()

"""int8-rows: quantize each row of a weight to int8.

w is (out, in) float32. Return (codes, absmax): absmax (out,) is the largest magnitude of each
row, and codes (out, in) int8 are w · 127/absmax of its row, rounded to the nearest whole number.
In a row of zeros the codes are 0 (MIN_ROW_ABSMAX replaces a smaller absmax, to avoid dividing by
zero). If w · 127/absmax is halfway between two whole numbers, up to float32 rounding, either is
accepted.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {
    "rows": range(1, 5),
    "width": range(2, 7),
    "zeros": [False, True],
    "negative": [False, True],
}
HIDDEN = {"rows": range(5, 10), "width": range(7, 41)}


def arguments(rng, rows, width, zeros, negative):
    w = rng.uniform(-3, 3, (rows, width)).astype("f4") * 4.0 ** np.arange(rows, dtype="f4")[:, None]
    if negative:
        w = -np.abs(w)
    if zeros:
        w[0] = 0
    return (w,)


def observe(result, w):
    """Return codes and absmax; a code next to a tie becomes the lower one."""
    codes, absmax = np.array(result[0]), result[1]
    if codes.shape != w.shape:
        return result
    exact = w.astype("f8") * 127 / np.maximum(np.abs(w).max(axis=1), 1e-36)[:, None]
    low = np.floor(exact)
    halfway = (np.abs(exact - low - 0.5) < 2**-14) & ((codes == low) | (codes == low + 1))
    codes[halfway] = low[halfway]
    return codes, absmax, np.asarray(result[0]).dtype.name


def tolerance(*_):
    """MIN_ROW_ABSMAX for the absmax of a row of zeros; all other absmax values are exact."""
    return 2e-36


def property_one_absmax_per_row(function, w):
    """the absmax of a row is its largest magnitude"""
    close(np.asarray(function(w)[1], "f4"), np.abs(w).max(axis=1), 2e-36)


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


def mistake_range_of_the_row(w):
    low, high = w.min(axis=1), w.max(axis=1)
    x = (w - low[:, None]) / np.maximum(high - low, np.float32(1e-36))[:, None]
    return np.rint(x * 255 - 128).astype(np.int8), np.abs(w).max(axis=1)

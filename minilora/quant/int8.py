"""LLM.int8: a weight in eight bits, and a product of whole numbers.

The idea (Dettmers et al. 2022, LLM.int8(), Sec. 2 and 3). Every row of W keeps its largest
magnitude, the absmax, and each element its share of it in 127ths:

    q = round(127 w / absmax)        w ≈ q · absmax / 127

If the inputs are quantized the same way, row by row, the whole product is one of integers, scaled
once at the end. A few columns of x hold numbers far larger than the rest; they would cost all
others their precision, so these outlier columns are multiplied in floating point (Sec. 3.2).

Letters: N rows of x, D inputs, O outputs.
"""

from dataclasses import dataclass

import numpy as np

from ..config import require

TINY = np.float32(1e-36)  # the smallest absmax that anything is divided by: 127/1e-36 is finite
EXACT = 1040  # 1040 · 127² < 2²⁴: so many products of codes add up without rounding in float32


@dataclass(frozen=True, eq=False)
class Int8:
    """A matrix in eight bits per element."""

    codes: np.ndarray  # (out, in) int8
    absmax: np.ndarray  # (out,) float32

    @property
    def shape(self):
        return self.codes.shape

    @property
    def block_size(self):
        return self.codes.shape[1]

    @property
    def nbytes(self):
        return self.codes.nbytes + self.absmax.nbytes

    def dequantize(self):
        """Return the matrix (out, in) in float32."""
        return self.codes * self.absmax[:, None] * np.float32(1 / 127)


def quantize(w):
    """Quantize w (out, in), taken as float32; InputError if it is not finite.

    A row whose absmax is below 1e-36 comes back smaller than it was, by less than that.
    """
    w = np.asarray(w, np.float32)
    require(np.isfinite(w).all(), "holds a NaN or an infinity: take a sound copy of the file")
    return Int8(*_row_codes(w))


def _row_codes(w):
    absmax = np.abs(w).max(axis=1)
    # q = round(w · 127/absmax)   (LLM.int8, Sec. 2); bitsandbytes takes the reciprocal first
    scale = 1 / np.maximum(absmax, TINY) * np.float32(127)
    return np.rint(w * scale[:, None]).astype(np.int8), absmax


def matmul(x, q, threshold=6.0):
    """Compute y = x Wᵀ for the W (O, D) that q stands for and x (..., D): (..., O) float32.

    Columns of x that hold an |x| ≥ `threshold` are multiplied in floating point, all others as
    8-bit integers, x quantized row by row without what lies above the threshold.
    """
    rows = np.asarray(x, np.float32).reshape(-1, q.shape[1])  # (N, D)
    large = np.abs(rows) >= threshold
    outliers = large.any(axis=0)  # (D,)
    codes, absmax = _row_codes(np.where(large, np.float32(0), rows))
    codes[:, outliers] = 0
    # y = absmaxₓ absmax_w / 127² · Σ qₓ q_w  +  Σ over the outliers x w   (LLM.int8, Sec. 3.2)
    product = _integer_product(codes, q.codes).astype(np.float32)
    y = product * np.outer(absmax, q.absmax) * np.float32(1 / 127**2)
    y += rows[:, outliers] @ Int8(q.codes[:, outliers], q.absmax).dequantize().T
    return y.reshape(*np.shape(x)[:-1], -1)


def _integer_product(a, b):
    """Multiply a (N, D) by b (O, D) transposed, both int8, in int32 without rounding.

    NumPy has a fast product for floats only. Its sums are exact as long as they stay below 2²⁴.
    """
    total = np.zeros((len(a), len(b)), np.int32)
    for at in range(0, a.shape[1], EXACT):
        left, right = (m[:, at : at + EXACT].astype(np.float32) for m in (a, b))
        total += (left @ right.T).astype(np.int32)
    return total

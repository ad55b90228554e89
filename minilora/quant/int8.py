"""LLM.int8: weights in eight bits, and an integer matmul.

The idea (Dettmers et al. 2022, LLM.int8(), Sec. 2 and 3). Each row of W stores its largest
magnitude, the absmax, and an 8-bit integer q per element:

    q = round(127 w / absmax)        w ≈ q · absmax / 127

If the rows of x are quantized in the same way, the matmul is one of integers, scaled at the end. A
few columns of x have much larger numbers than the others, which would be rounded coarsely next to
them. So these outlier columns are multiplied in floating point (Sec. 3.2).

Letters: N rows of x, D inputs, O outputs.
"""

from dataclasses import dataclass

import numpy as np

from ..nf4 import require_finite

TINY = np.float32(1e-36)  # replaces a smaller absmax before dividing: 127/1e-36 is finite
EXACT = 1040  # 1040 · 127² < 2²⁴: float32 sums of so many products of codes are exact


@dataclass(frozen=True, eq=False)
class Int8:
    """A matrix with eight bits per element."""

    codes: np.ndarray  # (out, in) int8
    absmax: np.ndarray  # (out,) float32

    @property
    def shape(self):
        """Shape (out, in)."""
        return self.codes.shape

    @property
    def block_size(self):
        """Number of elements per absmax: a row."""
        return self.codes.shape[1]

    @property
    def nbytes(self):
        """Number of stored bytes."""
        return self.codes.nbytes + self.absmax.nbytes

    def dequantize(self):
        """Return the dense matrix (out, in) float32."""
        return self.codes * self.absmax[:, None] * np.float32(1 / 127)


def quantize(w):
    """Quantize w (out, in), converted to float32; raise InputError if it is not finite."""
    w = np.asarray(w, np.float32)
    require_finite(w)
    return Int8(*_row_codes(w))


def _row_codes(w):
    absmax = np.abs(w).max(axis=1)
    # q = round(w · 127/absmax)   (LLM.int8, Sec. 2); as bitsandbytes, with 1/absmax first
    scale = 1 / np.maximum(absmax, TINY) * np.float32(127)
    return np.rint(w * scale[:, None]).astype(np.int8), absmax


def matmul(x, q, threshold=6.0):
    """Compute y = x Wᵀ for an Int8 W (O, D) and x (..., D): (..., O) float32.

    Columns of x with an |x| ≥ `threshold` are multiplied in floating point, the others as 8-bit
    integers. Elements above the threshold do not count for the absmax of a row of x.
    """
    rows = np.asarray(x, np.float32).reshape(-1, q.shape[1])  # (N, D)
    large = np.abs(rows) >= threshold
    outliers = large.any(axis=0)  # (D,)
    codes, absmax = _row_codes(np.where(large, np.float32(0), rows))
    codes[:, outliers] = 0
    # y = absmaxₓ absmax_w / 127² · Σ qₓ q_w  +  Σ x w over the outliers   (LLM.int8, Sec. 3.2)
    product = _integer_product(codes, q.codes).astype(np.float32)
    y = product * np.outer(absmax, q.absmax) * np.float32(1 / 127**2)
    y += rows[:, outliers] @ Int8(q.codes[:, outliers], q.absmax).dequantize().T
    return y.reshape(*np.shape(x)[:-1], -1)


def _integer_product(a, b):
    """Compute a bᵀ (N, O) int32 of a (N, D) and b (O, D) int8, without rounding."""
    # NumPy's matmul is fast only for floats, whose sums are exact while they are below 2²⁴
    total = np.zeros((len(a), len(b)), np.int32)
    for at in range(0, a.shape[1], EXACT):
        left, right = (m[:, at : at + EXACT].astype(np.float32) for m in (a, b))
        total += (left @ right.T).astype(np.int32)
    return total

"""The product of LLM.int8: whole numbers, and floating point for columns with outliers.

The rows of x are quantized in the same way as the rows of W (`minilora.quant.int8`), so the product
is one of integers and is scaled once at the end. A few columns of x hold numbers that are far
larger than the rest. They would cost all other columns their precision, so these outlier columns
are multiplied in floating point (Dettmers et al. 2022, LLM.int8(), Sec. 3.2).

Letters: N rows of x, D inputs, O outputs.
"""

import numpy as np

from minilora.quant.int8 import Int8, _row_codes

EXACT = 1040  # 1040 · 127² < 2²⁴: float32 adds up so many products of two codes without rounding


def matmul(x, q, threshold=6.0):
    """Compute y = x Wᵀ for an Int8 matrix q = W (O, D) and x (..., D): (..., O) float32.

    Columns of x that hold an |x| ≥ `threshold` are multiplied in floating point. All others are
    multiplied as 8-bit integers; x is quantized row by row, without its outliers.
    """
    rows = np.asarray(x, np.float32).reshape(-1, q.shape[1])  # (N, D)
    large = np.abs(rows) >= threshold
    outliers = large.any(axis=0)  # (D,)
    codes, absmax = _row_codes(np.where(large, np.float32(0), rows))
    codes[:, outliers] = 0
    # y = absmaxₓ absmax_w / 127² · Σ qₓ q_w  +  Σ over the outliers x w   (LLM.int8, Sec. 3.2)
    product = integer_product(codes, q.codes).astype(np.float32)
    y = product * np.outer(absmax, q.absmax) * np.float32(1 / 127**2)
    y += rows[:, outliers] @ Int8(q.codes[:, outliers], q.absmax).dequantize().T
    return y.reshape(*np.shape(x)[:-1], -1)


def integer_product(a, b):
    """Multiply a (N, D) by b (O, D) transposed, both int8: exact, in int32.

    NumPy has a fast product for floats only. Its sums are exact as long as they are below 2²⁴.
    """
    total = np.zeros((len(a), len(b)), np.int32)
    for at in range(0, a.shape[1], EXACT):
        left, right = (m[:, at : at + EXACT].astype(np.float32) for m in (a, b))
        total += (left @ right.T).astype(np.int32)
    return total

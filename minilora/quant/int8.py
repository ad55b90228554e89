"""Int8: a matrix in eight bits per element, with one scale per row.

Each row of W stores its largest magnitude, the absmax, and each element as a whole number of
127ths of it (Dettmers et al. 2022, LLM.int8(), Sec. 2):

    q = round(127 w / absmax)        w ≈ q · absmax / 127

The package dequantizes the weight before it multiplies. The product of whole numbers of LLM.int8
is in `lessons/helpers/llm_int8.py`.
"""

from dataclasses import dataclass

import numpy as np

from ..double_quant import Stored
from ..nf4 import require_finite

MIN_ROW_ABSMAX = np.float32(1e-36)  # replaces a smaller absmax; 127/1e-36 is finite


@dataclass(frozen=True, eq=False)
class Int8(Stored):
    """A matrix with eight bits per element."""

    codes: np.ndarray  # (out, in) int8
    absmax: np.ndarray  # (out,) float32
    compute_dtype: str = "float32"

    unit = np.float32(1 / 127)  # w ≈ code·scale·unit, with a scale per block

    @property
    def shape(self):
        """Shape (out, in)."""
        return self.codes.shape

    @property
    def scales(self):
        """Absmax (out,): a block is a row."""
        return self.absmax

    @property
    def block_size(self):
        """Number of weights per scale."""
        return self.shape[1]

    def dequantize(self):
        """Return the dense matrix (out, in) float32."""
        return self.codes * self.absmax[:, None] * self.unit


def quantize(w):
    """Quantize w (out, in), converted to float32; raise InputError if it is not finite."""
    w = np.asarray(w, np.float32)  # an absmax below 1e-36 shrinks its row, by less than that
    require_finite(w)
    return Int8(*_row_codes(w))


def _row_codes(w):
    absmax = np.abs(w).max(axis=1)
    # q = round(w · 127/absmax)   (LLM.int8, Sec. 2); as bitsandbytes, with 1/absmax first
    scale = 1 / np.maximum(absmax, MIN_ROW_ABSMAX) * np.float32(127)
    return np.rint(w * scale[:, None]).astype(np.int8), absmax

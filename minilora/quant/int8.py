"""Int8: a matrix in eight bits per element, with one scale per row.

Each row of W stores its largest magnitude, the absmax, and each element as a whole number of
127ths of it (Dettmers et al. 2022, LLM.int8(), Sec. 2):

    q = round(127 w / absmax)        w ≈ q · absmax / 127

The package dequantizes the weight before it multiplies. The product of whole numbers of LLM.int8
is in `lessons/llm_int8.py`.
"""

from dataclasses import dataclass

import numpy as np

from ..config import require

TINY = np.float32(1e-36)  # the smallest absmax that anything is divided by: 127/1e-36 is finite


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

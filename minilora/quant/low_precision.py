"""Storage for the embedding and the output head, in the data type of their file.

minilora does not quantize these matrices (see `schemes.py`), but their file may store them in
sixteen or eight bits. With a quantized base, they stay in this type. They are decoded piecewise,
exactly: the selected rows of the embedding, and the head tile by tile.

    Q8_0        x = d·q: blocks of 32 integers q, −128 … 127, with a scale d per block   (GGUF)
    F16, BF16   16 bits; BF16 is the upper half of float32
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..double_quant import Stored
from ..rounding import from_bfloat16

GGUF_BLOCK_SIZE = 32  # elements per scale of Q8_0, Q4_0 and Q4_1


@dataclass(frozen=True, eq=False)
class LowPrecision(Stored):
    """A matrix with sixteen or eight bits per element."""

    kind: str  # Q8_0, F16 or BF16
    codes: np.ndarray  # (rows, width): int8 for Q8_0, otherwise the bits as uint16
    scales: Any = None  # (rows, width/32) float32 for Q8_0
    compute_dtype: str = "float32"

    unit = np.float32(1)  # of Q8_0: w = code·scale·unit, with a scale per block
    block_size = GGUF_BLOCK_SIZE

    @property
    def shape(self):
        """Shape (rows, width)."""
        return self.codes.shape

    def is_finite(self):
        """Return whether all numbers are finite."""
        if self.kind == "Q8_0":
            return np.isfinite(self.scales).all()
        infinity = 0x7C00 if self.kind == "F16" else 0x7F80  # its bits; larger bits are NaN
        return (self.codes & 0x7FFF).max(initial=0) < infinity

    def __getitem__(self, index):
        """Return the rows `index` of the dense matrix in float32: (*index.shape, width)."""
        codes = self.codes[index]
        if self.kind == "Q8_0":
            return codes * np.repeat(self.scales[index], GGUF_BLOCK_SIZE, axis=-1)
        if self.kind == "F16":
            return codes.view(np.float16).astype(np.float32)
        return from_bfloat16(codes)

    def dequantize(self):
        """Return the dense matrix (rows, width) float32."""
        return self[:]

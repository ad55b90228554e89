"""Storage for the embedding and the output head, in the data type of their file.

minilora does not quantize these matrices (see `schemes.py`), but their file may store them in
sixteen or eight bits. With a quantized base, they stay in this type. They are decoded piecewise,
exactly: the selected rows of the embedding, and the head tile by tile.

    Q8_0        x = d·q: blocks of 32 integers q, −128 … 127, with a scale d per block   (GGUF)
    F16, BF16   16 bits: shifted to the bits of float32, they are x/2¹¹² and x
"""

from dataclasses import dataclass

import numpy as np

ONE = np.float32(1)
# the shift of the bits, and the power of two to multiply by
MOVE = {"Q8_0": (0, ONE), "F16": (13, ONE * 2**112), "BF16": (16, ONE)}
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80}  # its bits; larger bits are NaN


@dataclass(frozen=True, eq=False)
class LowPrecision:
    """A matrix with sixteen or eight bits per element."""

    kind: str  # a key of MOVE
    codes: np.ndarray  # (rows, width): int8 for Q8_0, otherwise the bits as uint16
    scales: np.ndarray  # float32: (rows, width/32) for Q8_0, otherwise (1, 1), a one

    @property
    def shape(self):
        """Shape (rows, width)."""
        return self.codes.shape

    @property
    def block_size(self):
        """Number of elements per scale, for Q8_0."""
        return 32

    @property
    def nbytes(self):
        """Number of stored bytes."""
        return self.codes.nbytes + self.scales.nbytes

    def is_finite(self):
        """Return whether all numbers are finite."""
        if self.kind == "Q8_0":
            return bool(np.isfinite(self.scales).all())
        return int((self.codes & 0x7FFF).max(initial=0)) < INFINITY[self.kind]

    def __getitem__(self, index):
        """Return the rows `index` of the dense matrix in float32: (*index.shape, width)."""
        codes = self.codes[index]
        if self.kind == "Q8_0":
            scales = self.scales[index]
            size = self.codes.shape[1] // self.scales.shape[1]  # elements per block
            return codes * np.repeat(scales, size, axis=-1)
        shift, power = MOVE[self.kind]
        bits = codes.astype(np.uint32)
        return ((bits & 0x8000) << 16 | (bits & 0x7FFF) << shift).view(np.float32) * power

    def dequantize(self):
        """Return the dense matrix (rows, width) float32."""
        return self[:]


def halves(bits, kind):
    """Create a LowPrecision matrix of 16-bit elements (rows, width); kind: F16 or BF16."""
    return LowPrecision(kind, bits.view(np.uint16), np.ones((1, 1), np.float32))

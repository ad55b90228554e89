"""The embedding and the output head, held in the type that their file holds them in.

They are never quantized here (see `schemes.py`), but a file may hold them in sixteen or eight bits
already. Beside a quantized base they stay so: every number read is the float32 number that the file
stands for. The embedding reads some rows, the head one tile of rows after the other, so the dense
matrix never exists.

    Q8_0        x = d·q: blocks of 32 whole numbers q, −128 … 127, each with a scale d   (GGUF)
    F16, BF16   sixteen bits: moved to where float32 has its exponent, they are x/2¹¹² and x
"""

from dataclasses import dataclass

import numpy as np

ONE = np.float32(1)
# how far the bits move, and the power of two that they then lack
MOVE = {"Q8_0": (0, ONE), "F16": (13, ONE * 2**112), "BF16": (16, ONE)}
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80}  # its bits; what is larger is NaN


@dataclass(frozen=True, eq=False)
class LowPrecision:
    """A matrix in sixteen or eight bits per element."""

    kind: str  # a key of MOVE
    codes: np.ndarray  # (rows, width): int8 of Q8_0, else the sixteen bits as uint16
    scales: np.ndarray  # float32: (rows, width/32) of Q8_0, else (1, 1), a one

    @property
    def shape(self):
        return self.codes.shape

    @property
    def nbytes(self):
        return self.codes.nbytes + self.scales.nbytes

    def is_finite(self):
        """Return whether no number is NaN or infinite."""
        if self.kind == "Q8_0":
            return bool(np.isfinite(self.scales).all())
        return int((self.codes & 0x7FFF).max(initial=0)) < INFINITY[self.kind]

    def __getitem__(self, index):
        """Return the float32 rows that `index` takes of the dense matrix: (*index, width)."""
        shift, power = MOVE[self.kind]
        index = np.arange(len(self.codes))[index]
        codes = self.codes[index]
        scales = np.broadcast_to(self.scales, (len(self.codes), self.scales.shape[1]))[index]
        if self.kind == "Q8_0":
            x = codes.astype(np.float32)
        else:
            bits = codes.astype(np.uint32)
            x = ((bits & 0x8000) << 16 | (bits & 0x7FFF) << shift).view(np.float32) * power
        size = codes.shape[-1] // scales.shape[-1]  # of a block
        blocks = x.reshape(*codes.shape[:-1], scales.shape[-1], size) * scales[..., None]
        return blocks.reshape(codes.shape)

    def dequantize(self):
        """Return the dense matrix in float32."""
        return self[:]


def halves(bits, kind):
    """Return the matrix whose elements have these bits (rows, width); kind: F16 or BF16."""
    return LowPrecision(kind, bits.view(np.uint16), np.ones((1, 1), np.float32))

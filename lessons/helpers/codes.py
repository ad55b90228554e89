"""Codes of four bits, and small floats."""

import numpy as np

from minilora import nf4

# E2M1 has two exponent bits and one mantissa bit. Both codes have zero twice: 15 different values.
MAGNITUDES = {"e2m1": np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6, "int4": np.arange(8) / 7}
VALUES = {"nf4": nf4.NF4, "fp4": nf4.FP4}
for name, magnitudes in MAGNITUDES.items():
    VALUES[name] = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


def rounded(w, values, block_size=64):
    """Quantize and dequantize w (n,) with a code of 16 values and one absmax per block."""
    x, absmax = nf4.normalize(w, block_size)
    code = nf4.Codebook.from_values(values)
    return code.values[nf4.nearest(x, code)] * np.repeat(absmax, block_size)[: w.size]


def rms(x):
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

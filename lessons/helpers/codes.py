"""Codes of four bits, and small floats."""

import numpy as np

from minilora import nf4

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6  # two exponent bits, one mantissa bit
INT4 = np.arange(8) / 7


def with_signs(magnitudes):
    """Return eight magnitudes and their negatives (16,); if one is zero, 15 are different."""
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


VALUES = {"nf4": nf4.NF4, "fp4": nf4.FP4, "e2m1": with_signs(E2M1), "int4": with_signs(INT4)}


def rounded(w, values, block_size=64):
    """Quantize and dequantize w (n,) with a code of 16 values and one absmax per block."""
    x, absmax = nf4.normalize(w, block_size)
    code = nf4.Codebook.from_values(values)
    return code.values[nf4.nearest(x, code)] * np.repeat(absmax, block_size)[: w.size]


def rms(x):
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

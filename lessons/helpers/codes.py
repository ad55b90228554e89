"""Codes of four bits and fewer, and small floats."""

from statistics import NormalDist

import numpy as np

from minilora import nf4
from minilora.tree import flatten, unflatten

# E2M1 has two exponent bits and one mantissa bit. Both codes have zero twice: 15 different values.
MAGNITUDES = {"e2m1": np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6, "int4": np.arange(8) / 7}
VALUES = {"nf4": nf4.NF4, "fp4": nf4.FP4}
for name, magnitudes in MAGNITUDES.items():
    VALUES[name] = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


def normal_float(bits):
    """Return the 2^bits values that are made as those of NF4 are, float32; see lesson 2."""
    n = 2**bits
    p = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    quantile = NormalDist().inv_cdf
    positive = [quantile(step) for step in np.linspace(p, 0.5, n // 2 + 1)[:-1]]
    negative = [-quantile(step) for step in np.linspace(p, 0.5, n // 2)[:-1]]
    return np.sort([*negative, 0, *positive]).astype(np.float32) / np.float32(max(positive))


def in_few_bits(model, bits):
    """Return a dense model whose projections have only the numbers of a code of few bits."""
    values = normal_float(bits)
    leaves = flatten(model.base)
    for path, w in leaves.items():
        if "_proj" in path:
            leaves[path] = rounded(w.ravel(), values).reshape(w.shape)
    return model._replace(base=unflatten(leaves))


def rounded(w, values, block_size=64):
    """Quantize and dequantize w (n,) with the values of a code and one absmax per block."""
    x, absmax = nf4.normalize(w, block_size)
    code = nf4.Codebook.from_values(values)
    return code.values[nf4.nearest(x, code)] * np.repeat(absmax, block_size)[: w.size]


def rms(x):
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

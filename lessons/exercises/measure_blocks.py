"""measure-blocks: what do large blocks cost if the weights have heavy tails?

Draw five matrices of shape (64, 256) from Student's t distribution with three degrees of freedom,
`np.random.default_rng(seed).standard_t(3, (64, 256))` in float32, with the seeds 100 to 104.
Quantize each matrix to NF4 with blocks of 64 and with blocks of 4096, without double quantization
(`minilora.nf4.quantize(w, block_size)`), and dequantize it (`minilora.nf4.dequantize`). Hand in
five quotients: the mean squared error with blocks of 4096, divided by that with blocks of 64. Do
not round them.

The function of the exercise only returns your numbers. The check compares them with twenty other
matrices: their mean must be where the mean of five further ones is, and their spread must be
neither near zero nor several times larger.

Write into REASON the mean and the range of your quotients, and the same for five matrices of normal
weights. Why do the two differ, and why do the quotients of heavy tails differ so much among
themselves?
"""

import runpy
from functools import cache
from pathlib import Path

import numpy as np

from minilora import nf4

SEEDS = runpy.run_path(str(Path(__file__).with_name("measure_seeds.py")))


def quotient(seed):
    """Measure the quotient for one matrix."""
    w = np.random.default_rng(seed).standard_t(3, (64, 256)).astype(np.float32)
    small, large = (np.mean((nf4.dequantize(nf4.quantize(w, n)) - w) ** 2) for n in (64, 4096))
    return float(large / small)


@cache
def others():
    """Return the quotients of twenty matrices with other seeds."""
    return [quotient(seed) for seed in range(20)]


def compare(answer):
    """Return a word for five numbers, compared with twenty other matrices."""
    return SEEDS["compare"](answer, others(), 3.9)  # 999 of 1000, 19 degrees of freedom


def observe(answer):
    """Return a word for this kind of answer."""
    found = compare(answer)
    if found == "a lower mean" and compare(np.square(answer)) == SEEDS["RIGHT"]:
        return "roots of the quotients"
    return found


def property_five_matrices(function):
    """the five numbers are where those of five further matrices are"""
    found = observe(function())
    assert found == SEEDS["RIGHT"], found


def quotients():
    """Return the five measured quotients, a list."""
    return [10.029921, 13.205854, 11.2059, 9.561444, 11.3089075]

"""swiglu: compute the hidden units of the feed-forward layer.

Return SiLU(gate)·up, element by element, with SiLU(a) = a·σ(a) and σ(a) = 1/(1 + e⁻ᵃ). gate, up and
the result have the same shape. The result must not overflow if gate is −1000 or 1000.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"rows": range(1, 4), "width": range(1, 6), "large": [False, True]}
HIDDEN = {"rows": range(4, 8), "width": range(6, 18)}


def arguments(rng, rows, width, large):
    gate, up = rng.uniform(-4, 4, (2, rows, 2, width))
    return (1000 * gate if large else gate), up


def tolerance(gate, up):
    """float64: |y| ≤ |gate|·|up|, and e^(−log …) adds the rounding of an exponent of |gate|."""
    return 2.0**-50 * (1 + float(np.abs(gate).max())) ** 2


def property_an_open_gate(function, gate, up):
    """if every gate is 100, the result is 100·up; if every gate is −1000, it is 0"""
    close(function(np.full_like(gate, 100.0), up), 100 * up, 2.0**-42)
    close(function(np.full_like(gate, -1000.0), up), 0 * up, 1e-300)


def property_both_signs(function, gate, up):
    """y(gate) − y(−gate) = gate·up, since σ(a) + σ(−a) = 1"""
    both = np.asarray(function(gate, up)) - np.asarray(function(-gate, up))
    close(both, gate * up, 2 * tolerance(gate, up))

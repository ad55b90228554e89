"""lowrank-gradient: derive the backward pass of s·BAx.

y = scaling · B(Ax) for each token x. From g = ∂L/∂y (batch, T, out), return (∂L/∂x, ∂L/∂A, ∂L/∂B),
in the shapes of x (batch, T, in), a (r, in) and b (out, r). All tokens share a and b, so the
gradients of a and b are sums over the tokens.
"""

import numpy as np

from minilora.course.outcome import close


def lora_matmul_backward(g, x, a, b, scaling):
    """Compute (∂L/∂x, ∂L/∂A, ∂L/∂B) of y = s·BAx, the low-rank term of LoRA, from g = ∂L/∂y.

    Shapes: g (B, T, out), x (B, T, in), a (r, in), b (out, r). `scaling` is s.
    """
    # y = Bz with z = s·Ax:   ∂L/∂B = Σ g zᵀ,  ∂L/∂A = Σ (s·Bᵀg) xᵀ,  ∂L/∂x = Aᵀ(s·Bᵀg)
    z, up = scaling * (x @ a.T), scaling * (g @ b)
    return up @ a, np.einsum("bti,bto->io", up, x), np.einsum("bti,bto->io", g, z)


CASES = {
    "batch": range(1, 3),
    "length": range(1, 4),
    "width": range(2, 5),
    "out": range(2, 5),
    "r": range(2, 4),
}
HIDDEN = {
    "batch": range(3, 5),
    "length": range(4, 7),
    "width": range(5, 10),
    "out": range(5, 9),
    "r": range(4, 6),
}


def arguments(rng, batch, length, width, out, r):
    g, x = rng.uniform(-1, 1, (batch, length, out)), rng.uniform(-1, 1, (batch, length, width))
    a, b = rng.uniform(-1, 1, (r, width)), rng.uniform(-1, 1, (out, r))
    return g, x, a, b, float(rng.uniform(1.5, 3))


def tolerance(*_):
    """float64: sums of some 24·9·5 terms of at most 3, 2⁻⁵³ each; with room, 2⁻⁴¹."""
    return 2.0**-41


def product(x, a, b, scaling):
    """s·BAx"""
    return scaling * (x @ a.T) @ b.T


def slope(function, x, direction, step=2.0**-17):
    """Return the slope of Σ function(x) along a direction, by a central difference.

    It is the sum of the products of gradient and direction. The error is of the order step², and
    2⁻⁵³/step of rounding: use a bound of some 1e-9 times the size of what is summed.
    """
    ends = [np.sum(function(x + sign * step * direction)) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def property_slopes(function, g, x, a, b, scaling):
    """along any direction, Σ g∘(s·BAx) has the slope Σ gradient∘direction"""
    dx, da, db = (np.asarray(part) for part in function(g, x, a, b, scaling))
    losses = (lambda x: g * product(x, a, b, scaling), lambda a: g * product(x, a, b, scaling),
              lambda b: g * product(x, a, b, scaling))  # fmt: skip
    rng = np.random.default_rng(0)
    for loss, where, gradient in zip(losses, (x, a, b), (dx, da, db)):
        assert gradient.shape == where.shape, f"shape {gradient.shape} instead of {where.shape}"
        direction = rng.uniform(-1, 1, where.shape)
        # a sum of at most 24·9·5·8 terms of at most 3
        close(np.sum(gradient * direction), slope(loss, where, direction), 1e-6)


def property_why_b_moves_first(function, g, x, a, b, scaling):
    """with B = 0, ∂L/∂A is zero and ∂L/∂B is not"""
    _, da, db = function(g, x, a, np.zeros_like(b), scaling)
    close(da, np.zeros_like(a))
    assert np.any(np.asarray(db) != 0), "∂L/∂B is also zero, so no parameter would ever change"

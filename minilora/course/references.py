"""Gradients derived by hand: references of exercises. In the package, autograd derives them."""

import numpy as np

from ..layers import dense


def lora_matmul_backward(g, x, a, b, scaling):
    """Compute (∂L/∂x, ∂L/∂A, ∂L/∂B) of y = s·BAx, the low-rank term of LoRA, from g = ∂L/∂y.

    Shapes: g (B, T, out), x (B, T, in), a (r, in), b (out, r). `scaling` is s.
    """
    # y = Bz with z = s·Ax:   ∂L/∂B = Σ g zᵀ,  ∂L/∂A = Σ (s·Bᵀg) xᵀ,  ∂L/∂x = Aᵀ(s·Bᵀg)
    z, up = scaling * (x @ a.T), scaling * (g @ b)
    return up @ a, np.einsum("bti,bto->io", up, x), np.einsum("bti,bto->io", g, z)


def frozen_matmul_backward(g, w):
    """Compute ∂L/∂x of y = x Wᵀ from g = ∂L/∂y; W (out, in) is frozen, dense or quantized."""
    return g @ dense(w)

"""The products of a projection, each with its gradient written out: the arithmetic of `nn.linear`.

Part 3 of `lessons/00_qlora_in_one_file.py`, made general: the products of a projection with the
gradients of all their factors.

A weight is trained (`matmul`), frozen (`product`) or of low rank (`lowrank`), and always (out, in):
y = x Wᵀ. The leading axes of x, (..., in), are the rows of one product.
"""

from autograd.extend import defvjp, defvjp_argnums, primitive


@primitive
def matmul(x, w):
    """x Wᵀ with a trained W: (..., in) -> (..., out).

    A W (B, out, in) is a matrix for each row of the batch x (B, T, in).
    """
    return _fold(x, w.swapaxes(-1, -2))


# ∂L/∂x = (∂L/∂y) W        ∂L/∂W = (∂L/∂y)ᵀ x
defvjp(
    matmul,
    lambda y, x, w: lambda g: _fold(g, w),
    lambda y, x, w: lambda g: _outer(g, x, w),
)


@primitive
def product(x, w):
    """x Wᵀ with a frozen W: (..., in) -> (..., out).

    A primitive of its own, so that autograd keeps W's codes and not its dense copy: a quantized
    weight is dequantized here, used and dropped, and dequantized again in the backward pass
    (QLoRA, Sec. 3, Eq. 5).
    """
    return _fold(x, dense(w).T)


def product_back(g, w):
    """∂L/∂x of `product`, for g = ∂L/∂y (..., out); there is no ∂L/∂W, for W is frozen."""
    # ∂L/∂x = (∂L/∂y) W
    return _fold(g, dense(w))


defvjp(product, lambda y, x, w: lambda g: product_back(g, w), argnums=(0,))


@primitive
def lowrank(x, a, b, scaling):
    """s·BAx by two thin products, never BA itself: (..., in) -> (..., out).

    a: `lora_A` (r, in), b: `lora_B` (out, r); both may have an axis in front, the batch's.
    """
    return _fold(scaling * _fold(x, a.swapaxes(-1, -2)), b.swapaxes(-1, -2))


def lowrank_back(g, x, a, b, scaling):
    """∂L/∂x, ∂L/∂A and ∂L/∂B of `lowrank`, for g = ∂L/∂y (..., out)."""
    # y = s·B(Ax):   ∂L/∂B = g·(s·Ax)ᵀ    ∂L/∂A = (s·Bᵀg)·xᵀ    ∂L/∂x = Aᵀ(s·Bᵀg)
    down, up = scaling * _fold(x, a.swapaxes(-1, -2)), scaling * _fold(g, b)
    return _fold(up, a), _outer(up, x, a), _outer(g, down, b)


def _lowrank_vjp(argnums, y, args, kwargs):
    def vjp(g):
        grads = lowrank_back(g, *args)
        return tuple(grads[n] for n in argnums)

    return vjp


defvjp_argnums(lowrank, _lowrank_vjp)


def _fold(x, m):
    """x m, the leading axes of x folded into rows; m (in, out), or one per row of the batch."""
    return x @ m if m.ndim == 3 else (_rows(x) @ m).reshape(*x.shape[:-1], -1)


def _outer(g, x, w):
    """gᵀx, as w is one matrix or one for each row of the batch."""
    return g.swapaxes(-1, -2) @ x if w.ndim == 3 else _rows(g).T @ _rows(x)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def dense(w):
    """Return the weight as an array, dequantized if it is in codes."""
    return w.dequantize() if hasattr(w, "dequantize") else w

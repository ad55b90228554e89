"""Optimized projections: the weight's product and LoRA's update as one primitive.

Part 3 of `lessons/00_qlora_in_one_file.py`, optimized. Letters as in `layers.py`; g is ∂L/∂y.
"""

from autograd.extend import primitive
from autograd.tracer import isbox

from .. import layers
from ..config import InputError
from .gradients import define_gradients
from .loops import rows
from .weights import matmul, tiled_matmul, tiled_matmul_backward

# With y = W₀x + Bz and z = s·Ax:
#   ∂L/∂B = gᵀz    ∂L/∂z = gB    ∂L/∂A = s·(∂L/∂z)ᵀx    ∂L/∂x = gW₀ + s·(∂L/∂z)A


def linear(x, node, rng=None):
    """Compute `layers.linear`, but dequantize a weight tile by tile. Keeps x for LoRA."""
    if isbox(node["weight"]):
        return layers.linear(x, node, rng)
    if "lora_A" not in node or (rng and node["lora_dropout"]):
        return layers.linear(x, node, rng, matmul)
    h = _linear(x, node["lora_A"], node["lora_B"], node["lora_scaling"], node["weight"])
    return h + node["bias"] if "bias" in node else h


@primitive
def _linear(x, a, b, scaling, weight):
    y = tiled_matmul(x, weight)
    flat = rows(y)  # the same memory as y
    flat += scaling * (rows(x) @ a.T) @ b.T
    return y


def _linear_backward(g, argnums, x, a, b, scaling, weight):
    if 3 in argnums:  # autograd traces the numbers of a tree, too
        what = "a setting, such as lora_scaling, has no gradient"
        raise InputError(f"{what}: use layers.value_and_grad, which leaves settings out")
    flat = rows(g)
    z = scaling * (rows(x) @ a.T)
    dz = scaling * (flat @ b)
    dx = None
    if 0 in argnums:
        dx = tiled_matmul_backward(flat, weight)
        dx += dz @ a
        dx = dx.reshape(x.shape)
    return dx, dz.T @ rows(x), flat.T @ z


define_gradients(_linear, lambda y, *args: args, _linear_backward)

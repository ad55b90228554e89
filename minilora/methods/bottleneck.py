"""Bottleneck adapters (Houlsby et al. 2019): a small network after o_proj and down_proj."""

import autograd.numpy as np

from ..layers import Hook, gelu, matmul
from ..tree import unflatten
from .method import Method, projections, uniform

TARGETS = ("o_proj", "down_proj")
ENTRIES = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")


def init(base, config, rng):
    """Create the network after each sublayer; its up matrix is zero."""
    m = config.bottleneck_size
    nodes = {
        path: {
            "bottleneck_down": uniform(rng, (m, D), 1 / np.sqrt(D)),
            "bottleneck_down_bias": np.zeros(m, "f4"),
            "bottleneck_up": np.zeros((D, m), "f4"),
            "bottleneck_up_bias": np.zeros(D, "f4"),
        }
        for path, (D, _) in projections(base, TARGETS).items()
    }
    return unflatten(nodes)


def apply(inner, x, node, rng):
    """Apply the bottleneck to the output of the projection: (..., D) -> (..., D)."""
    h = inner(x, node, rng)
    # h + W_up·gelu(W_down·h + b) + b   (Houlsby et al. 2019, Sec. 2.1)
    z = gelu(matmul(h, node["bottleneck_down"]) + node["bottleneck_down_bias"])
    return h + matmul(z, node["bottleneck_up"]) + node["bottleneck_up_bias"]


METHOD = Method(
    "bottleneck",
    init,
    hooks=(Hook(ENTRIES, apply),),
    size="bottleneck_size",
    # h, and the powers in gelu, and its result
    extra_floats={"bottleneck_down": lambda leaf: leaf.shape[1] + 6 * len(leaf)},
)

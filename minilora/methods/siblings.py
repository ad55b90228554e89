"""What LoRA's siblings compute: DoRA's norms, a bottleneck behind a sublayer, rows of a prompt.

`nn.linear` and `model.hidden` call these where a tree has their leaves, and nowhere else;
`methods.py` says how they start. Weights are (out, in), as in `nn.py`.
"""

import autograd.numpy as np
from autograd.extend import notrace_primitive

from ..kernels.weights import dense
from ..products import matmul
from ..tree import leaf


def row_norms(trained, frozen):
    """Return ‖W₀ + (α/r)·BA‖ of each row, (out,), a constant to autograd; 1 for zeros."""
    factors = frozen["lora_scaling"], trained["lora_A"], trained["lora_B"]
    return _row_norms(leaf(trained, frozen, "weight"), *factors)


@notrace_primitive
def _row_norms(w, scaling, a, b):
    w = dense(w)
    norms = np.linalg.norm(w + w.dtype.type(scaling) * (b @ a), axis=1)
    return np.where(norms == 0, norms.dtype.type(1), norms)


def bottleneck(h, trained):
    """Apply an adapter behind a sublayer (Houlsby et al. 2019, Sec. 2.1): (..., D) -> (..., D)."""
    # h + W_up·gelu(W_down·h + b) + b
    z = gelu(matmul(h, trained["bottleneck_down"]) + trained["bottleneck_down_bias"])
    return h + matmul(z, trained["bottleneck_up"]) + trained["bottleneck_up_bias"]


def gelu(x):
    """Compute x·Φ(x) by the approximation with tanh (Hendrycks and Gimpel 2016, Sec. 2)."""
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * (x * x * x))))


def prompt(trained):
    """Return the rows (n, D) that stand before the embedded tokens, or None."""
    if "prompt_encoder" not in trained:
        return trained.get("prompt_embeddings")
    # PEFT's network of three layers (Liu et al. 2021)
    x = trained["prompt_encoder"]["embedding"]["weight"]
    layers = trained["prompt_encoder"]["mlp_head"]
    for n in ("0", "2", "4"):  # PEFT's numbers: 1 and 3 are the ReLUs
        x = matmul(x if n == "0" else np.maximum(x, 0), layers[n]["weight"]) + layers[n]["bias"]
    return x

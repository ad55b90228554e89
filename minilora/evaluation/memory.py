"""Memory of a fine-tuning step: an estimate, and the measured peak."""

import math
import os
import sys

from ..methods.registry import ORDER
from ..quant.schemes import is_projection
from ..tree import Tree, arrays, flatten, layer_of, named_leaves, num_parameters

ADAM_FLOATS = 2  # m and v, float32, per trained parameter


def memory_estimate(adapters, base, model_config, tokens):
    """Return {part: bytes} of an optimized float32 step with `tokens` tokens per batch.

    Weights, adapters, gradients and Adam's moments are exact (Muon has only one number per element
    of a matrix, instead of two). `activations` are the arrays kept for
    the backward pass (see `activation_floats`), without gradient checkpointing.
    """
    trained = 4 * num_parameters(adapters)
    return {
        "frozen weights": nbytes(base),
        "trained weights": trained, "their gradients": trained,
        "Adam's two moments": ADAM_FLOATS * trained,
        "activations": 4 * tokens * activation_floats(adapters, base, model_config),
    }  # fmt: skip


def activation_floats(adapters, base, model_config):
    """Count the floats per token that the optimized operations keep for the backward pass.

    A layer keeps the outputs of both norms and one number per norm, rotated q and k, v, one number
    per head, gate and the input of down_proj. A trained o_proj keeps its input. The lowest adapted
    layer is counted in full. The scores of prefix tuning, which grow with the square of the length,
    are not counted.
    """
    D, F, hd = model_config.hidden_size, model_config.intermediate_size, model_config.head_dim
    H, K = model_config.num_attention_heads, model_config.num_key_value_heads
    layer = 2 * (D + 1) + (H + 2 * K) * hd + H + 2 * F
    if model_config.qk_norm:  # both sides of the norms of the heads
        layer += (H + K) * (2 * hd + 1)
    layer += 2 * sum(name is not None for name in model_config.norms[1::2]) * (D + 1)
    if model_config.hidden_act != "silu":  # the powers in gelu, and its result
        layer += 5 * F
    L = model_config.num_hidden_layers
    kept = D + 1
    extra = {name: floats for m in ORDER for name, floats in m.extra_floats.items()}
    trained = arrays(adapters)
    for path, w in named_leaves(trained):
        node, _, name = path.rpartition(".")
        if name in extra:
            kept += extra[name](w)
        elif name in ("lora_A", "weight") and node.endswith("o_proj"):
            kept += w.shape[1]
    # the backward pass ends at the lowest of these layers; at none if only the head is trained
    virtual = ("model.embed", "model.prompt")
    layers = [0 if path.startswith(virtual) else layer_of(path) for path in flatten(trained)]
    return (L - min((n for n in layers if n >= 0), default=L)) * layer + kept


def format_estimate(parts):
    """Return the estimate {part: bytes} as text, one line per part and the sum."""
    parts = {**parts, "together": sum(parts.values())}
    return "\n".join(f"  {name:<20}{size / 1e6:>12,.2f} MB" for name, size in parts.items())


def print_trainable_parameters(adapters: Tree, base: Tree) -> None:
    """Print the number and the share of trained parameters, in the format of PEFT."""
    replaced = flatten(base).keys()
    added = sum(w.size for path, w in named_leaves(arrays(adapters)) if path not in replaced)
    trained = num_parameters(adapters)
    total = num_parameters(base) + added
    share = f"trainable%: {100 * trained / total:.4f}"
    print(f"trainable params: {trained:,} || all params: {total:,} || {share}")


def bits_per_weight(base):
    """Return the stored bits per weight of the projections, scales included."""
    weights = {path: w for path, w in named_leaves(base) if is_projection(path)}
    return 8 * nbytes(weights) / num_parameters(weights)


def nbytes(tree):
    """Count the bytes of the leaves in memory."""
    return sum(getattr(leaf, "nbytes", 0) for _, leaf in named_leaves(tree))


def physical_memory() -> float:
    """Return this machine's memory in bytes; infinity if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def peak_rss_mb():
    """Return the peak resident memory of this process in MB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)

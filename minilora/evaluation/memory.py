"""Memory of a fine-tuning step: an estimate, and the measured peak."""

import math
import os
import re
import sys
from pathlib import Path

from ..methods.muon import split_matrices
from ..methods.registry import METHODS
from ..model import Model
from ..quant.schemes import is_projection
from ..tree import Tree, arrays, layer_of, named_leaves, num_parameters, overlay

ADAM_FLOATS = 2  # m and v, float32, per trained parameter


def memory_estimate(adapters, model, tokens):
    """Return {part: bytes} of an optimized float32 step with `tokens` tokens per batch.

    Weights, adapters, gradients and Adam's moments are exact. `activations` are the arrays kept for
    the backward pass (see `activation_floats`), without gradient checkpointing.
    """
    trained = 4 * num_parameters(adapters)
    return {
        "frozen weights": nbytes(model.base),
        "trained weights": trained,
        "their gradients": trained,
        "Adam's two moments": ADAM_FLOATS * trained,
        "activations": 4 * tokens * activation_floats(adapters, model.config),
    }


def estimate_with(train_config, adapters, model, tokens):
    """Return `memory_estimate` with the settings of a TrainConfig, and with VeRA's matrices."""
    parts = memory_estimate(adapters, model, tokens)
    tuples = [leaf for _, leaf in named_leaves(adapters) if isinstance(leaf, tuple)]
    shared = {id(w): w.nbytes for pair in tuples for w in pair}  # one pair for all layers
    parts["frozen weights"] += sum(shared.values())
    if train_config.gradient_checkpointing:
        floats = activation_floats(adapters, model.config, checkpointing=True)
        parts["activations"] = 4 * tokens * floats
    if train_config.optimizer == "muon":  # one number per element of a matrix
        matrices, _ = split_matrices(arrays(adapters))
        parts["Muon's averages"] = parts.pop("Adam's two moments") - nbytes(matrices)
    return parts


def activation_floats(adapters, model_config, checkpointing=False):
    """Count the floats per token that the optimized operations keep for the backward pass.

    A layer keeps the outputs of both norms and one number per norm, rotated q and k, v, one number
    per head, gate and the input of down_proj. A trained o_proj keeps its input. The lowest adapted
    layer is counted in full. The scores of prefix tuning, which grow with the square of the length,
    are not counted. checkpointing: each layer keeps its input, and one is recomputed at a time.
    """
    D = model_config.hidden_size
    F = model_config.intermediate_size
    H = model_config.num_attention_heads
    K = model_config.num_key_value_heads
    hd = model_config.head_dim
    layer = 2 * (D + 1) + (H + 2 * K) * hd + H + 2 * F
    if model_config.qk_norm:  # both sides of the norms of the heads
        layer += (H + K) * (2 * hd + 1)
    layer += (D + 1) * sum(map(bool, model_config.norms[1::2]))
    if model_config.hidden_act != "silu":  # the powers in gelu, and its result
        layer += 6 * F
    L = model_config.num_hidden_layers
    lowest = L
    kept = 0
    extra = {name: floats for m in METHODS.values() for name, floats in m.extra_floats.items()}
    for path, w in named_leaves(arrays(adapters)):
        # the backward pass ends at the lowest of these layers; at none if only the head is trained
        if path.startswith(("model.embed", "model.prompt")):
            lowest = 0
        elif path.startswith("model.layers."):
            lowest = min(lowest, layer_of(path))
        name = path.rpartition(".")[2]
        if name in extra:
            kept += extra[name](w)
        elif path.endswith(("o_proj.lora_A", "o_proj.weight")):
            kept += w.shape[1]
    kept += (L - lowest) * layer
    if checkpointing and lowest < L:
        kept = (L - lowest) * D + kept // (L - lowest)
    return kept + D + 1


def format_estimate(parts):
    """Return the estimate {part: bytes} as text, one line per part and the sum."""
    parts = parts | {"together": sum(parts.values())}
    return "\n".join(f"  {name:<20}{size / 1e6:>12,.2f} MB" for name, size in parts.items())


def print_trainable_parameters(adapters: Tree, model: Model) -> None:
    """Print the number and the share of trained parameters, in the format of PEFT."""
    trained = num_parameters(adapters)
    total = num_parameters(overlay(model.base, adapters))
    print(
        f"trainable params: {trained:,} || all params: {total:,} || "
        f"trainable%: {100 * trained / total:.4f}"
    )


def bits_per_weight(base):
    """Return the stored bits per weight of the projections, scales included."""
    weights = {path: w for path, w in named_leaves(base) if is_projection(path)}
    return 8 * nbytes(weights) / num_parameters(weights)


def nbytes(tree):
    """Count the bytes of the leaves in memory."""
    return sum(getattr(leaf, "nbytes", 0) for _, leaf in named_leaves(tree))


def physical_memory():
    """Return this machine's memory in bytes; infinity if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def peak_rss_mb():
    """Return the peak resident memory of this process in MB; None on Windows.

    On Linux, `ru_maxrss` of a process begins at the peak of the process that started it. `VmHWM` in
    /proc does not.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

"""The byte ledger: where a fine-tuning step's memory goes, predicted and measured."""

import sys

from ..config import ALL_LINEAR
from ..kernels.fused import factors_alone
from ..tree import count, get, layer_of, nbytes, walk

# Floats a token that the line which reads a leaf keeps, beside a projection's input.
BESIDE = {
    "lora_magnitude_vector": len,  # the output before it is scaled
    "ia3_l": lambda w: w.size,  # what is scaled
    "bottleneck_down": lambda w: w.shape[1] + 8 * len(w),  # h, and the powers inside gelu
}
ADAM_FLOATS = 2  # m and v, a float32 each, for every trained parameter


def ledger(adapters, base, config, tokens):
    """{part: bytes} of a step of the fused path over `tokens` tokens a batch, float32.

    Weights, adapters, gradients and Adam's moments are exact; `activations` is what the backward
    pass keeps (see `kept_floats`), without gradient checkpointing.
    """
    trained = 4 * count(adapters)
    return {
        "frozen weights": nbytes(base),
        "trained weights": trained,
        "their gradients": trained,
        "Adam's two moments": ADAM_FLOATS * trained,
        "activations": 4 * tokens * kept_floats(adapters, base, config),
    }


def kept_floats(adapters, base, config):
    """Floats a token that the fused operations keep for the backward pass.

    Each layer: the outputs of the two norms (which q, k, v and gate, up read as well) and a number
    a norm, turned q and k, v, a number a head, gate and up; for o_proj and down_proj, where they
    have low-rank factors or a trained weight, their input (down_proj's is made again where the
    factors stand alone); and what the leaves beside a projection keep (`BESIDE`). The first adapted
    layer's share is counted in full. A prefix's scores, which grow with the square of the length,
    are left out.
    """
    D, F, hd = config.hidden_size, config.intermediate_size, config.head_dim
    H, K = config.num_attention_heads, config.num_key_value_heads
    layer = 2 * (D + 1) + (H + 2 * K) * hd + H + 2 * F
    L, kept = config.num_hidden_layers, D + 1
    for path, w in walk(adapters):
        node, _, name = path.rpartition(".")
        if name in ("lora_A", "weight") and node.endswith(("o_proj", "down_proj")):
            again = node.endswith("down_proj") and factors_alone(
                get(adapters, node), get(base, node)
            )
            kept += 0 if again else w.shape[1]
        kept += BESIDE[name](w) if name in BESIDE else 0
    return (L - first_layer(adapters, L)) * layer + kept


def first_layer(adapters, L):
    """The lowest layer that the backward pass has to go back to; L if it stops at the head."""
    paths = [path for path, _ in walk(adapters)]
    if any(path.startswith(("model.embed", "model.prompt")) for path in paths):
        return 0
    return min((layer_of(path) for path in paths if layer_of(path) >= 0), default=L)


def table(parts):
    """The ledger as text, a line a part, with the sum."""
    lines = [f"  {name:<20}{size / 1e6:>12,.2f} MB" for name, size in parts.items()]
    return "\n".join([*lines, f"  {'together':<20}{sum(parts.values()) / 1e6:>12,.2f} MB"])


def summary(adapters, base):
    """How much is trained of how much: one line."""
    trained, total = count(adapters), count(base)
    added = sum(leaf.size for path, leaf in walk(adapters) if "lora_" in path)
    return (
        f"{trained:,} trained parameters beside {total:,} ({100 * trained / total:.3f} %), "
        f"{added:,} of them in low-rank factors"
    )


def bits_per_weight(base):
    """Bits that a weight of the layers' projections occupies, scales included."""
    leaves = [w for path, w in walk(base) if path.removesuffix(".weight").endswith(ALL_LINEAR)]
    weights = [w for w in leaves if hasattr(w, "shape") and len(w.shape) == 2]
    return 8 * sum(w.nbytes for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)


def peak_rss_mb():
    """The largest resident set of this process so far, in MB, as the operating system counts it.

    None where it does not count (Windows).
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)

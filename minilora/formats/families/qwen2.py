"""Qwen2: Llama with biases of q, k and v, and a sliding window in the upper layers if at all."""

from ...config import ATTENTION, InputError
from ..fields import boolean, layer_types, size
from .family import Family


def read(raw):
    """Return the window, and the layers that have it: from max_window_layers on, or layer_types."""
    first = raw.get("max_window_layers", 28)
    n = size(raw, "num_hidden_layers")
    if type(first) is not int:
        raise InputError(f"max_window_layers must be a whole number, got {first!r}")
    if not boolean(raw, "use_sliding_window") or raw.get("sliding_window", 4096) is None:
        return {}
    upper = ["sliding_attention" if i >= first else "full_attention" for i in range(n)]
    types = layer_types(raw, upper)
    if "sliding_attention" not in types:
        return {}
    mixed = "full_attention" in types
    window = size(raw, "sliding_window", 4096)
    return {"sliding_window": window, "layer_types": types if mixed else None}


def write(config):
    """Return the fields of the window."""
    used = config.sliding_window is not None
    fields = {"sliding_window": config.sliding_window, "use_sliding_window": used}
    fields["max_window_layers"] = 0
    if config.layer_types:
        fields["layer_types"] = list(config.layer_types)
    return fields


FAMILY = Family(
    "qwen2", "Qwen2ForCausalLM",
    biases=(ATTENTION[:3],), always_biased=True, read=read, write=write,
)  # fmt: skip

"""Mistral: Llama with a sliding window in all layers."""

from ..fields import size
from .family import Family


def read(raw):
    """Return the window: null is none, and a missing field is one of 4096."""
    if raw.get("sliding_window", 4096) is None:
        return {}
    return {"sliding_window": size(raw, "sliding_window", 4096)}


FAMILY = Family(
    "mistral", "MistralForCausalLM",
    read=read, write=lambda config: {"sliding_window": config.sliding_window},
)  # fmt: skip

"""Mistral: Llama with a sliding window in all layers."""

from .family import Family

FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    # null is no window
    read=lambda raw: {"sliding_window": raw.get("sliding_window", 4096)},
    write=lambda config: {"sliding_window": config.sliding_window},
)

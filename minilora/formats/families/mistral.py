"""Mistral: Llama with a sliding window in all layers, or in those of layer_types (Ministral)."""

from ..fields import FULL, layer_types
from .family import Family


def read(raw):
    """Return the window, and the layers that have it if layer_types names them."""
    window = raw.get("sliding_window", 4096)  # null is no window
    types = layer_types(raw, [FULL] * raw["num_hidden_layers"])
    return {"sliding_window": window, "layer_types": types if raw.get("layer_types") else None}


def write(config):
    """Return the fields of the window."""
    fields = {"sliding_window": config.sliding_window, "layer_types": config.layer_types}
    if config.layer_types is None:
        del fields["layer_types"]  # with it, even if it is null, transformers makes a Ministral
    return fields


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    read=read,
    write=write,
    defaults={
        "layer_types": None,  # not kept
        "max_position_embeddings": 131072,
    },
)

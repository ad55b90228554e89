"""Qwen2: Llama with biases of q, k and v, and a sliding window in the upper layers if at all."""

from ...config import ATTENTION, NON_NEGATIVE_INT, InputError
from ..fields import FULL, SLIDING, layer_types, number
from .family import Family


def read(raw):
    """Return the window, and the layers that have it: from max_window_layers on, or layer_types."""
    window = raw.get("sliding_window", 4096)
    n = raw["num_hidden_layers"]
    if not raw.get("use_sliding_window") or window is None:
        if SLIDING in layer_types(raw, [FULL] * n):
            raise InputError(f"layer_types has {SLIDING}, but there is no sliding_window in use")
        return {}
    first = number(raw, "max_window_layers", NON_NEGATIVE_INT, 28)
    upper = [SLIDING if i >= first else FULL for i in range(n)]
    types = layer_types(raw, upper)
    return {"sliding_window": window, "layer_types": types} if SLIDING in types else {}


def write(config):
    """Return the fields of the window."""
    return {
        "sliding_window": config.sliding_window,
        "max_window_layers": 0,
        "use_sliding_window": config.sliding_window is not None,
        "layer_types": config.layer_types,
    }


DEFAULTS = {"max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None}
FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    biases=(ATTENTION[:3],),
    always_biased=True,
    read=read,
    write=write,
    defaults=DEFAULTS,
)

"""Gemma 3 (text): norms also after the sublayers, gelu, and one full layer after five sliding ones.

The norms multiply by 1 + w, each head of q and k has a norm, embeddings are multiplied by √D, and
the sliding layers rotate with another base.
"""

from ...config import ATTENTION, InputError
from ...layers import NORMS
from ..fields import boolean, layer_types, nested, rope, size
from .family import Family


def read(raw):
    """Return the window, the types of the layers, both rotary bases, and the scales."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if raw.get(name) is not None:
            raise InputError(f"{name} {raw[name]!r} is not implemented; null is")
    if boolean(raw, "use_bidirectional_attention"):
        raise InputError("use_bidirectional_attention is not implemented: set it to false")
    n, every = size(raw, "num_hidden_layers"), size(raw, "sliding_window_pattern", 6)
    types = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(n)]
    ropes = nested(raw, "rope_parameters")
    full = ropes.get("full_attention") or raw.get("rope_scaling")
    theta, scaling = rope({"rope_theta": raw.get("rope_theta", 1e6), "rope_parameters": full})
    sliding = nested(ropes, "sliding_attention")
    base = raw.get("rope_local_base_freq")
    local, local_scaling = rope({"rope_theta": base, "rope_parameters": sliding})
    if local_scaling is not None:
        kind = local_scaling["rope_type"]
        raise InputError(f"rope type {kind!r} of sliding_attention is not implemented; default is")
    return {
        "sliding_window": size(raw, "sliding_window", 4096), "layer_types": layer_types(raw, types),
        "rope_theta": theta, "rope_scaling": scaling, "rope_local_base_freq": local,
        "query_pre_attn_scalar": size(raw, "query_pre_attn_scalar", 256),
        "embedding_scale": size(raw, "hidden_size") ** 0.5,
    }  # fmt: skip


def write(config):
    """Return the fields of Gemma 3, which transformers 4 and 5 both read."""
    return {
        "hidden_activation": config.hidden_act, "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "rope_local_base_freq": config.rope_local_base_freq,
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
    }  # fmt: skip


FAMILY = Family(
    "gemma3_text", "Gemma3ForCausalLM",
    biases=(ATTENTION,), read=read, write=write,
    fields={
        "hidden_act": "gelu_pytorch_tanh", "norms": NORMS, "norm_offset": 1.0, "qk_norm": True,
    },
    defaults={"tie_word_embeddings": True, "head_dim": 256},
)  # fmt: skip

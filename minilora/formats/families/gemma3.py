"""Gemma 3 (text): norms also after the sublayers, gelu, and one full layer after five sliding ones.

The norms multiply by 1 + w, each head of q and k has a norm, embeddings are multiplied by √D, and
the sliding layers rotate with another base.
"""

from ...config import ATTENTION, GEMMA_NORMS, InputError
from ..fields import FULL, SLIDING, layer_types, mapping, rope, size
from .family import Family

REFUSED = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")


def read(raw):
    """Return the window, the types of the layers, both rotary bases, and the scales."""
    for name in REFUSED:
        if raw.get(name):
            raise InputError(f"{name} {raw[name]!r} is not implemented; null is")
    every = size(raw, "sliding_window_pattern")
    layers = range(1, raw["num_hidden_layers"] + 1)
    types = [SLIDING if i % every else FULL for i in layers]
    ropes = mapping(raw, "rope_parameters")
    full = ropes.get(FULL) or raw.get("rope_scaling")
    of_full = raw | {"rope_theta": raw.get("rope_theta", 1e6), "rope_parameters": full}
    theta, scaling = rope(of_full)
    if scaling and not ropes and "rope_type" not in full:
        raise InputError("rope_scaling has a `type`, which transformers ignores: name it rope_type")
    base = raw.get("rope_local_base_freq", 1e4)
    local, scaled = rope({"rope_theta": base, "rope_parameters": ropes.get(SLIDING)})
    if scaled:
        raise InputError(f"{scaled} of sliding_attention is not implemented; only rope_theta is")
    return {
        "sliding_window": size(raw, "sliding_window", 4096),
        "layer_types": layer_types(raw, types),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_local_base_freq": local,
        "query_pre_attn_scalar": size(raw, "query_pre_attn_scalar", 256),
        "embedding_scale": raw["hidden_size"] ** 0.5,
    }


def write(config):
    """Return the fields of Gemma 3, which transformers 4 and 5 both read."""
    return {
        "layer_types": config.layer_types,
        "sliding_window": config.sliding_window,
        "rope_local_base_freq": config.rope_local_base_freq,
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
    }


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    biases=(ATTENTION,),
    activation="hidden_activation",
    read=read,
    write=write,
    fields={
        "hidden_act": "gelu_pytorch_tanh",
        "norms": GEMMA_NORMS,
        "norm_offset": 1.0,
        "qk_norm": True,
    },
    defaults={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
)

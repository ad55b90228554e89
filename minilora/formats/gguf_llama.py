"""Read a Llama from a GGUF file: its configuration, and its tensors under Hugging Face's names.

llama.cpp uses different names and a different order of the rows of q_proj and k_proj.
"""

import re
from dataclasses import replace

import numpy as np

from .files import errors_in, warn_of_unread
from .gguf_file import read_header, unsupported
from .hf_folder import model_config

HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
KEYS = {  # field of config.json: key of the metadata
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "rope_theta": "llama.rope.freq_base",
    "max_position_embeddings": "llama.context_length",
    "is_causal": "llama.attention.causal",
}
ALSO_READ = ("llama.attention.layer_norm_rms_epsilon", "llama.rope.dimension_count")
SCALING = "llama.rope.scal"  # how the keys of a scaled rotation begin
# which the shapes of the tensors say, too
NEUTRAL = ("llama.vocab_size", "llama.attention.value_length")


def half_rotation_order(w, heads):
    """Return the rows of q_proj or k_proj, weight (heads·hd, in) or bias, in Hugging Face's order.

    llama.cpp rotates the pairs (2j, 2j+1) of a head, Hugging Face rotates (j, j + hd/2).
    """
    pairs = w.reshape(heads, -1, 2, *w.shape[1:])  # (heads, hd/2, 2, ...)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)


def read(path):
    """Read (ModelConfig, {Hugging Face's path: Entry}, metadata) of a GGUF file.

    Raises InputError naming the key or tensor that is missing, unknown or not supported. Warns of
    the architecture's keys that are not read, except those that are off.
    """
    metadata, entries = read_header(path)
    with errors_in(path):
        config = _config(metadata, tied="output.weight" not in entries)
    known = {*KEYS.values(), *ALSO_READ, *NEUTRAL}
    keys = (key for key, value in metadata.items() if value and key not in known)
    unread = [key for key in keys if key.startswith("llama.") and not key.startswith(SCALING)]
    warn_of_unread(path, unread, "If the model needs one, use llama.cpp")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, entry in entries.items():
        place = _path(name, entry.where)
        n = heads.get(place.split(".")[-2])
        tensors[place] = _in_order(entry, n) if n else entry
    return config, tensors, metadata


def _path(name, where):
    """blk.3.ffn_up.weight -> model.layers.3.mlp.up_proj.weight."""
    found = re.fullmatch(r"(blk\.\d+\.|)(\w+)\.(weight|bias)", name)
    if not (found and found[2] in HF_NAMES):
        raise unsupported(where)
    return f"{found[1].replace('blk', 'model.layers')}{HF_NAMES[found[2]]}.{found[3]}"


def _in_order(entry, heads):
    """Return an Entry that reads the rows in Hugging Face's order."""
    return replace(
        entry, read=lambda: half_rotation_order(entry.read(), heads), read_low_precision=None
    )


def _config(metadata, tied):
    """Return the ModelConfig: the metadata become fields of Hugging Face's config.json."""
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise unsupported(f"the architecture {kind!r}")
    for key, value in metadata.items():
        # without a type, llama.cpp divides the positions by the factor; 0 means no factor
        if key.startswith(SCALING) and value not in ("none", 0, 1):
            raise unsupported(f"{key} {value!r}")
    raw = {name: metadata[key] for name, key in KEYS.items() if key in metadata}
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    raw |= {
        "model_type": "llama",
        "tie_word_embeddings": tied,
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "eos_token_id": [i for i in ends if i is not None],
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
    }
    config = model_config(raw)
    rotated = metadata.get("llama.rope.dimension_count", config.head_dim)
    if rotated != config.head_dim:
        raise unsupported(f"a rotation of {rotated} of the {config.head_dim} numbers of a head")
    return config

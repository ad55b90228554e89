"""Read a Llama from a GGUF file: its configuration, and its tensors under Hugging Face's names.

llama.cpp uses different names and a different order of the rows of q_proj and k_proj.
"""

import re
from dataclasses import replace

import numpy as np

from ..config import InputError, ModelConfig
from . import gguf_file
from .fields import ids, positive, size
from .files import errors_in

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def half_rotation_order(w, heads):
    """Return the rows of q_proj or k_proj, weight (heads·hd, in) or bias, in Hugging Face's order.

    llama.cpp rotates the pairs (2j, 2j+1) of a head, Hugging Face rotates (j, j + hd/2).
    """
    pairs = w.reshape(heads, -1, 2, *w.shape[1:])  # (heads, hd/2, 2, ...)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)


def read(path):
    """Read (ModelConfig, {Hugging Face's path: Entry}, metadata) of a GGUF file.

    Raises InputError naming the key or tensor that is missing, unknown or not supported.
    """
    metadata, entries = gguf_file.read_header(path)
    with errors_in(path):
        config = _config(metadata, tied="output.weight" not in entries)
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
    if not (found and found[2] in NAMES):
        raise InputError(f"{where} is not supported: {gguf_file.INSTEAD}")
    return f"{found[1].replace('blk', 'model.layers')}{NAMES[found[2]]}.{found[3]}"


def _in_order(entry, heads):
    """Return an Entry that reads the rows in Hugging Face's order."""

    def read():
        return half_rotation_order(entry.read(), heads)

    return replace(entry, read=read, read_low_precision=None)


def _config(metadata, tied):
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise InputError(f"the architecture is {kind!r}; only llama is supported")
    for key, value in metadata.items():
        # without a type, llama.cpp divides the positions by the factor; 0 means no factor
        if key.startswith("llama.rope.scal") and value not in ("none", 0, 1):
            raise InputError(f"{key} {value!r} is not supported: {gguf_file.INSTEAD}")

    def whole(name, default=None):
        return size(metadata, f"llama.{name}", default)

    def token(name):
        return ids(metadata, f"tokenizer.ggml.{name}_token_id")

    heads, width = whole("attention.head_count"), whole("embedding_length")
    head_dim = whole("attention.key_length", whole("rope.dimension_count", width // heads))
    rotated = whole("rope.dimension_count", head_dim)
    if rotated != head_dim:
        what = f"llama.rope.dimension_count rotates {rotated} of the {head_dim} numbers of a head"
        raise InputError(f"{what}, which is not supported: {gguf_file.INSTEAD}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    return ModelConfig(
        vocab_size=whole("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        hidden_size=width, intermediate_size=whole("feed_forward_length"),
        num_hidden_layers=whole("block_count"), num_attention_heads=heads,
        num_key_value_heads=whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=positive(metadata, "llama.rope.freq_base", 10000),
        rms_norm_eps=positive(metadata, "llama.attention.layer_norm_rms_epsilon"),
        tie_word_embeddings=tied,
        max_position_embeddings=whole("context_length", 2048),
        eos_token_id=tuple(dict.fromkeys(token("eos") + token("eot"))),
        bos_token_id=next(iter(token("bos")), None),
    )  # fmt: skip

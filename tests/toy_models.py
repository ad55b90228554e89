"""Toy models and toy files that several test files share."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from minilora.config import ModelConfig
from minilora.formats.pretrained import shapes
from minilora.model import Model
from minilora.tree import flatten, unflatten

SIZES = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
CONFIG = ModelConfig(**SIZES, eos_token_id=(255,), bos_token_id=1)
Q = "model.layers.1.self_attn.q_proj.weight"

# what a download can leave in the place of a file
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9840\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


def leaves(config=CONFIG, seed=0, biased=()):
    rng = np.random.default_rng(seed)
    return {
        path: rng.standard_normal(shape, dtype=np.float32)
        for path, shape in shapes(config, biased).items()
    }


def toy_model(config=CONFIG, changed=None, **more):
    """A model of random numbers, but for {path: array} in `changed`; `more`: see `leaves`."""
    return Model(config, unflatten(leaves(config, **more) | (changed or {})))


# a config.json as transformers 5 writes it, and fields of others
RAW_CONFIG = {
    **SIZES, "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "eos_token_id": 255, "bos_token_id": 1,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
OF_GEMMA = {  # what both generations of transformers write
    "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16, "sliding_window": 3, "attn_logit_softcapping": None,
}  # fmt: skip
TRANSFORMERS_5 = {
    "layer_types": [SLIDING, FULL],
    "rope_parameters": {
        FULL: {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
        SLIDING: {"rope_type": "default", "rope_theta": 2e4},
    },
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def folder(tmp_path, tensors=None, **changes):
    """A Hugging Face folder written by the safetensors library; a field of None is left out."""
    path = tmp_path / "model"
    path.mkdir()
    raw = {key: value for key, value in (RAW_CONFIG | changes).items() if value is not None}
    (path / "config.json").write_text(json.dumps(raw))
    safetensors.numpy.save_file(tensors or leaves(), path / "model.safetensors")
    return path


def in_shards(path, tensors):
    """Write the tensors of a folder again, in two files; return the path of their index."""
    (path / "model.safetensors").unlink()
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(where.values()):
        part = {name: w for name, w in tensors.items() if where[name] == shard}
        safetensors.numpy.save_file(part, path / shard)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def read_json(path):
    return json.loads(path.read_text())


def files(folder):
    """{name: bytes} of everything below a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def change_json(path, **fields):
    """Give these fields of the object in a JSON file other values."""
    path.write_text(json.dumps(read_json(path) | fields))


def change_tensors(path, change, **texts):
    """Let `change` alter {name: array} of a safetensors file, or return another; add the texts."""
    with safetensors.safe_open(path, "numpy") as file:
        texts = file.metadata() | texts
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(change(tensors) or tensors, path, texts)


def assert_same(tree, expected):
    actual = flatten(tree)
    assert actual.keys() == expected.keys()
    for path, w in expected.items():
        np.testing.assert_array_equal(actual[path], w, err_msg=path)


# of a checkpoint
FACTS = {"settings": {}, "digests": {}, "metrics_size": 0, "metrics_sha256": ""}

# --- tokenizers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello"}]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_vocabulary():
    """Three special tokens, the 256 bytes, and the results of two merges.

    A byte is GPT-2's printable character for it (written out here, not taken from the library).
    """
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [*SPECIAL, *(chr(b if b in kept else next(shifted)) for b in range(256)), "he", "hel"]


def tiny_metadata(**changes):
    """What a GGUF file with that vocabulary says of its tokenizer."""
    tokens = tiny_vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e", "he l"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }


def tiny(**changes):
    needs_hf()
    from minilora.formats.gguf_tokenizer import from_metadata

    return from_metadata("m.gguf", tiny_metadata(**changes))


def with_bos(words, bos):
    """Return the tokenizer, which now begins each text with this special token."""
    from tokenizers.processors import TemplateProcessing

    token = bos, words.backend.token_to_id(bos)
    words.backend.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[token])
    return words


# --- GGUF


def put_string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def put_value(value):
    """A metadata value with its type number in front."""
    for kind, number, code in (bool, 7, "?"), (int, 4, "I"), (float, 6, "f"):
        if isinstance(value, kind):
            return struct.pack(f"<I{code}", number, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + put_string(value)
    items = [put_value(item) for item in value]
    head = struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items))
    return head + b"".join(item[4:] for item in items)


def gguf(path, metadata, tensors):
    """A GGUF file, written out by hand. tensors: {name: (type number, shape, bytes)}."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(put_string(key) + put_value(value) for key, value in metadata.items())
    data, alignment = b"", metadata.get("general.alignment") or 32
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        head += put_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    path.write_bytes(head + b"\0" * (-len(head) % alignment) + data)
    return path


def gguf_names(path):
    """Written apart from the reader's table, as llama.cpp names things."""
    for ours, theirs in (
        ("model.layers.", "blk."), ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"),
        ("post_attention_layernorm", "ffn_norm"), ("input_layernorm", "attn_norm"),
        ("mlp.", "ffn_"), ("_proj", ""), ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"), ("lm_head", "output"),
    ):  # fmt: skip
        path = path.replace(ours, theirs)
    return path


def interleave(path, w):
    """llama.cpp's order of the rows of q_proj and k_proj: (half, j) of a head becomes (j, half)."""
    heads = 4 if "q_proj" in path else 2 if "k_proj" in path else 0
    if not heads:
        return w
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def gguf_metadata(**changes):
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 2048,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 2.0**-17,
        **tiny_metadata(),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return {key: value for key, value in metadata.items() if value is not None}


GGUF_CONFIG = replace(CONFIG, vocab_size=261, rms_norm_eps=2.0**-17, eos_token_id=(2,))


def gguf_tensors(w):
    return {
        gguf_names(p): (0, x.shape, np.ascontiguousarray(interleave(p, x)).tobytes())
        for p, x in w.items()
    }


def needs_hf():
    pytest.importorskip("tokenizers")

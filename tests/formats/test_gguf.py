"""Read GGUF files that are written byte by byte, and damaged ones."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from outcomes import refused
from toy_models import (
    GGUF_CONFIG,
    POINTER,
    assert_same,
    gguf,
    gguf_metadata,
    gguf_tensors,
    leaves,
)

from minilora.config import ATTENTION
from minilora.formats.gguf_file import read_header
from minilora.formats.pretrained import load

pytest.importorskip("tokenizers")
WEIGHTS = leaves(GGUF_CONFIG)


def toy(tmp_path, w=WEIGHTS, **changes):
    """The file of a model with these leaves, and these changes of its metadata."""
    return gguf(tmp_path / "m.gguf", gguf_metadata(**changes), gguf_tensors(w))


@pytest.mark.parametrize(
    "changed, metadata",
    [
        ({}, {"llama__rope__scaling__factor": 0, "llama__rope__scaling__type": "none"}),
        (
            {"num_key_value_heads": 4, "eos_token_id": (2, 1)},  # llama.cpp's defaults
            {
                "llama__attention__head_count_kv": None, "llama__context_length": None,
                "tokenizer__ggml__eom_token_id": 1,
            },
        ),
        (
            {
                "tie_word_embeddings": False, "head_dim": 16,  # four heads in a width of 32
                "rope_theta": 5e5, "max_position_embeddings": 4096, "bos_token_id": 0,
                "eos_token_id": (2, 1),
            },
            {
                "general__alignment": 256, "llama__attention__key_length": 16,
                "llama__rope__freq_base": 5e5, "llama__rope__scaling__factor": 1.0,
                "llama__context_length": 4096, "tokenizer__ggml__bos_token_id": 0,
                "tokenizer__ggml__eot_token_id": 1,
                "tokenizer__ggml__eom_token_id": 2,  # the same token as that at the end of a text
            },
        ),
    ],
)  # fmt: skip
def test_a_gguf_file_loads(tmp_path, changed, metadata):
    expected = replace(GGUF_CONFIG, **changed)
    w = leaves(expected, biased=ATTENTION)
    model, words = load(toy(tmp_path, w, **metadata))
    assert model.config == expected
    if expected.num_key_value_heads == 2:  # `gguf_tensors` orders the rows of two
        assert_same(model.base, w)
    assert (words.vocab_size, words.eos_token_id) == (261, 2) and words.chat_template
    assert words.settings == words.special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.get("llama__context_length", 2048),
        "clean_up_tokenization_spaces": False,  # as llama.cpp prints a text
    }


def test_tensors_of_each_type_by_hand(tmp_path):
    """Two rows of 32 numbers, by ggml's definitions; the file has version 2."""
    x = np.arange(-16, 16, dtype="f4")
    packed = bytes(range(240, 0, -15))  # the low nibbles count up, the high ones down
    codes = np.where(x < 0, x + 16, 15 - x)
    d, m = b"\x00\x38", b"\x00\xc2"  # 0.5 and -3 in float16
    of_type = {
        1: (x.astype("f2").tobytes(), x), 30: (x.view("u2")[1::2].tobytes(), x),
        2: (d + packed, 0.5 * (codes - 8)), 3: (d + m + packed, 0.5 * codes - 3),
        8: (d + x.astype("i1").tobytes(), 0.5 * x),
    }  # fmt: skip
    tensors = {str(kind): (kind, (2, 32), row * 2) for kind, (row, _) in of_type.items()}
    path = gguf(tmp_path / "m.gguf", {}, tensors)
    path.write_bytes(path.read_bytes().replace(b"GGUF\x03", b"GGUF\x02"))
    _, found = read_header(path)
    for kind, (_, expected) in of_type.items():
        w = found[str(kind)].read()
        assert w.dtype == np.float32
        np.testing.assert_array_equal(w, [expected, expected])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("general__architecture", "gemma", "m.gguf: the architecture 'gemma' is not supported"),
        *(("general__alignment", n, f"must be a power of two, got {n}") for n in (0, 24)),
        ("llama__attention__layer_norm_rms_epsilon", None, "malformed: KeyError: .*rms_epsilon"),
        ("llama__rope__scale_linear", 4.0, "scale_linear 4.0 is not supported"),
        ("llama__rope__dimension_count", 4, "rotation of 4 of the 8 numbers of a head"),
        ("llama__attention__causal", False, "`is_causal` must be true, got False"),
        ("tokenizer__ggml__model", None, "tokenizer.ggml.model None is not supported"),
        ("tokenizer__ggml__add_bos_token", True, "add_bos_token True is not supported"),
        ("tokenizer__ggml__add_eos_token", True, "add_eos_token True is not supported"),
        ("tokenizer__ggml__pre", "llama-bpe", "pre 'llama-bpe' is not supported"),
        ("tokenizer__ggml__token_type", [3, 3], "m.gguf: its tokenizer is broken"),
        ("tokenizer__ggml__eot_token_id", 261, "has the token 261, but the embedding has 261"),
        ("tokenizer__ggml__eos_token_id", None, "eos_token_id` must be a whole number"),
        ("tokenizer__chat_template__tool_use", 1, "tokenizer.chat_template.tool_use must be text"),
        ("tokenizer__chat_template", None, "without a default is not supported"),
    ],
)
def test_gguf_metadata_that_is_refused(tmp_path, key, value, message):
    changes = {"tokenizer__chat_template__rag": "R", key: value}
    with refused(message):
        load(toy(tmp_path, **changes))


def test_metadata_that_is_not_read_is_named(tmp_path):
    """llama.cpp may compute another model with such a key; what is off changes nothing."""
    off = {
        "llama__vocab_size": 261, "llama__attention__value_length": 8,
        "llama__rope__dimension_count": 8, "llama__attention__causal": True,
        "llama__attention__sliding_window": 0,
    }  # fmt: skip
    with warnings.catch_warnings(action="error"):
        load(toy(tmp_path, **off))
    on = {"llama__attention__sliding_window": 3, "llama__logit_scale": 2.0}
    text = r"m\.gguf: not read: llama.attention.sliding_window, llama.logit_scale\. If"
    with pytest.warns(UserWarning, match=text):
        load(toy(tmp_path, **off | on))


def test_the_chat_template_of_rows_with_tools(tmp_path):
    named = {"tokenizer__chat_template__tool_use": "T", "tokenizer__chat_template__rag": "R"}
    names = {"tokenizer__chat_templates": ["tool_use", "rag"]}  # llama.cpp also lists them
    text = r"m\.gguf: not read: the chat template rag\. `default` and `tool_use` are read"
    with pytest.warns(UserWarning, match=text):
        _, words = load(toy(tmp_path, **named, **names))
    assert words.render([], tools=[]) == "T" and words.render([]) == ""


# an infinite scale times the code 0 is NaN: one line, and no warning of NumPy
INFINITE = (np.float16(np.inf).tobytes() + bytes(32)) * 32


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        ("blk.1.attn_q.weight", (8, (32, 32), INFINITE), "attn_q.weight has a NaN"),
        ("z", (12, (32, 32), b""), "unsupported type number 12: use a file"),
        ("z", (2, (64, 16), b""), "rows of 16, not whole blocks"),
        ("z", (0, (2**40, 32), b""), "tensor z ends at byte"),
        ("rope_freqs.weight", (0, (0,), b""), "load the model as a Hugging Face folder$"),
    ],
)
def test_gguf_tensors_that_are_refused(tmp_path, name, tensor, message):
    tensors = gguf_tensors(WEIGHTS) | {name: tensor}
    with refused(message):
        load(gguf(tmp_path / "m.gguf", gguf_metadata(), tensors))


@pytest.mark.parametrize("old, new, message", [
    (b"^.*", POINTER, r"m\.gguf: this is a Git LFS pointer"),
    (b"^GGUF", b"GGML", r"m\.gguf: this is not a GGUF file"),
    (b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight", "m.gguf has a key or a tensor twice"),
    (b"ggml.bos_token", b"ggml.eos_token", "m.gguf has a key or a tensor twice"),
    (b"GGUF\x03", b"GGUF\x04", "GGUF version 4"),
])  # fmt: skip
def test_a_header_with_one_change(tmp_path, old, new, message):
    path = toy(tmp_path)
    path.write_bytes(re.sub(old, new, path.read_bytes(), flags=re.DOTALL))
    with refused(message):
        load(path)


def test_a_gguf_file_cut_off_anywhere(tmp_path):
    path = toy(tmp_path)
    whole = path.read_bytes()
    for size in (10, 3000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with refused("truncated"):
            load(path)

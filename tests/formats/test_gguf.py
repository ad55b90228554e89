"""Read GGUF files that are written byte by byte, and damaged ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import (
    GGUF_CONFIG,
    HTML,
    POINTER,
    assert_same,
    gguf,
    gguf_metadata,
    gguf_tensors,
    leaves,
    needs_hf,
)

from minilora.config import ATTENTION, InputError
from minilora.formats import gguf_file, gguf_llama
from minilora.formats.pretrained import load

FOLDER = "load the model as a Hugging Face folder$"


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_loads(tmp_path, tied):
    needs_hf()
    expected = replace(GGUF_CONFIG, tie_word_embeddings=tied)
    w = leaves(expected, biased=ATTENTION)
    config, base, words = load(gguf(tmp_path / "m.gguf", gguf_metadata(), gguf_tensors(w)))
    assert config == expected
    assert_same(base, w)
    assert (words.vocab_size, words.eos_token_id, words.has_chat_template) == (261, 2, True)


@pytest.mark.parametrize(
    "keys", [("rope__dimension_count",), ("attention__key_length",),
             ("rope__dimension_count", "attention__key_length")],
)  # fmt: skip
def test_heads_of_a_gguf_file_need_not_add_up_to_the_width(tmp_path, keys):
    """Four heads of width 16 in a model of width 32: either key names the width of a head."""
    needs_hf()
    expected = replace(GGUF_CONFIG, head_dim=16)
    w = leaves(expected)
    metadata = gguf_metadata(**{f"llama__{key}": 16 for key in keys})
    config, base, _ = load(gguf(tmp_path / "m.gguf", metadata, gguf_tensors(w)))
    assert config == expected
    assert_same(base, w)


def test_keys_that_a_gguf_file_may_lack(tmp_path):
    """llama.cpp's defaults: as many key-value heads as heads; the tokens count the vocabulary."""
    needs_hf()
    lacking = {"llama__attention__head_count_kv": None, "llama__context_length": None}
    expected = replace(GGUF_CONFIG, num_key_value_heads=4)
    metadata = gguf_metadata(**lacking)
    config, _, words = load(gguf(tmp_path / "m.gguf", metadata, gguf_tensors(leaves(expected))))
    assert config == expected
    assert words.settings["clean_up_tokenization_spaces"] is False  # as llama.cpp prints a text


@pytest.mark.parametrize("scaling", [{"factor": 1.0}, {"factor": 0}, {"type": "none", "factor": 4}])
def test_a_factor_that_stretches_nothing(tmp_path, scaling):
    needs_hf()
    metadata = gguf_metadata(**{f"llama__rope__scaling__{key}": v for key, v in scaling.items()})
    config = load(gguf(tmp_path / "m.gguf", metadata, gguf_tensors(leaves(GGUF_CONFIG))))[0]
    assert config.rope_scaling is None


def test_half_rotation_order_undoes_the_permutation():
    """Two heads of width 4: llama.cpp stores rows 0 2 1 3 of each."""
    stored = np.float32([[0], [2], [1], [3], [4], [6], [5], [7]])
    back = gguf_llama.half_rotation_order(stored, heads=2)
    np.testing.assert_array_equal(back[:, 0], np.arange(8))
    np.testing.assert_array_equal(gguf_llama.half_rotation_order(stored[:, 0], 2), np.arange(8))


def test_blocks_by_hand():
    """One block of each type, computed from the definition of the format."""
    codes = np.arange(16, dtype=np.uint8)
    packed = codes | (15 - codes) << 4  # the first sixteen count up, the rest down
    nibbles = np.concatenate([codes, 15 - codes]).astype(np.float32)
    d, m = np.float16(0.5).tobytes(), np.float16(-3).tobytes()
    q8 = np.arange(-16, 16, dtype=np.int8)
    for kind, block, expected in (
        ("Q4_0", d + packed.tobytes(), 0.5 * (nibbles - 8)),
        ("Q4_1", d + m + packed.tobytes(), 0.5 * nibbles - 3),
        ("Q8_0", d + q8.tobytes(), 0.5 * q8.astype(np.float32)),
    ):
        raw = np.frombuffer(block * 2, np.uint8)
        w = gguf_file.dequantize(raw, kind)
        assert w.dtype == np.float32
        np.testing.assert_array_equal(w, np.tile(expected, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "gemma"}, "architecture is 'gemma'"),
        ({"general__architecture": None}, "architecture is None"),
        ({"general__alignment": 0}, "general.alignment is 0"),
        ({"llama__block_count": None}, "llama.block_count must be a whole number from 1, got None"),
        ({"llama__block_count": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
        ({"llama__attention__head_count": "4"}, "llama.attention.head_count must be"),
        ({"llama__attention__head_count": 3}, "m.gguf: num_attention_heads 3 is not a multiple"),
        (
            {"llama__attention__layer_norm_rms_epsilon": None},
            "layer_norm_rms_epsilon must be a positive number, got None",
        ),
        ({"llama__rope__freq_base": -1.0}, "llama.rope.freq_base must be a positive number"),
        ({"llama__rope__scaling__type": "yarn"}, "scaling.type 'yarn' is not supported: " + FOLDER),
        ({"llama__rope__scaling__factor": 2.0}, "rope.scaling.factor 2.0 is not supported: "),
        ({"llama__rope__scale_linear": 4.0}, "rope.scale_linear 4.0 is not supported: " + FOLDER),
        ({"llama__rope__dimension_count": 4}, r"attn_q.weight has the shape \(32, 32\)"),
        (
            {"llama__rope__dimension_count": 4, "llama__attention__key_length": 8},
            "rotates 4 of the 8 numbers of a head, which is not supported: " + FOLDER,
        ),
        ({"llama__embedding_length": 64}, r"tensor token_embd.weight has the shape \(261, 32\)"),
        ({"llama__vocab_size": 260}, "has 261 tokens, but the embedding only 260 rows"),
        ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model is missing"),
        ({"tokenizer__ggml__model": ["gpt2"]}, r"tokenizer.ggml.model \['gpt2'\] is not supported"),
        ({"tokenizer__ggml__model": "llama"}, "ggml.model 'llama' is not supported: " + FOLDER),
        ({"tokenizer__ggml__pre": "llama-bpe"}, "pre 'llama-bpe' is not supported: " + FOLDER),
        ({"tokenizer__ggml__tokens": 5}, "llama.vocab_size must be a whole number from 1"),
        ({"tokenizer__ggml__eot_token_id": "x"}, "eot_token_id must be a token id"),
        ({"tokenizer__ggml__eot_token_id": 261}, "261 is outside the vocabulary of 261 tokens"),
        ({"tokenizer__ggml__bos_token_id": 261}, "bos_token has the id 261, but there are 261"),
        ({"general__alignment": True}, "general.alignment is True"),
        ({"llama__attention__key_length": 2**32 - 2}, "q_proj.weight has the shape|attn_q.weight"),
        ({"tokenizer__chat_template": ["a"]}, "tokenizer.chat_template must be text"),
        ({"tokenizer__chat_template": 5}, "tokenizer.chat_template must be text"),
        ({"tokenizer__ggml__tokens": ["a", "b", "a"]}, "tokens must be distinct texts"),
        ({"tokenizer__ggml__tokens": [1, 2, 3]}, "tokens must be distinct texts"),
        ({"tokenizer__ggml__token_type": 3}, "m.gguf: its tokenizer is broken"),
        ({"tokenizer__ggml__merges": ["he"]}, "m.gguf: its tokenizer is broken"),
        ({"tokenizer__ggml__pre": 5}, "tokenizer.ggml.pre 5 is not supported"),
    ],
)
def test_gguf_metadata_that_is_refused(tmp_path, changes, message):
    needs_hf()
    path = gguf(tmp_path / "m.gguf", gguf_metadata(**changes), gguf_tensors(leaves(GGUF_CONFIG)))
    with pytest.raises(InputError, match=message):
        load(path)


NAN, ONES = np.full((32, 32), np.nan, np.float32), np.ones((32, 32), np.float32)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blk.1.attn_q.weight", None, "tensor model.layers.1.self_attn.q_proj.weight is missing"),
        ("blk.1.attn_q.weight", (0, (32, 32), NAN.tobytes()), "blk.1.attn_q.weight has a NaN"),
        ("blk.1.attn_q.weight", (0, (8, 32), ONES[:8].tobytes()), "attn_q.weight has the shape"),
        ("blk.1.attn_q.weight", (12, (32, 32), ONES.tobytes()), "has the unsupported type Q4_K"),
        ("blk.1.attn_q.weight", (99, (32, 32), ONES.tobytes()), "has the unsupported type 99"),
        ("blk.1.attn_q.weight", (2, (64, 16), ONES.tobytes()), "rows of 16, not whole blocks"),
        ("blk.1.attn_q.weight", (0, (1,) * 5, ONES.tobytes()), "has 5 dimensions"),
        ("blk.0.ffn_gate_exps.weight", (0, (32, 32), ONES.tobytes()), "is not supported"),
        ("blk.7.attn_q.weight", (0, (32, 32), ONES.tobytes()), "not part of a llama"),
        ("weight", (0, (32, 32), ONES.tobytes()), "tensor weight is not supported"),
        ("z", (0, (2**40, 32), b""), "tensor z ends at byte"),
        ("z", (0, (0, 2**64 - 1), b""), "tensor z has the impossible shape"),
        ("blx.1.attn_q.weight", (0, (32, 32), ONES.tobytes()), "is not supported"),
        ("rope_freqs.weight", (0, (4,), ONES[0, :4].tobytes()), "is not supported: " + FOLDER),
    ],
)
def test_gguf_tensors_that_are_refused(tmp_path, name, tensor, message):
    needs_hf()
    tensors = {**gguf_tensors(leaves(GGUF_CONFIG)), name: tensor}
    tensors = {key: value for key, value in tensors.items() if value is not None}
    with pytest.raises(InputError, match=message):
        load(gguf(tmp_path / "m.gguf", gguf_metadata(), tensors))


def test_a_scale_that_is_not_finite_is_named(tmp_path):
    """An infinite scale times the code 0 is NaN: a one-line error and no warning of NumPy."""
    needs_hf()
    block = np.float16(np.inf).tobytes() + bytes(32)
    tensors = {
        **gguf_tensors(leaves(GGUF_CONFIG)),
        "blk.1.attn_q.weight": (8, (32, 32), block * 32),
    }
    with pytest.raises(InputError, match=r"attn_q.weight has a NaN"):
        load(gguf(tmp_path / "m.gguf", gguf_metadata(), tensors))


def test_a_tensor_in_the_place_of_another_is_refused(tmp_path):
    """As in llama.cpp, the offsets in the table must follow one another without gaps."""
    needs_hf()
    path = gguf(tmp_path / "m.gguf", gguf_metadata(), gguf_tensors(leaves(GGUF_CONFIG)))
    whole = path.read_bytes()
    names = [b"blk.0.ffn_gate.weight", b"blk.0.ffn_up.weight"]
    ends = [whole.index(name) + len(name) + 4 + 16 + 4 for name in names]
    offsets = [whole[end : end + 8] for end in ends]
    path.write_bytes(whole[: ends[1]] + offsets[0] + whole[ends[1] + 8 :])
    with pytest.raises(InputError, match=r"blk.0.ffn_up.weight overlaps another tensor or"):
        load(path)


def test_what_is_there_twice_is_refused(tmp_path):
    needs_hf()
    path = gguf(tmp_path / "m.gguf", gguf_metadata(), gguf_tensors(leaves(GGUF_CONFIG)))
    whole = path.read_bytes()
    for old, new in (
        (b"llama.context_length", b"llama.embedding_leng"),
        (b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"),
    ):
        path.write_bytes(whole.replace(old, new))
        if old.startswith(b"blk"):
            with pytest.raises(InputError, match=r"blk.0.ffn_up.weight occurs twice"):
                load(path)
    twice = gguf_metadata(a__b=1, a__c=2)
    gguf(path, twice, gguf_tensors(leaves(GGUF_CONFIG)))
    path.write_bytes(path.read_bytes().replace(b"a.c", b"a.b"))
    with pytest.raises(InputError, match=r"a.b occurs twice"):
        load(path)


def test_a_gguf_file_cut_off_anywhere(tmp_path):
    needs_hf()
    path = gguf(tmp_path / "m.gguf", gguf_metadata(), gguf_tensors(leaves(GGUF_CONFIG)))
    whole = path.read_bytes()
    for size in (0, 3, 4, 10, 24, 200, 3000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"truncated|not a GGUF file|is empty"):
            load(path)
    for start, lie in ((4, b"\x09"), (8, b"\xff" * 8), (16, b"\xff" * 8), (24, b"\xff" * 8)):
        path.write_bytes(whole[:start] + lie + whole[start + len(lie) :])
        with pytest.raises(InputError, match=r"GGUF version 9|truncated"):
            load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, r"m\.gguf is a Git LFS pointer.*git lfs pull"),
        (HTML, r"m\.gguf is a web page \(HTML\): download"), (b"", r"m\.gguf is empty"),
        (b"GGML" + bytes(60), r"m\.gguf is not a GGUF file"),
    ],
)  # fmt: skip
def test_another_file_in_the_place_of_a_gguf_file(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(path)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_gguf_header_is_an_input_error_or_loads(tmp_path_factory, data):
    """A damaged byte anywhere in the header gives a one-line error, never a traceback."""
    needs_hf()
    path = tmp_path_factory.mktemp("g") / "m.gguf"
    whole = gguf(path, gguf_metadata(), gguf_tensors(leaves(GGUF_CONFIG))).read_bytes()
    numbers = sum(w.size for w in leaves(GGUF_CONFIG).values())
    at = data.draw(st.integers(0, len(whole) - 4 * numbers))
    damaged = bytearray(whole)
    damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        load(path)
    except InputError as error:
        assert "\n" not in str(error)

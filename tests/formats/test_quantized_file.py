"""Quantized folders: round trips are exact, and malformed files are errors."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from models import fingerprint
from numpy.testing import assert_array_equal
from outcomes import refused
from toy_models import CONFIG, Q, change_tensors, leaves, read_json, toy_model

from minilora import nf4
from minilora.formats import safetensors_file
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.model import Model, lm_head
from minilora.quant import int8
from minilora.quant.schemes import quantize, storage_of
from minilora.tree import flatten, get, unflatten, without

WEIGHTS = "model.safetensors"
STATE = ".quant_state.bitsandbytes__nf4"


def saved(tmp_path, name="nf4-dq", block_size=None, dtype="float32"):
    model = quantize(toy_model(), name, block_size)
    save_quantized(tmp_path, model, dtype=dtype)
    return model


@pytest.mark.parametrize("name, block_size", [
    ("int8", None), ("fp4", 32), ("nf4", 4096), ("nf4", 8192), ("nf4-dq", 16),
])  # fmt: skip
def test_codes_come_back_bit_for_bit(tmp_path, name, block_size):
    text = f"bitsandbytes reads blocks of 32 to 4,096 .* of {block_size}"
    warned = pytest.warns(UserWarning, match=text)
    with warned if block_size in (16, 8192) else warnings.catch_warnings(action="error"):
        model = saved(tmp_path, name, block_size)
    for asked in (("none",), (name, block_size)):  # as it is, or as a run asks for it
        back, _ = load(tmp_path, *asked)
        assert back.config == CONFIG
        assert fingerprint(back.base) == fingerprint(model.base)
    assert back.source[1:3] == storage_of(get(back.base, Q)) == (name, block_size)
    save_pretrained(tmp_path / "dense", back)
    dense = get(load(tmp_path / "dense").model.base, Q)
    assert_array_equal(dense, get(model.base, Q).dequantize())


@pytest.mark.parametrize("name, asked, says", [
    ("nf4", ("nf4", 128), "nf4, blocks of 64"), ("nf4", ("nf4-dq", 64), "nf4, blocks of 64"),
    ("int8", ("nf4",), "int8"),
])  # fmt: skip
def test_a_stored_scheme_is_not_changed_behind_the_users_back(tmp_path, name, asked, says):
    saved(tmp_path, name)
    with refused(f"stored in {says}: give --quantize none"):
        load(tmp_path, *asked)


def test_a_projection_that_is_stored_dense_stays_dense(tmp_path):
    """As in transformers, with llm_int8_skip_modules."""
    saved(tmp_path)

    def store_dense(tensors):
        others = {name: w for name, w in tensors.items() if not name.startswith(Q)}
        return others | {Q: leaves()[Q]}

    change_tensors(tmp_path / WEIGHTS, store_dense)
    model, _ = load(tmp_path, "nf4-dq")
    assert_array_equal(get(model.base, Q), leaves()[Q])
    assert model.source[1:3] == ("nf4-dq", 64)


LAYOUTS = {
    "nf4-dq": {
        ".weight": ("U8", (512, 1)),  # 32 · 32 codes, two a byte
        ".weight.absmax": ("U8", (16,)), ".weight.quant_map": ("F32", (16,)),
        ".weight.nested_absmax": ("F32", (1,)), ".weight.nested_quant_map": ("F32", (256,)),
    },
    "int8": {".weight": ("I8", (32, 32)), ".SCB": ("F32", (32,)), ".weight_format": ("U8", ())},
}  # fmt: skip
SETTINGS = {
    "nf4-dq": {
        "load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_that_of_bitsandbytes(tmp_path, name):
    """Names, types and shapes; tests/peers compares the rest with transformers."""
    saved(tmp_path, name, dtype="bfloat16")
    header = safetensors_file.read_header(tmp_path / WEIGHTS)
    begin = Q.removesuffix(".weight")
    found = {n.removeprefix(begin): (e.dtype, e.shape) for n, e in header.items() if begin in n}
    found.pop(".weight" + STATE, None)  # a text
    assert found == LAYOUTS[name]
    config = read_json(tmp_path / "config.json")
    assert config["quantization_config"] == SETTINGS[name] | {"quant_method": "bitsandbytes"}
    assert config["torch_dtype"] == "bfloat16" and header["model.norm.weight"].dtype == "BF16"


def test_a_base_of_two_schemes_has_no_folder(tmp_path):
    w = flatten(quantize(toy_model(), "nf4").base)
    for base in (w | {Q: int8.quantize(leaves()[Q])}, leaves()):
        with refused("quantized with one scheme"):
            save_quantized(tmp_path, Model(CONFIG, unflatten(base)))


def put(name, value):
    return lambda tensors: tensors | {Q + name: value}


def drop(name):
    return lambda tensors: without(tensors, Q + name)


def state(**fields):
    """Change these fields of the JSON text."""

    def change(tensors):
        text = json.dumps(json.loads(bytes(tensors[Q + STATE])) | fields)
        tensors[Q + STATE] = np.frombuffer(text.encode(), np.uint8)

    return change


def norm_in_int8(tensors):
    tensors["model.norm.weight"] = np.ones(32, np.int8)
    tensors["model.norm.SCB"] = np.ones(32, np.float32)


@pytest.mark.parametrize("name, change, message", [
    ("nf4", drop(""), "quant_state.bitsandbytes__nf4 has no weight"),
    ("nf4", put(".absmax", np.full(16, np.nan, "f4")), "absmax has a NaN"),
    ("nf4", put(".quant_map", nf4.NF4 + np.float32(2e-6)), "quant_map differs from that of bits"),
    ("nf4-dq", put(".nested_quant_map", np.ones(256, "f4")), "nested_quant_map differs"),
    ("nf4", drop(".absmax"), "q_proj.weight has no absmax"),
    ("nf4", state(shape=[64, 16]), r"q_proj.weight has the shape \(64, 16\)"),
    ("nf4", state(shape=[32.0, 32]), "nf4: `shape` must be a whole number"),
    ("nf4", state(quant_type="af4"), "nf4: there is no 4-bit type 'af4'"),
    ("nf4-dq", state(nested_offset=None), "nf4: `nested_offset` must be a finite number"),
    ("int8", put("", np.ones((32, 32), np.uint8)), r"is U8 \(32, 32\), not I8"),
    ("int8", put("_format", np.array(2, np.uint8)), "weight_format is not 0: save the rows"),
    ("int8", norm_in_int8, r"norm.weight has the shape \(32,\), which is not a matrix"),
])  # fmt: skip
def test_malformed_codes_are_refused(tmp_path, name, change, message):
    saved(tmp_path, name)
    change_tensors(tmp_path / WEIGHTS, change)
    with refused(message):
        load(tmp_path)


def test_a_map_may_be_rounded_in_another_way(tmp_path):
    model = saved(tmp_path, "nf4")
    rounded = nf4.NF4 + np.float32(5e-7)  # some bits of a number below one
    change_tensors(tmp_path / WEIGHTS, put(".quant_map", rounded))
    assert fingerprint(load(tmp_path).model.base) == fingerprint(model.base)


def test_a_quantized_head_is_dequantized(tmp_path):
    """bitsandbytes can be told to quantize the output head as well; here it is always dense."""
    # some projections have an odd number of weights
    odd = {"hidden_size": 33, "intermediate_size": 63}
    model = quantize(toy_model(replace(CONFIG, tie_word_embeddings=False, **odd)), "nf4")
    head = nf4.quantize(model.base["lm_head"]["weight"])
    model.base["lm_head"]["weight"] = head
    save_quantized(tmp_path, model)
    assert_array_equal(lm_head(load(tmp_path).model.base), head.dequantize())

"""Quantized folders: round trips are exact, and malformed files are errors."""

import json

import numpy as np
import pytest
import safetensors.numpy
from toy_models import CONFIG, Q, leaves

from minilora import nf4
from minilora.config import InputError
from minilora.formats import safetensors_file
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized, scheme
from minilora.quant import int8
from minilora.quant.schemes import quantize
from minilora.tree import flatten, get, unflatten

SCHEMES = [("int8", 64), ("fp4", 64), ("nf4", 64), ("nf4", 32), ("nf4-dq", 64), ("nf4-dq", 16)]


def same(a, b):
    """Tell whether two leaves have the same kind and the same bits."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if hasattr(a, "__dict__"):
        return type(a) is type(b) and all(same(x, vars(b)[k]) for k, x in vars(a).items())
    return a == b


def saved(tmp_path, name="nf4-dq", block_size=64):
    base = quantize(unflatten(leaves()), name, block_size)
    save_quantized(tmp_path / "q", CONFIG, base)
    return base


@pytest.mark.parametrize(("name", "block_size"), SCHEMES)
def test_codes_come_back_bit_for_bit(tmp_path, name, block_size):
    base = saved(tmp_path, name, block_size)
    for asked in ("none", name):  # as it is, or as a run asks for it
        config, back, _ = load(tmp_path / "q", asked, block_size)
        assert config == CONFIG
        expected, actual = flatten(base), flatten(back)
        assert expected.keys() == actual.keys()
        assert all(same(expected[p], actual[p]) for p in expected)
    assert scheme(get(back, Q)) == (name, None if name == "int8" else block_size)


def test_a_stored_scheme_is_not_changed_behind_the_users_back(tmp_path):
    saved(tmp_path, "nf4", 64)
    for asked in (("nf4", 128), ("nf4-dq", 64), ("int8", 64)):
        with pytest.raises(InputError, match=r"stored in nf4, blocks of 64: give --quantize none"):
            load(tmp_path / "q", *asked)


def test_a_quantized_folder_made_dense(tmp_path):
    base = saved(tmp_path)
    save_pretrained(tmp_path / "dense", CONFIG, load(tmp_path / "q")[1])
    dense = flatten(load(tmp_path / "dense")[1])
    for path, w in flatten(base).items():
        expected = w.dequantize() if isinstance(w, nf4.Quantized) else w
        np.testing.assert_array_equal(dense[path], expected)


def test_the_layout_is_that_of_bitsandbytes(tmp_path):
    """Names, types and shapes, as a folder of transformers shows them."""
    saved(tmp_path)
    header = safetensors_file.read_header(tmp_path / "q" / "model.safetensors")
    found = {n.removeprefix(Q): (e.dtype, e.shape) for n, e in header.items() if n.startswith(Q)}
    state = ".quant_state.bitsandbytes__nf4"
    text = bytes(header[Q + state].read()).decode()
    assert found == {
        "": ("U8", (512, 1)),  # 32 · 32 codes, two a byte
        ".absmax": ("U8", (16,)),
        ".quant_map": ("F32", (16,)),
        ".nested_absmax": ("F32", (1,)),
        ".nested_quant_map": ("F32", (256,)),
        state: ("U8", (len(text),)),
    }
    fields = json.loads(text)
    assert fields.pop("nested_offset") > 0
    assert fields == {
        "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [32, 32],
        "nested_blocksize": 256, "nested_dtype": "float32",
    }  # fmt: skip
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert config["load_in_4bit"] and not config["load_in_8bit"]
    assert (config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"]) == ("nf4", True)


def test_the_layout_of_eight_bits_is_that_of_bitsandbytes(tmp_path):
    saved(tmp_path, "int8")
    header = safetensors_file.read_header(tmp_path / "q" / "model.safetensors")
    name = Q.removesuffix(".weight")
    found = {n.removeprefix(name): (e.dtype, e.shape) for n, e in header.items() if name in n}
    expected = {".weight": ("I8", (32, 32)), ".SCB": ("F32", (32,)), ".weight_format": ("U8", ())}
    assert found == expected
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert config["load_in_8bit"] and not config["load_in_4bit"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["fp4", "nf4", "nf4-dq"])
def test_bitsandbytes_computes_in_the_dtype_of_the_other_weights(tmp_path, name, dtype):
    save_quantized(tmp_path / "q", CONFIG, quantize(unflatten(leaves()), name), dtype=dtype)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    settings = config["quantization_config"]
    assert config["torch_dtype"] == settings["bnb_4bit_compute_dtype"] == dtype
    assert settings["bnb_4bit_quant_type"] == name.removesuffix("-dq")
    assert settings["bnb_4bit_use_double_quant"] == (name == "nf4-dq")
    header = safetensors_file.read_header(tmp_path / "q" / "model.safetensors")
    states = [json.loads(bytes(e.read())) for n, e in header.items() if "quant_state" in n]
    assert len(states) == 14 and {state["dtype"] for state in states} == {dtype}
    assert header["model.norm.weight"].dtype == safetensors_file.FORMAT_NAME[dtype]


def test_a_base_of_two_schemes_has_no_folder(tmp_path):
    w = flatten(quantize(unflatten(leaves()), "nf4"))
    for mixed in ({**w, Q: leaves()[Q]}, {**w, Q: int8.quantize(leaves()[Q])}, leaves()):
        with pytest.raises(InputError, match="quantized with one scheme"):
            save_quantized(tmp_path / "q", CONFIG, unflatten(mixed))


def rewrite(folder, change):
    """Read the folder's tensors, let `change` alter {name: array}, write them again."""
    path = folder / "model.safetensors"
    header = safetensors_file.read_header(path)
    tensors = {name: entry.read() for name, entry in header.items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def state_with(tensors, **fields):
    name = Q + ".quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[name])) | fields
    text = json.dumps({key: value for key, value in state.items() if value is not None})
    tensors[name] = np.frombuffer(text.encode(), np.uint8)


def put(name, value):
    return lambda tensors: tensors.update({Q + name: value})


def drop(name):
    return lambda tensors: tensors.pop(Q + name)


def twice(tensors):
    """A second state for the same weight."""
    tensors[Q + ".quant_state.bitsandbytes__fp4"] = tensors[Q + ".quant_state.bitsandbytes__nf4"]


def norm_in_int8(tensors):
    tensors["model.norm.weight"] = np.ones(32, np.int8)
    tensors["model.norm.SCB"] = np.ones(32, np.float32)


FLOATS = np.float32([np.nan] * 16)
DEEP = np.frombuffer(b"[" * 100_000, np.uint8)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nf4", drop(""), "quant_state.bitsandbytes__nf4 has no weight"),
        ("nf4", drop(".absmax"), "q_proj.weight has no absmax"),
        ("nf4", drop(".quant_map"), "q_proj.weight has no quant_map"),
        ("nf4", put("", np.zeros((511, 1), np.uint8)), r"q_proj.weight is uint8 \(511, 1\)"),
        ("nf4", put(".absmax", FLOATS), "absmax has a NaN"),
        ("nf4", put(".absmax", np.ones(15, np.float32)), r"absmax is float32 \(15,\)"),
        ("nf4", put(".quant_map", np.ones(16, np.float32)), "has another code"),
        ("nf4", lambda t: state_with(t, shape=[64, 16]), r"q_proj.weight has the shape \(64, 16\)"),
        ("nf4", lambda t: state_with(t, shape=None), "bitsandbytes__nf4 is malformed"),
        ("nf4", lambda t: state_with(t, blocksize=0), "bitsandbytes__nf4 is malformed"),
        ("nf4", lambda t: state_with(t, blocksize=32), r"absmax is float32 \(16,\), not"),
        ("nf4", lambda t: state_with(t, blocksize=10**30), "bitsandbytes__nf4 is malformed"),
        ("nf4", lambda t: state_with(t, blocksize=48), "bitsandbytes__nf4 is malformed"),
        ("nf4", lambda t: state_with(t, blocksize=True), "bitsandbytes__nf4 is malformed"),
        ("nf4", lambda t: state_with(t, shape=[0, 10**30]), "bitsandbytes__nf4 is malformed"),
        ("nf4", lambda t: state_with(t, shape=[[32, 32]]), "bitsandbytes__nf4 is malformed"),
        ("nf4", twice, r"bitsandbytes__(nf4|fp4) (has no weight|is malformed)"),
        ("nf4", put(".SCB", np.ones(32, np.float32)), r"SCB has no weight"),
        ("int8", norm_in_int8, r"norm.weight is int8 \(32,\), .* matrix"),
        ("nf4", lambda t: state_with(t, quant_type="af4"), "bitsandbytes__nf4 is malformed"),
        ("nf4-dq", lambda t: state_with(t, nested_offset=None), "nf4 is malformed"),
        ("nf4-dq", lambda t: state_with(t, nested_offset=10**400), "nf4 is malformed"),
        ("nf4-dq", lambda t: state_with(t, nested_blocksize=128), "nf4 is malformed"),
        ("nf4", put(".quant_state.bitsandbytes__nf4", DEEP), "nf4 is malformed"),
        ("nf4-dq", put(".absmax", np.ones(16, np.float32)), "absmax is float32"),
        ("nf4-dq", put(".nested_absmax", FLOATS[:1]), "nested_absmax has a NaN"),
        ("nf4-dq", put(".nested_quant_map", np.ones(256, np.float32)), "has another code"),
        ("int8", put("", np.ones((32, 32), np.uint8)), r"is uint8 \(32, 32\), not int8"),
        ("int8", drop(""), "q_proj.SCB has no weight"),
    ],
)
def test_malformed_codes_are_refused(tmp_path, name, change, message):
    saved(tmp_path, name)
    rewrite(tmp_path / "q", change)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "q")


def test_a_quantized_head_is_dequantized(tmp_path):
    """bitsandbytes can be told to quantize the output head as well; here it is always dense."""
    saved(tmp_path)
    head = nf4.quantize(leaves()["model.embed_tokens.weight"])

    def add(tensors):
        tensors["lm_head.weight"] = head.codes.reshape(-1, 1)
        tensors["lm_head.weight.absmax"] = head.absmax
        tensors["lm_head.weight.quant_map"] = nf4.NF4
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [256, 32]}
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors["lm_head.weight.quant_state.bitsandbytes__nf4"] = text

    rewrite(tmp_path / "q", add)
    path = tmp_path / "q" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    base = load(tmp_path / "q")[1]
    np.testing.assert_array_equal(base["lm_head"]["weight"], head.dequantize())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq' is not supported"),
        ({"quant_method": "fp8"}, "quant_method 'fp8' is not supported"),
        ("nf4", "quantization_config must be an object"),
    ],
)
def test_other_methods_are_refused(tmp_path, settings, message):
    saved(tmp_path)
    path = tmp_path / "q" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "q")

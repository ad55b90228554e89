"""Compare safetensors files with the library, and reject wrong headers."""

import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from models import seeds
from mutations import parents, pick
from numpy.testing import assert_array_equal
from outcomes import refused
from toy_models import HTML, POINTER

from minilora.formats import safetensors_file
from minilora.formats.safetensors_file import BLOCKS, DTYPES, entry


def test_written_tensors_are_read_by_the_library(tmp_path):
    path = tmp_path / "w.safetensors"
    odd, w = np.arange(3, dtype=np.uint8), np.float32([[-0.0, 1e-45, 3e38]])
    entries = {"0": entry("U8", odd), "a": entry("F32", w), "empty": entry("F32", w[:0])}
    safetensors_file.write(path, entries)
    theirs = safetensors.numpy.load_file(path)
    assert theirs["a"].tobytes() == w.tobytes() and theirs["empty"].shape == (0, 3)
    header, start, _ = safetensors_file.read_json_header(path)
    assert start % 8 == 0 and header["a"]["data_offsets"][0] == 0, "float32 is aligned"
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}, "without it transformers refuses the file"


@pytest.mark.parametrize("dtype, number", [("F16", -7e4), ("BF16", 3.4028235e38), ("F32", np.nan)])
def test_a_number_that_the_type_cannot_hold_is_refused(dtype, number):
    says = f"w has a number that is not finite, or too large for this type: {dtype}"
    with refused(says):
        safetensors_file.encode(np.float32([1, number]), dtype, "w")


def file_of(header, data=b"\0" * 16):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_w(dtype="F32", shape=(4,), offsets=(0, 16), **others):
    return file_of({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **others})


@pytest.mark.parametrize("content, message", [
    (b"", "the file is empty: "), (POINTER, "this is a Git LFS pointer: run `git lfs pull`"),
    (HTML, r"this is a web page \(HTML\): download"), (b"<HTML>", "this is a web page"),
    (of_w()[:-20], "the file is truncated"), (of_w("F8\nx"), r"unsupported type F8\\nx"),
    (of_w(shape=(5,)), "tensor w ends at byte"),
    (of_w("U8"), "the header's entry for tensor w is malformed"),
    (of_w(v={"dtype": "U8", "shape": (4,), "data_offsets": (12, 16)}), "tensors overlap"),
    (of_w("U8", offsets=(12, 16)), "or bytes belong to no tensor near byte"),
])  # fmt: skip
def test_headers_that_lie(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with refused(f"model.safetensors.*{message}") as caught:
        safetensors_file.read_header(path)
    assert str(caught.value).isprintable()


TYPES = np.float32, np.float16, np.uint8, np.int8, np.bool  # the last is not read here
ODD = [None, True, 5, "BF16", "I64", "f32", "Q8_0", [], {}]


def drawn(rng):
    """The bytes of a file of up to three tensors, in which some things may be odd."""
    tensors = {}
    for name in "abc"[: rng.integers(4)]:
        shape = rng.integers(4, size=rng.integers(4))
        tensors[name] = rng.integers(9, size=shape).astype(pick(rng, TYPES))
    data = safetensors.numpy.save(tensors, pick(rng, (None, {"a": "b"})))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    if header and rng.random() < 0.5:
        parent = pick(rng, parents(header))
        key = pick(rng, list(parent) if isinstance(parent, dict) else range(len(parent)))
        n = parent[key]
        parent[key] = pick(rng, ODD + ([n + 1, n - 1, float(n)] if isinstance(n, int) else []))
    return file_of(header, data[start:] + rng.bytes(rng.random() < 0.05))


@settings(max_examples=500)
@given(seeds.map(np.random.default_rng).map(drawn))
def test_a_file_has_the_tensors_that_the_library_reads_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    path.write_bytes(content)
    try:
        theirs = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        theirs = {"": {"dtype": ""}}
    if not DTYPES.keys() - BLOCKS >= {their["dtype"] for their in theirs.values()}:
        with refused(r"drawn\.safetensors"):
            safetensors_file.read_header(path)
        return
    found = safetensors_file.read_header(path)
    assert found.keys() == theirs.keys()
    for name, their in theirs.items():
        raw = np.frombuffer(their["data"], DTYPES[their["dtype"]]).reshape(their["shape"])
        expected = safetensors_file.decode(raw, their["dtype"])
        assert_array_equal(found[name].read(), expected)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(of_w())
    found = safetensors_file.read_header(path)["w"]
    path.write_bytes(of_w()[:-1])
    with refused("tensor w: the file has become shorter: copy or save the file again"):
        found.read()

"""Compare safetensors files with the library, and reject wrong headers."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy_models import HTML, POINTER

from minilora.config import InputError
from minilora.formats import safetensors_file
from minilora.formats.safetensors_file import entry

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=9), elements=finite32))
def test_written_tensors_are_read_by_the_library_and_back(tmp_path_factory, w):
    path = tmp_path_factory.mktemp("st") / "w.safetensors"
    odd = np.arange(3, dtype=np.uint8)
    safetensors_file.write(path, {"0": entry("U8", odd), "a": entry("F32", w)})
    theirs = safetensors.numpy.load_file(path)
    ours = safetensors_file.read_header(path)
    for tensors in (theirs, {name: found.read() for name, found in ours.items()}):
        np.testing.assert_array_equal(tensors["a"], w)
        np.testing.assert_array_equal(tensors["0"], odd)
    header, start, _ = safetensors_file.read_json_header(path)
    assert start % 8 == 0 and header["a"]["data_offsets"][0] == 0, "float32 is aligned"
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}, "without it transformers refuses the file"


@pytest.mark.parametrize("number", [3.4028235e38, np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_number_that_the_type_cannot_hold_is_refused(dtype, number):
    with pytest.raises(InputError, match="w has a number that is not finite, or too large"):
        safetensors_file.encode(np.float32([1, number]), dtype, "w")


def file_of(header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def fields(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def of_w(*args):
    return file_of({"w": fields(*args)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "model.safetensors: the file is empty: "),
        (POINTER, "model.safetensors: this is a Git LFS pointer: run `git lfs pull`"),
        (HTML, r"model.safetensors: this is a web page \(HTML\): download"),
        (of_w()[:-20], "truncated"),
        (of_w()[:-1], "tensor w ends at byte"),
        (b"\x80\x02}q\x00.", "truncated or not a safetensors"),
        (file_of(b"{'w': 1}"), "the header of .*model.safetensors is malformed: JSONDecodeError"),
        (file_of(b"[1]"), "this is not one JSON object"),
        (file_of({"w": 5}), "entry for tensor w is malformed"),
        (of_w("F32", (-4,), (0, -16)), "tensor w is malformed"),
        (of_w("F8\nx"), r"unsupported type F8\\nx"),
        (of_w("Q8_0", ()), "not whole blocks"),
        (of_w("F32", (3,)), "entry for tensor w is malformed"),
        (of_w("F32", (4,), (16, 0)), "tensor w ends at byte"),
    ],
)
def test_headers_that_lie(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        safetensors_file.read_header(path)
    assert str(caught.value).isprintable()


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(of_w())
    found = safetensors_file.read_header(path)["w"]
    path.write_bytes(of_w()[:-1])
    with pytest.raises(InputError, match="tensor w is malformed"):
        found.read()


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (0, 10**30), (2,) + (1,) * 70])
def test_a_shape_that_numpy_cannot_have(tmp_path, shape):
    path = tmp_path / "model.safetensors"
    path.write_bytes(of_w("F32", shape, (0, 8 if shape[0] else 0)))
    with pytest.raises(InputError, match="tensor w is malformed"):
        safetensors_file.read_header(path)["w"].read()

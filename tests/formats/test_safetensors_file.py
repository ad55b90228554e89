"""Compare safetensors files with the library, and reject wrong headers."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy_models import HTML, POINTER

from minilora.config import InputError
from minilora.formats import safetensors_file

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=9), elements=finite32))
@settings(deadline=None)
def test_written_tensors_are_read_by_the_library_and_back(tmp_path_factory, w):
    path = tmp_path_factory.mktemp("st") / "w.safetensors"
    odd = np.arange(3, dtype=np.uint8)
    safetensors_file.write(
        path,
        {
            "b": safetensors_file.Entry("U8", odd.shape, lambda: odd),
            "a": safetensors_file.Entry("F32", w.shape, lambda: w),
        },
    )
    theirs = safetensors.numpy.load_file(path)
    ours = safetensors_file.read_header(path)
    for tensors in (theirs, {name: entry.read() for name, entry in ours.items()}):
        np.testing.assert_array_equal(tensors["a"], w)
        np.testing.assert_array_equal(tensors["b"], odd)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}, "without it transformers refuses the file"


any_bits = st.integers(0, 2**32 - 1)
halfway = st.integers(0, 2**16 - 1).map(lambda upper: upper << 16 | 0x8000)


@given(any_bits | halfway)
@settings(deadline=None)
def test_bfloat16_rounds_to_the_nearest_even(bits):
    """Rounding agrees with its definition in exact arithmetic: to the nearest, ties to even."""
    x = np.array([bits], np.uint32).view(np.float32)
    below = np.array([bits & 0xFFFF0000], np.uint32).view(np.float32)
    above = np.array([(bits & 0xFFFF0000) + 0x10000], np.uint64).astype(np.uint32).view(np.float32)
    if not (np.isfinite(x).all() and np.isfinite(above).all()):
        return
    down, up = abs(np.float64(x) - below)[0], abs(np.float64(above) - x)[0]
    even_below = (bits >> 16) % 2 == 0
    expected = below if down < up or (down == up and even_below) else above
    raw = safetensors_file.encode(x, "BF16")
    np.testing.assert_array_equal(safetensors_file.decode(raw, "BF16"), expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_number_too_large_for_the_type_is_refused(dtype):
    with pytest.raises(InputError, match="cannot hold"):
        safetensors_file.encode(np.float32([1, 3.4028235e38]), dtype, "w")


def header(entries, data=b"\0" * 16, length=None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "model.safetensors is empty: "),
        (POINTER, "model.safetensors is a Git LFS pointer.*git lfs pull"),
        (HTML, r"model.safetensors is a web page \(HTML\): download"),
        (header({"w": entry()})[:5], "truncated or not a safetensors"),
        (header({"w": entry()})[:-20], "tensor w ends at byte|truncated"),
        (b"\x80\x02}q\x00.", "truncated or not a safetensors"),
        (header({"w": entry()}, length=2**60), "truncated or not a safetensors"),
        (header(b"{'w': 1}"), "not JSON"),
        (header(b"[" * 5000), "not JSON"),
        (header(b"[1]"), "not a JSON object"),
        (header(b'{"w": 5}'), "entry for tensor w is malformed"),
        (header({"w": {"dtype": "F32"}}), "entry for tensor w is malformed"),
        (header({"w": entry(shape=(-4,), offsets=(0, -16))}), "entry for tensor w is malformed"),
        (header({"w": entry(shape=(2.0, 2))}), "entry for tensor w is malformed"),
        (header({"w": entry("F8_E4M3", (16,))}), "tensor w has the unsupported type F8_E4M3"),
        (header({"w": entry("F64", (2,))}), "tensor w has the unsupported type F64"),
        (header({"w": entry(["F32"])}), "entry for tensor w is malformed"),
        (header({"w": entry(shape=(5,))}), r"tensor w has the shape \[5\]"),
        (header({"w": entry()}, data=b"\0" * 15), "tensor w ends at byte"),
        (header({"w": entry()}, data=b"\0" * 17), "1 bytes that no tensor uses"),
        (header({"w": entry(offsets=(4, 20))}, data=b"\0" * 20), "tensor w overlaps"),
        (header({"a": entry(), "w": entry(offsets=(8, 24))}, data=b"\0" * 24), "w overlaps"),
        (header({"w": entry(shape=(0, 10**30), offsets=(0, 0))}, b""), "tensor w is malformed"),
        (header({"w": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b""), "w is malformed"),
        (header({"w": entry(shape=(2,) + (1,) * 70, offsets=(0, 8))}, b"12345678"), "malformed"),
        (header({"w": entry(offsets=(10**4299, 10**4300 - 1))}), "tensor w is malformed"),
        (header({"w": entry("F8\nx")}), r"unsupported type F8\\nx"),
    ],
)
def test_headers_that_lie(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        safetensors_file.read_header(path)
    assert str(caught.value).isprintable()

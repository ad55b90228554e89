"""Read and write safetensors: eight bytes of length, a JSON header, then the tensors' raw bytes.

This generalizes part 1 of `lessons/00_qlora_in_one_file.py` to large and damaged files.

Nothing in such a file is executed, which is why it replaced pickled checkpoints. The safetensors
library has no bfloat16 for NumPy, and a large model must be read tensor by tensor, so this module
does not use it. Every number in the header is checked against the file before it is used.
`entry_in_file` does this for the tensors of GGUF files, too.

A quantized tensor of GGUF consists of blocks of 32 weights. Each block has a scale (and for Q4_1 an
offset) in float16, and a small integer per weight.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import NON_NEGATIVE_INT, InputError, Rule, check_setting
from ..quant.low_precision import GGUF_BLOCK_SIZE, LowPrecision
from ..rounding import from_bfloat16, to_bfloat16
from .files import check_start, errors_in, parse_object

FLOATS: dict = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
BLOCKS = {
    "Q4_0": np.dtype([("d", "<f2"), ("q", "u1", GGUF_BLOCK_SIZE // 2)]),
    "Q4_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", GGUF_BLOCK_SIZE // 2)]),
    "Q8_0": np.dtype([("d", "<f2"), ("q", "i1", GGUF_BLOCK_SIZE)]),
}
DTYPES: dict = FLOATS | BLOCKS | {"U8": np.dtype("u1"), "I8": np.dtype("i1")}
SAVE_AGAIN = "copy or save the file again"
FORMAT_NAME = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def format_name(dtype):
    """Return the name in a file of float32, float16 or bfloat16; refuse any other dtype."""
    check_setting("dtype", dtype, Rule(f"be {', '.join(FORMAT_NAME)}", FORMAT_NAME.__contains__))
    return FORMAT_NAME[dtype]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file. `read` returns its numbers; it raises InputError if they are missing."""

    dtype: str  # the type in the file, or the code of a quantized weight
    shape: tuple
    read: Callable  # float32, unchanged 8-bit numbers, or a quantized weight
    where: str = ""  # the file and the tensor, for messages
    read_low_precision: Callable | None = None  # a matrix kept in F16, BF16 or Q8_0


def entry(dtype, w):
    """Return the Entry that writes the array w as `dtype`."""
    return Entry(dtype, w.shape, lambda: w)


def entry_in_file(path, name, dtype, shape, start, size):
    """Return (Entry, end) of the tensor whose bytes begin at `start` of a file of `size` bytes.

    Raises InputError if the type is not supported, or if the bytes do not end in the file.
    """
    where = f"{path}: tensor {name}"
    if dtype not in DTYPES:
        raise InputError(
            f"{where} has the unsupported type {dtype}: "
            "use a file with F32, F16, BF16, Q8_0, Q4_0 or Q4_1"
        )
    stored_shape = shape
    if dtype in BLOCKS:
        width = shape[-1] if shape else 1
        if width % GGUF_BLOCK_SIZE != 0:
            raise InputError(f"{where} has rows of {width}, not whole blocks of {GGUF_BLOCK_SIZE}")
        stored_shape = (*shape[:-1], width // GGUF_BLOCK_SIZE)
    end = start + math.prod(stored_shape) * DTYPES[dtype].itemsize
    if end > size:
        raise InputError(f"{where} ends at byte {end} of {size}: copy the truncated file again")

    def raw():
        # `np.fromfile` calls methods of Python, and makes a SystemError of a Ctrl-C in them
        with errors_in(where), open(path, "rb") as file:
            w = np.empty(stored_shape, DTYPES[dtype])
            file.seek(start)
            if file.readinto(w.reshape(-1).view(np.uint8).data) != w.nbytes:
                raise InputError(f"the file has become shorter: {SAVE_AGAIN}")
            return w

    kept = (lambda: to_low_precision(raw(), dtype)) if dtype in ("F16", "BF16", "Q8_0") else None
    return Entry(dtype, shape, lambda: decode(raw(), dtype), where, kept), end


@np.errstate(invalid="ignore")  # `check_floats` raises an error for NaN
def decode(raw, dtype):
    """Return the stored numbers as float32, or unchanged if they are 8-bit integers."""
    if dtype == "BF16":
        return from_bfloat16(raw)
    if dtype not in BLOCKS:
        return raw.astype(np.float32, copy=False) if dtype in FLOATS else raw
    d = raw["d"].astype(np.float32)[..., None]
    q = raw["q"]
    if dtype == "Q8_0":
        x = d * q  # x = d·q, q in −128 … 127
    elif dtype == "Q4_0":
        x = d * (_nibbles(q) - np.float32(8))  # x = d·(q − 8), q in 0 … 15
    else:
        x = d * _nibbles(q) + raw["m"].astype(np.float32)[..., None]  # x = d·q + m
    return x.reshape(*raw.shape[:-1], raw.shape[-1] * GGUF_BLOCK_SIZE)


def _nibbles(packed):
    """(..., 16) bytes -> (..., 32) codes: the low nibbles are the first 16, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32)


def to_low_precision(raw, dtype):
    """Return the matrix of these stored numbers, kept in their type (F16, BF16 or Q8_0)."""
    if dtype != "Q8_0":
        return LowPrecision(dtype, raw.view(np.uint16))
    codes = np.ascontiguousarray(raw["q"]).reshape(len(raw), -1)
    return LowPrecision(dtype, codes, raw["d"].astype(np.float32))


def encode(w, dtype, where="tensor"):
    """Round float32 numbers to `dtype` (F32, F16 or BF16), to the nearest, ties to even.

    Raises InputError naming `where` if a number is not finite or too large for the type.
    """
    with np.errstate(over="ignore"):
        raw = to_bfloat16(w) if dtype == "BF16" else np.ascontiguousarray(w, FLOATS[dtype])
    if not is_finite(decode(raw, dtype)):
        raise InputError(
            f"{where} has a number that is not finite, or too large for this type: {dtype}"
        )
    return raw


def is_finite(w):
    """Tell whether w has no NaN and no infinity, without allocating a temporary array."""
    return w.size == 0 or bool(np.isfinite(w.min()) and np.isfinite(w.max()))


def check_floats(where, w):
    """Return w if it is float32 and finite; otherwise raise InputError naming `where`."""
    if w.dtype != np.float32:
        raise InputError(f"{where} holds {w.dtype}, not F32, F16 or BF16")
    if not is_finite(w):
        raise InputError(f"{where} has a NaN or an infinite number")
    return w


def check_names_and_shapes(found, expected, place):
    """Raise InputError unless {name: entry or array} has exactly the names and shapes expected."""
    unknown = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    wrong = [
        f"tensor {names[0]} {what}" + (f" (one of {len(names)})" if len(names) > 1 else "")
        for names, what in ((unknown, "does not belong here"), (missing, "is missing"))
        if names
    ]
    if wrong:
        raise InputError(f"{place}: {'; '.join(wrong)}")
    for name in found:
        if found[name].shape != expected[name]:
            raise InputError(
                f"{place}: tensor {name} has the shape {found[name].shape}, not {expected[name]}"
            )


def read_header(path):
    """Read {tensor name: Entry} of a safetensors file.

    Raises InputError if the file is missing or truncated, contradicts its header, or, as the
    library, if tensors overlap or bytes belong to no tensor.
    """
    header, data, size = read_json_header(path)
    del header["__metadata__"]
    entries = {name: _entry(path, name, raw, data, size) for name, raw in header.items()}
    end = 0
    for start, stop in sorted(raw["data_offsets"] for raw in header.values()):
        if start != end:
            what = "overlap, or bytes belong to no tensor"
            raise InputError(f"{path}: tensors {what} near byte {data + start}: {SAVE_AGAIN}")
        end = stop
    if data + end != size:
        raise InputError(f"{path}: bytes {data + end} to {size} belong to no tensor: {SAVE_AGAIN}")
    return entries


def read_json_header(path):
    """Read (header, offset of the tensors' bytes, size of the file) of a safetensors file.

    The header always has `__metadata__`, a dict of texts.
    """
    check_start(path)
    with errors_in(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise InputError("the file is truncated or not a safetensors file")
        text = file.read(length)
    header = parse_object(text, f"the header of {path}")
    if header.get("__metadata__") is None:
        header["__metadata__"] = {}
    match header["__metadata__"]:
        case dict(texts) if all(isinstance(text, str) for text in texts.values()):
            return header, 8 + length, size
    raise InputError(f"{path}: the header's __metadata__ is not an object of texts: {SAVE_AGAIN}")


def _entry(path, name, raw, data, size):
    """Return the Entry of a tensor in the header."""
    match raw:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]}:
            # the library has no types of GGUF
            if dtype not in BLOCKS and all(map(NON_NEGATIVE_INT.holds, (*shape, start, stop))):
                found, end = entry_in_file(path, name, dtype, tuple(shape), data + start, size)
                if end == data + stop:
                    return found
    raise InputError(f"{path}: the header's entry for tensor {name} is malformed")


def write(path, entries, metadata=None):
    """Write {name: Entry} to `path`; raise InputError if a number does not fit its type."""
    header = {"__metadata__": metadata or {"format": "pt"}}  # transformers needs "format"
    end = 0
    # widest types first, so that every tensor starts at a multiple of its item size
    ordered = sorted(entries.items(), key=lambda item: (-DTYPES[item[1].dtype].itemsize, item[0]))
    for name, found in ordered:
        start = end
        end += math.prod(found.shape) * DTYPES[found.dtype].itemsize
        header[name] = {"dtype": found.dtype, "shape": found.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, found in ordered:
            w = found.read()
            raw = encode(w, found.dtype, name) if found.dtype in FLOATS else w
            file.write(np.ascontiguousarray(raw, DTYPES[found.dtype]).data)

"""The safetensors format: eight bytes of length, a JSON header, then the tensors' raw bytes.

Part 1 of `lessons/00_qlora_in_one_file.py`, made general: large files, damaged files.

Nothing in such a file is executed, which is why it took the place of pickled checkpoints. The
library is not used because its NumPy side has no bfloat16, and because a large model has to pass
through tensor by tensor. Every number in the header is checked against the file before it is
believed.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import InputError, require
from ..data.rows import parse_json
from ..optim import from_bfloat16, to_bfloat16
from ..quant.low_precision import halves

FLOATS: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
}  # fmt: skip
DTYPES = FLOATS | {"U8": np.dtype("u1"), "I8": np.dtype("i1")}
FORMAT_NAME = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Entry:
    """A tensor on its way out of a file or into one: `read` makes its numbers when its turn comes.

    `read` and `read_stored` raise InputError if the file is shorter than when its header was read.
    """

    dtype: str  # the type in the file, or the code of a quantized weight
    shape: tuple[int, ...]
    read: Callable[[], Any]  # float32, 8-bit numbers as they are, or a quantized weight
    where: str = ""  # the file and the tensor, for messages
    read_low_precision: Callable[[], Any] | None = None  # a matrix left in F16, BF16 or Q8_0


def read_raw(where, path, dtype, count, offset):
    """Read `count` numbers from byte `offset` of the file; InputError if they are not all there."""
    raw = np.fromfile(path, dtype, count, offset=offset)
    require(raw.size == count, f"{where} is cut off: the file is truncated, copy it again")
    return raw


@np.errstate(invalid="ignore")  # of a NaN, which `check_floats` refuses by name
def decode(raw, dtype):
    """Return the stored numbers as float32 if `dtype` is a float type; any shape, kept."""
    if dtype == "BF16":
        return from_bfloat16(raw)
    return raw.astype(np.float32, copy=False) if dtype in FLOATS else raw


def encode(w, dtype, where="tensor"):
    """Round float32 numbers to `dtype` (F32, F16 or BF16): to the nearest, of two to the even one.

    Raises InputError naming `where` if a number is not finite or too large for the type.
    """
    require(is_finite(w), f"{where} has a NaN or an infinite number")
    if dtype == "BF16":
        raw = to_bfloat16(w)
    else:
        with np.errstate(over="ignore"):
            raw = np.ascontiguousarray(w, FLOATS[dtype])
    held = is_finite(decode(raw, dtype))
    require(held, f"{where} has a number that {dtype} cannot hold: write float32 instead")
    return raw


def is_finite(w):
    """Tell whether w has no NaN and no infinity, without a temporary of its size."""
    return w.size == 0 or bool(np.isfinite(w.min()) and np.isfinite(w.max()))


def check_floats(where, w):
    """Return w if it is float32 and finite; else raise InputError naming `where`."""
    require(w.dtype == np.float32, f"{where} holds {w.dtype}, not F32, F16 or BF16")
    require(is_finite(w), f"{where} has a NaN or an infinite number")
    return w


def read_header(path):
    """Read {tensor name: Entry} of a safetensors file.

    The tensors must fill the rest of the file without gap or overlap, as the format demands. Raises
    InputError if the file is missing, truncated, or its header does not describe it.
    """
    path = os.fspath(path)
    header, data, size = read_json_header(path)
    header.pop("__metadata__", None)
    found = {name: _entry(path, name, fields, data) for name, fields in header.items()}
    end, entries = 0, {}
    for name, (start, stop, entry) in sorted(found.items(), key=lambda item: item[1][:2]):
        require(start == end, f"{entry.where} overlaps another or leaves a gap")
        last = data + stop
        require(last <= size, f"{entry.where} ends at byte {last} of {size}: truncated, copy again")
        entries[name], end = entry, stop
    require(data + end == size, f"{path} has {size - data - end} bytes that its header leaves out")
    return entries


def read_json_header(path):
    """Read (header, offset of the tensors' bytes, size of the file)."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, size))
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    require(8 + length <= size, f"{path} is truncated or no safetensors file")
    header = parse_json(text, f"{path} is no safetensors file: its header is not JSON")
    require(isinstance(header, dict), f"{path} is no safetensors file: its header is no object")
    return header, 8 + length, size


def _entry(path, name, fields, data):
    """Check the header's fields of one tensor and make (its first byte, its end, its Entry)."""
    where = f"{path}: tensor {name}"
    require(name.isprintable(), f"{path}: {name!r} is no name of a tensor")
    try:
        dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
        sizes = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop))
        sound = sizes and isinstance(dtype, str) and is_possible(shape)
    except (TypeError, KeyError, ValueError):
        sound = False
    require(sound, f"{path}: the header's entry for tensor {name} is malformed")
    require(dtype in DTYPES, f"{where} has the unsupported type {dtype}")
    count = math.prod(shape)
    span = f"the shape {shape}, which is not its {stop - start} bytes"
    fits = count * DTYPES[dtype].itemsize == stop - start
    require(fits, f"{path}: the header gives tensor {name} {span}")

    def raw():
        return read_raw(where, path, DTYPES[dtype], count, data + start).reshape(shape)

    stored = (lambda: halves(raw(), dtype)) if dtype in ("F16", "BF16") else None
    return start, stop, Entry(dtype, tuple(shape), lambda: decode(raw(), dtype), where, stored)


def is_possible(shape):
    """Return whether an array can have this shape; an empty one, too, has a limit (NumPy's)."""
    return len(shape) <= 32 and math.prod(n or 1 for n in shape) < 2**48


def entry(dtype, w):
    """Make the Entry that writes the array w as `dtype`."""
    return Entry(dtype, w.shape, lambda: w)


def write(path, entries, metadata=None):
    """Write {name: Entry} to `path`, with {"format": "pt"} so that transformers takes it.

    Raises InputError if a number does not fit its type.
    """
    # the widest types first, so that every tensor starts at a multiple of its own width
    names = sorted(entries, key=lambda name: (-DTYPES[entries[name].dtype].itemsize, name))
    header, end = {"__metadata__": metadata or {"format": "pt"}}, 0
    for name in names:
        dtype, shape = entries[name].dtype, entries[name].shape
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            w, dtype = entries[name].read(), entries[name].dtype
            raw = encode(w, dtype, name) if dtype in FLOATS else w
            file.write(np.ascontiguousarray(raw, DTYPES[dtype]).data)

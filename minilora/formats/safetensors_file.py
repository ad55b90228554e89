"""Read and write safetensors: eight bytes of length, a JSON header, then the tensors' raw bytes.

This generalizes part 1 of `lessons/00_qlora_in_one_file.py` to large and damaged files.

Nothing in such a file is executed, which is why it replaced pickled checkpoints. The safetensors
library has no bfloat16 for NumPy, and a large model must be read tensor by tensor, so this module
does not use it. Every number in the header is checked against the file before it is used.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import InputError
from ..data.row_files import parse_json
from ..optim import from_bfloat16, to_bfloat16
from ..quant.low_precision import halves
from .files import check_start

FLOATS = {name: np.dtype(kind) for name, kind in (("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2"))}
DTYPES = FLOATS | {"U8": np.dtype("u1"), "I8": np.dtype("i1")}
FORMAT_NAME = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file. `read` returns its numbers; it raises InputError if they are missing."""

    dtype: str  # the type in the file, or the code of a quantized weight
    shape: tuple[int, ...]
    read: Callable[[], Any]  # float32, unchanged 8-bit numbers, or a quantized weight
    where: str = ""  # the file and the tensor, for messages
    read_low_precision: Callable[[], Any] | None = None  # a matrix kept in F16, BF16 or Q8_0


def read_raw(where, path, dtype, count, offset):
    """Read `count` numbers from byte `offset` of a file; raise InputError if some are missing."""
    raw = np.fromfile(path, dtype, count, offset=offset)
    if raw.size != count:
        raise InputError(f"{where} is incomplete: copy the truncated file again")
    return raw


@np.errstate(invalid="ignore")  # `check_floats` raises an error for NaN
def decode(raw, dtype):
    """Return the stored numbers as float32 if `dtype` is a float type, in the same shape."""
    if dtype == "BF16":
        return from_bfloat16(raw)
    return raw.astype(np.float32, copy=False) if dtype in FLOATS else raw


def encode(w, dtype, where="tensor"):
    """Round float32 numbers to `dtype` (F32, F16 or BF16), to the nearest, ties to even.

    Raises InputError naming `where` if a number is not finite or too large for the type.
    """
    if not is_finite(w):
        raise InputError(f"{where} has a NaN or an infinite number")
    if dtype == "BF16":
        raw = to_bfloat16(w)
    else:
        with np.errstate(over="ignore"):
            raw = np.ascontiguousarray(w, FLOATS[dtype])
    if not is_finite(decode(raw, dtype)):
        raise InputError(f"{where} has a number that {dtype} cannot hold: write float32 instead")
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


def read_header(path):
    """Read {tensor name: Entry} of a safetensors file.

    The format requires that the tensors fill the rest of the file without gap or overlap. Raises
    InputError if the file is missing or truncated, or contradicts its header.
    """
    path = os.fspath(path)
    header, data, size = read_json_header(path)
    header.pop("__metadata__", None)
    found = {name: _entry(path, name, fields, data) for name, fields in header.items()}
    end = 0
    entries = {}
    for name, (start, stop, entry) in sorted(found.items(), key=lambda item: item[1][:2]):
        if start != end:
            raise InputError(f"{entry.where} overlaps another tensor or leaves a gap")
        last = data + stop
        if last > size:
            raise InputError(
                f"{entry.where} ends at byte {last} of {size}: copy the truncated file again"
            )
        entries[name], end = entry, stop
    if data + end != size:
        raise InputError(f"{path} has {size - data - end} bytes that no tensor uses")
    return entries


def read_json_header(path):
    """Read (header, offset of the tensors' bytes, size of the file) of a safetensors file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, size))
            file.seek(0)
            start = file.read(64)
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    check_start(path, start)
    if 8 + length > size:
        raise InputError(f"{path} is truncated or not a safetensors file")
    header = parse_json(text, f"{path} is not a safetensors file: its header is not JSON")
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header of the file is not a JSON object")
    return header, 8 + length, size


def _entry(path, name, fields, data):
    """Check the header's fields of one tensor; return (first byte, end, Entry)."""
    where = f"{path}: tensor {name}"
    if not name.isprintable():
        raise InputError(f"{path}: {name!r} is not a valid tensor name")
    try:
        dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
        sizes = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop))
        sound = sizes and isinstance(dtype, str) and is_possible(shape)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"{path}: the header's entry for tensor {name} is malformed")
    if dtype not in DTYPES:
        raise InputError(f"{where} has the unsupported type {dtype}")
    count = math.prod(shape)
    if count * DTYPES[dtype].itemsize != stop - start:
        raise InputError(f"{where} has the shape {shape}, which does not fit {stop - start} bytes")

    def raw():
        return read_raw(where, path, DTYPES[dtype], count, data + start).reshape(shape)

    stored = (lambda: halves(raw(), dtype)) if dtype in ("F16", "BF16") else None
    return start, stop, Entry(dtype, tuple(shape), lambda: decode(raw(), dtype), where, stored)


def is_possible(shape):
    """Tell whether a NumPy array can have this shape; empty arrays have a limit, too."""
    return len(shape) <= 32 and math.prod(n or 1 for n in shape) < 2**48


def entry(dtype, w):
    """Return the Entry that writes the array w as `dtype`."""
    return Entry(dtype, w.shape, lambda: w)


def write(path, entries, metadata=None):
    """Write {name: Entry} to `path`; raise InputError if a number does not fit its type."""
    # widest types first, so that every tensor starts at a multiple of its item size
    names = sorted(entries, key=lambda name: (-DTYPES[entries[name].dtype].itemsize, name))
    header = {"__metadata__": metadata or {"format": "pt"}}  # transformers needs "format"
    end = 0
    for name in names:
        dtype, shape = entries[name].dtype, entries[name].shape
        start = end
        end = end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            w = entries[name].read()
            dtype = entries[name].dtype
            raw = encode(w, dtype, name) if dtype in FLOATS else w
            file.write(np.ascontiguousarray(raw, DTYPES[dtype]).data)

"""Read GGUF, the format of llama.cpp: typed metadata, a table of tensors, then aligned raw blocks.

A quantized tensor consists of blocks of 32 weights. Each block has a scale (and for Q4_1 an offset)
in float16, and a small integer per weight. Every length in the file is checked against the file's
size before it is used. `gguf_llama.py` turns the tensors into a Llama.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass, replace

import numpy as np

from ..config import InputError
from ..quant.low_precision import LowPrecision, halves
from .files import check_start
from .safetensors_file import FLOATS, Entry, decode, is_possible, read_raw

BLOCK = 32  # weights that share a scale
BLOCKS = {
    "Q4_0": np.dtype([("d", "<f2"), ("q", "u1", BLOCK // 2)]),
    "Q4_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", BLOCK // 2)]),
    "Q8_0": np.dtype([("d", "<f2"), ("q", "i1", BLOCK)]),
}
FORMS: dict[str, np.dtype] = FLOATS | BLOCKS  # the supported types
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 20: "IQ4_NL", 21: "IQ3_S", 23: "IQ4_XS", 30: "BF16",
}  # fmt: skip
INSTEAD = "load the model as a Hugging Face folder"  # what to do with an unsupported file
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@np.errstate(invalid="ignore")  # `check_floats` raises an error for a scale that is not finite
def dequantize(raw, kind):
    """Decode the bytes (uint8) of a tensor of type `kind` into a flat float32 array."""
    if kind in FLOATS:
        return decode(raw.view(FLOATS[kind]), kind)
    blocks = raw.view(BLOCKS[kind])
    d = _column(blocks["d"])
    q = blocks["q"]
    if kind == "Q8_0":
        x = d * q  # x = d·q, q in −127 … 127
    elif kind == "Q4_0":
        x = d * (_nibbles(q) - np.float32(8))  # x = d·(q − 8), q in 0 … 15
    else:
        x = d * _nibbles(q) + _column(blocks["m"])  # x = d·q + m, q in 0 … 15
    return x.reshape(-1)


def to_low_precision(raw, kind, shape):
    """Return the matrix in the bytes of a tensor of type F16, BF16 or Q8_0, kept in that type."""
    if kind != "Q8_0":
        return halves(raw.view("<u2").reshape(shape), kind)
    blocks = raw.view(BLOCKS[kind])
    codes = np.ascontiguousarray(blocks["q"]).reshape(shape)
    return LowPrecision(kind, codes, _column(blocks["d"]).reshape(len(codes), -1))


def _column(numbers):
    return numbers.astype(np.float32)[:, None]


def _nibbles(packed):
    """(n, 16) bytes -> (n, 32) codes: the low nibbles are the first 16, the high ones the rest."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


@dataclass
class Cursor:
    """A position in the file's bytes. Reading past the end raises InputError."""

    path: str
    data: mmap.mmap
    at: int

    def bytes(self, count):
        """Read `count` bytes."""
        start = self.at
        self.at = self.at + count
        if self.at > len(self.data):
            raise InputError(f"{self.path} is truncated: its header is cut off")
        return self.data[start : self.at]

    def number(self, form):
        """Read one little-endian number of a `struct` format."""
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))[0]

    def string(self):
        """Read a text: its length, then UTF-8."""
        try:
            return self.bytes(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: the text before byte {self.at} is not UTF-8") from error

    def value(self, kind):
        """Read a metadata value of type number `kind`; an array becomes a list."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == ARRAY:
                raise InputError(f"{self.path}: arrays of arrays are not supported")
            if kind in SCALARS:
                form = SCALARS[kind]
                size = struct.calcsize("<" + SCALARS[kind])
                return list(struct.unpack(f"<{count}{form}", self.bytes(count * size)))
            return [self.value(kind) for _ in range(count)]
        if kind not in SCALARS:
            raise InputError(f"{self.path}: a metadata value has the unknown type {kind}")
        return self.number(SCALARS[kind])


def read_header(path):
    """Read (metadata, {tensor name: Entry}) of a GGUF file.

    Raises InputError if the file is missing, truncated, not GGUF, or contradicts its header.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            check_start(path, start)
            if not start.startswith(b"GGUF"):
                raise InputError(f"{path} is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(path, data, at=4))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _parse(cursor):
    version = cursor.number("I")
    if version not in (2, 3):
        raise InputError(f"{cursor.path} is GGUF version {version}, not 2 or 3")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    metadata, table = {}, {}
    for _ in range(keys):
        key = cursor.string()
        if key in metadata:
            raise InputError(f"{cursor.path}: {key} occurs twice")
        metadata[key] = cursor.value(cursor.number("I"))
    for _ in range(tensors):
        name, dims = cursor.string(), cursor.number("I")
        if not name.isprintable():
            raise InputError(f"{cursor.path}: {name!r} is not a valid tensor name")
        if name in table:
            raise InputError(f"{cursor.path}: tensor {name} occurs twice")
        if not (1 <= dims <= 4):
            raise InputError(f"{cursor.path}: tensor {name} has {dims} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]  # GGUF stores columns first
        table[name] = shape, cursor.number("I"), cursor.number("Q")
    alignment = metadata.get("general.alignment", 32)
    if not (type(alignment) is int and alignment > 0):
        raise InputError(f"{cursor.path}: general.alignment is {alignment!r}")
    start = end = -(-cursor.at // alignment) * alignment
    entries = {}
    for name, (shape, number, offset) in table.items():
        # llama.cpp requires tensors without gaps, each starting at a multiple of the alignment
        at = start + -(-(end - start) // alignment) * alignment
        where = f"{cursor.path}: tensor {name}"
        if start + offset != at:
            raise InputError(f"{where} overlaps another tensor or leaves a gap")
        entries[name], end = _entry(cursor, where, shape, number, at)
    return metadata, entries


def _entry(cursor, where, shape, number, at):
    """Return (Entry, end) of the tensor whose bytes begin at `at`."""
    size = len(cursor.data)
    kind = TYPES.get(number, number)
    if kind not in FORMS:
        way = "use a file with F32, F16, BF16, Q8_0, Q4_0 or Q4_1"
        raise InputError(f"{where} has the unsupported type {kind}: {way}")
    if not is_possible(shape):
        raise InputError(f"{where} has the impossible shape {shape}")
    block = BLOCK if kind in BLOCKS else 1
    if shape[-1] % block != 0:
        raise InputError(f"{where} has rows of {shape[-1]}, not whole blocks of {block}")
    count = math.prod(shape) // block * FORMS[kind].itemsize
    end = at + count
    if end > size:
        raise InputError(f"{where} ends at byte {end} of {size}: copy the truncated file again")

    def raw():
        return read_raw(where, cursor.path, np.uint8, count, at)

    found = Entry(kind, shape, lambda: dequantize(raw(), kind).reshape(shape), where)
    if kind in ("F16", "BF16", "Q8_0"):
        found = replace(found, read_low_precision=lambda: to_low_precision(raw(), kind, shape))
    return found, end

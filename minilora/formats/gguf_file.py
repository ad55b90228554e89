"""GGUF, the format of llama.cpp: typed metadata, a table of tensors, then aligned raw blocks.

A quantized tensor is a run of blocks of 32 weights. Each block has its own scale (and for Q4_1 an
offset) in float16, and a small whole number per weight. Every length in the file is checked
against the file before it is believed. What a Llama makes of it stands in `gguf_llama.py`.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass

import numpy as np

from ..config import InputError, require
from ..quant.stored import Stored, halves
from .safetensors_file import Entry, decode, read_raw

BLOCK = 32  # weights that share a scale
# type number -> (name, weights in a block, bytes of a block)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", BLOCK, 18), 3: ("Q4_1", BLOCK, 20), 8: ("Q8_0", BLOCK, 34),
}  # fmt: skip
NOT_READ = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 20: "IQ4_NL", 21: "IQ3_S", 23: "IQ4_XS",
}  # fmt: skip
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


def dequantize(raw, kind):
    """float32 numbers, flat, from the bytes (uint8) of a tensor of type `kind`, a name in TYPES.

    A block is its scale d in float16, for Q4_1 its offset m in float16, then its codes q.
    """
    if kind in ("F32", "F16", "BF16"):
        return decode(raw.view({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind]), kind)
    if kind == "Q8_0":
        blocks = raw.reshape(-1, 34)
        # x = d·q, q in −127 … 127
        x = _float16(blocks, 0) * blocks[:, 2:].view(np.int8)
    elif kind == "Q4_0":
        blocks = raw.reshape(-1, 18)
        # x = d·(q − 8), q in 0 … 15
        x = _float16(blocks, 0) * (_nibbles(blocks[:, 2:]) - np.float32(8))
    else:
        blocks = raw.reshape(-1, 20)
        # x = d·q + m, q in 0 … 15   (Q4_1)
        x = _float16(blocks, 0) * _nibbles(blocks[:, 4:]) + _float16(blocks, 2)
    return x.reshape(-1)


def keep(raw, kind, shape):
    """The matrix in the bytes of a tensor of type F16, BF16 or Q8_0, left in that type."""
    if kind != "Q8_0":
        return halves(raw.view("<u2").reshape(shape), kind)
    blocks = raw.reshape(-1, 34)
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).reshape(shape)
    return Stored(kind, codes, _float16(blocks, 0).reshape(len(codes), -1))


def _float16(blocks, at):
    """The two bytes at `at` of each block, as a column of float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed):
    """(n, 16) bytes -> (n, 32) codes: the low nibbles are the first 16, the high ones the rest."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


@dataclass
class Cursor:
    """A place in the file's bytes; reading past the end is an InputError."""

    path: str
    data: mmap.mmap
    at: int

    def bytes(self, count):
        start, self.at = self.at, self.at + count
        require(self.at <= len(self.data), f"{self.path} is truncated: its header is cut off")
        return self.data[start : self.at]

    def number(self, form):
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))[0]

    def string(self):
        try:
            return self.bytes(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: the text before byte {self.at} is not UTF-8") from error

    def value(self, kind):
        """A metadata value of the type numbered `kind`; an array becomes a list."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            require(kind != ARRAY, f"{self.path}: arrays of arrays are not read")
            return [self.value(kind) for _ in range(count)]
        require(kind in SCALARS, f"{self.path}: its metadata has the unknown type {kind}")
        return self.number(SCALARS[kind])


def read_header(path):
    """(metadata, {GGUF's name: Entry}) of a GGUF file.

    Raises InputError if the file is missing, no GGUF, truncated, or not what its header says.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            require(file.read(4) == b"GGUF", f"{path} is no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(path, data, at=4))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _parse(cursor):
    version = cursor.number("I")
    require(version in (2, 3), f"{cursor.path} is GGUF version {version}; 2 and 3 are read")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    table = [_row(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    sound = isinstance(alignment, int) and alignment > 0
    require(sound, f"{cursor.path}: general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    return metadata, {row[0]: _entry(cursor, start, *row) for row in table}


def _row(cursor):
    """(name, shape, type number, offset) of the next tensor in the table."""
    name, dims = cursor.string(), cursor.number("I")
    require(name.isprintable(), f"{cursor.path}: {name!r} is no name of a tensor")
    require(1 <= dims <= 4, f"{cursor.path}: tensor {name} has {dims} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]  # the file lists columns first
    return name, shape, cursor.number("I"), cursor.number("Q")


def _entry(cursor, start, name, shape, kind, offset):
    where, size = f"{cursor.path}: tensor {name}", len(cursor.data)
    require(
        kind in TYPES,
        f"{where} has the type {NOT_READ.get(kind, kind)}, which is not read; "
        "take a file with F32, F16, BF16, Q8_0, Q4_0 or Q4_1",
    )
    dtype, block, width = TYPES[kind]
    require(shape[-1] % block == 0, f"{where} has rows of {shape[-1]}, no whole blocks")
    count, at = math.prod(shape) // block * width, start + offset
    require(
        at + count <= size, f"{where} ends at byte {at + count} of {size}: truncated, copy it again"
    )

    def raw():
        return read_raw(where, cursor.path, np.uint8, count, at)

    stored = (lambda: keep(raw(), dtype, shape)) if dtype in ("F16", "BF16", "Q8_0") else None
    return Entry(where, shape, dtype, lambda: dequantize(raw(), dtype).reshape(shape), stored)

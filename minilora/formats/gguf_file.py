"""Read GGUF, the format of llama.cpp: typed metadata, a table of tensors, then aligned raw blocks.

Every length in the file is checked against the file's size before it is used. `gguf_llama.py` turns
the tensors into a Llama.
"""

import mmap
import os
import struct
from dataclasses import dataclass

from ..config import InputError
from . import fields
from .files import check_start, errors_in
from .safetensors_file import entry_in_file

TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 30: "BF16"}
INSTEAD = "load the model as a Hugging Face folder"  # what to do with an unsupported file
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass
class Cursor:
    """A position in the file's bytes. Reading past the end raises InputError."""

    data: mmap.mmap
    at: int

    def bytes(self, count):
        """Read `count` bytes."""
        start = self.at
        self.at = self.at + count
        if self.at > len(self.data):
            raise InputError("the file is truncated: its header is cut off")
        return self.data[start : self.at]

    def numbers(self, form, count=1):
        """Read little-endian numbers of a `struct` format."""
        return struct.unpack(f"<{count}{form}", self.bytes(count * struct.calcsize("<" + form)))

    def number(self, form):
        """Read one number."""
        return self.numbers(form)[0]

    def string(self):
        """Read a text: its length, then UTF-8."""
        try:
            return self.bytes(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"the text before byte {self.at} is not UTF-8") from error

    def value(self, kind):
        """Read a metadata value of type number `kind`; an array becomes a list."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == STRING:
                return [self.string() for _ in range(count)]
            return list(self.numbers(scalar(kind), count))
        return self.number(scalar(kind))


def scalar(kind):
    """Return the `struct` format of a number in the metadata."""
    if kind not in SCALARS:
        raise InputError(f"a metadata value has the type {kind}, which is not supported")
    return SCALARS[kind]


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
                size = len(data)
                cursor = Cursor(data, at=4)
                with errors_in(path):
                    metadata, table = _parse(cursor)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    alignment = metadata.get("general.alignment", 32)

    def aligned(at):
        return -(-at // alignment) * alignment

    start = end = aligned(cursor.at)
    entries = {}
    for name, (shape, number, offset) in table.items():
        # llama.cpp requires tensors without gaps, each starting at a multiple of the alignment
        expected = start + aligned(end - start)
        where = f"{path}: tensor {name}"
        dtype = TYPES.get(number, f"number {number}")
        at = start + offset
        entries[name], end = entry_in_file(path, where, dtype, shape, at, expected, size)
    return metadata, entries


def _parse(cursor):
    """Return (metadata, {tensor name: (shape, type number, offset)})."""
    version = cursor.number("I")
    if version not in (2, 3):
        raise InputError(f"this is GGUF version {version}, not 2 or 3")
    tensors, keys = cursor.numbers("Q", 2)
    metadata, table = {}, {}
    for _ in range(keys):
        key = cursor.string()
        if key in metadata:
            raise InputError(f"{key} occurs twice")
        metadata[key] = cursor.value(cursor.number("I"))
    fields.size(metadata, "general.alignment", 32)
    for _ in range(tensors):
        name, dimensions = cursor.string(), cursor.number("I")
        if name in table:
            raise InputError(f"tensor {name} occurs twice")
        if not (1 <= dimensions <= 4):
            raise InputError(f"tensor {name} has {dimensions} dimensions")
        shape = cursor.numbers("Q", dimensions)[::-1]  # GGUF stores columns first
        table[name] = shape, cursor.number("I"), cursor.number("Q")
    return metadata, table

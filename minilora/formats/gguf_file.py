"""Read GGUF, the format of llama.cpp: typed metadata, a table of tensors, then aligned raw blocks.

Every length in the file is checked against the file's size before it is used. `gguf_llama.py` turns
the tensors into a Llama.
"""

import mmap
import os
import struct

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


def take(data, count):
    """Read the next `count` bytes; raise InputError if the file ends before."""
    raw = data.read(min(count, len(data)))
    if len(raw) != count:
        raise InputError("the file is truncated: its header is cut off")
    return raw


def numbers(data, form, count=1):
    """Read little-endian numbers of a `struct` format."""
    size = struct.calcsize("<" + form)
    return struct.unpack(f"<{count}{form}", take(data, count * size))


def number(data, form):
    """Read one number."""
    return numbers(data, form)[0]


def string(data):
    """Read a text: its length, then UTF-8."""
    try:
        return take(data, number(data, "Q")).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the text before byte {data.tell()} is not UTF-8") from error


def value(data):
    """Read a metadata value: its type, then a text, a number, or an array (returned as a list)."""
    kind, count = number(data, "I"), 1
    is_array = kind == ARRAY
    if is_array:
        kind, count = number(data, "I"), number(data, "Q")
    if kind == STRING:
        values = [string(data) for _ in range(count)]
    elif kind in SCALARS:
        values = list(numbers(data, SCALARS[kind], count))
    else:
        raise InputError(f"a metadata value has the type {kind}, which is not supported")
    return values if is_array else values[0]


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
                data.seek(4)
                with errors_in(path):
                    metadata, table = _parse(data)
                header_end, size = data.tell(), len(data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    alignment = metadata.get("general.alignment", 32)

    def aligned(at):
        return -(-at // alignment) * alignment

    start = end = aligned(header_end)
    entries = {}
    for name, (shape, number, offset) in table.items():
        # llama.cpp requires tensors without gaps, each starting at a multiple of the alignment
        expected = start + aligned(end - start)
        where = f"{path}: tensor {name}"
        dtype = TYPES.get(number, f"number {number}")
        at = start + offset
        entries[name], end = entry_in_file(path, where, dtype, shape, at, expected, size)
    return metadata, entries


def _parse(data):
    """Return (metadata, {tensor name: (shape, type number, offset)})."""
    version = number(data, "I")
    if version not in (2, 3):
        raise InputError(f"this is GGUF version {version}, not 2 or 3")
    tensors, keys = numbers(data, "Q", 2)
    metadata: dict = {}
    table: dict = {}
    for _ in range(keys):
        key = string(data)
        if key in metadata:
            raise InputError(f"{key} occurs twice")
        metadata[key] = value(data)
    fields.size(metadata, "general.alignment", 32)
    for _ in range(tensors):
        name, dimensions = string(data), number(data, "I")
        if name in table:
            raise InputError(f"tensor {name} occurs twice")
        if not (1 <= dimensions <= 4):
            raise InputError(f"tensor {name} has {dimensions} dimensions")
        shape = numbers(data, "Q", dimensions)[::-1]  # GGUF stores columns first
        table[name] = shape, number(data, "I"), number(data, "Q")
    return metadata, table

"""Read GGUF, the format of llama.cpp: typed metadata, a table of tensors, then aligned raw blocks.

Every length in the file is checked against the file's size before it is used. `gguf_llama.py` turns
the tensors into a Llama.
"""

import mmap
import struct

from ..config import InputError, Rule
from . import fields
from .files import check_start, errors_in
from .safetensors_file import entry_in_file

TENSOR_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 30: "BF16"}
ALIGNMENT = Rule("be a power of two", lambda n: type(n) is int and n > 0 and n & (n - 1) == 0)
STRING = 8
ARRAY = 9
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


def unsupported(what):
    """Return the error for what the file has and is not read here."""
    return InputError(f"{what} is not supported: load the model as a Hugging Face folder")


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
    return take(data, number(data, "Q")).decode()


def value(data):
    """Read a metadata value: its type, then a text, a number, or an array (returned as a list)."""
    kind = number(data, "I")
    if kind == STRING:
        return string(data)
    if kind != ARRAY:
        return number(data, SCALARS[kind])
    kind = number(data, "I")
    count = number(data, "Q")
    if kind == STRING:
        return [string(data) for _ in range(count)]
    return list(numbers(data, SCALARS[kind], count))


def read_header(path):
    """Read (metadata, {tensor name: Entry}) of a GGUF file.

    Raises InputError if the file is missing, truncated, not GGUF, or contradicts its header.
    """
    check_start(path)
    with (
        errors_in(path),
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if take(data, 4) != b"GGUF":
            raise InputError("this is not a GGUF file")
        version = number(data, "I")
        if version not in (2, 3):
            raise InputError(f"this is GGUF version {version}, not 2 or 3")
        tensors, keys = numbers(data, "Q", 2)
        pairs = [(string(data), value(data)) for _ in range(keys)]
        table = [_tensor(data) for _ in range(tensors)]
        metadata = dict(pairs)
        alignment = fields.number(metadata, "general.alignment", ALIGNMENT, 32)
        start = -(-data.tell() // alignment) * alignment
        size = len(data)
    entries = {}
    if len(metadata) < len(pairs) or len({name for name, *_ in table}) < len(table):
        raise InputError(f"{path} has a key or a tensor twice: use an undamaged copy")
    for name, shape, kind, offset in table:
        dtype = TENSOR_TYPES.get(kind, f"number {kind}")
        entries[name], _ = entry_in_file(path, name, dtype, shape, start + offset, size)
    return metadata, entries


def _tensor(data):
    """Read (name, shape, type number, offset) of a tensor."""
    name = string(data)
    shape = numbers(data, "Q", number(data, "I"))[::-1]  # GGUF stores columns first
    return name, shape, number(data, "I"), number(data, "Q")

"""Seeded mutations of bytes, JSON objects, safetensors files and GGUF files, for the fuzz tests."""

import json
import math
import struct

import numpy as np

DEEP, DIGITS = "@deep@", "@digits@"  # replaced in the text: no JSON library writes such values
ODD = [
    None, True, False, 0, -1, 1, 2, 3, 16, 31, 255, 256, 65536, 2**31, 2**32 - 1, 2**62, 2**63,
    2**64 - 1, 10**30, -(10**30), 10**400, 0.5, -0.0, 1e-300, 1e-40, 1e38, 1e300, math.nan,
    math.inf, -math.inf, "", "x", "0", "nf4", "a\nb\x1b[2J\u2028\x00", "\ud800", "é" * 3000,
    [], [0], [1], [-1], ["a"], [0, 10**30], [10**30, 10**30], [2**62, 0], [1] * 70, [[0]], [None],
    [math.nan], {}, {"a": 1}, {"content": 5}, {"content": "x\n"}, {"role": "a"}, DEEP, DIGITS,
]  # fmt: skip
NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]


def pick(rng, options):
    """One of the options (`rng.choice` would make an array of them)."""
    return options[int(rng.integers(len(options)))]


def mutated_bytes(rng, data, until=None):
    """The bytes with one kind of damage, at a place before `until` (default: anywhere)."""
    n = max(1, min(len(data), until or len(data)))
    at, kind = int(rng.integers(n)), int(rng.integers(8))
    length = 1 + int(rng.integers(1, 64))
    if kind <= 2:  # one or more flipped bits or bytes
        out = bytearray(data)
        for _ in range(1 + int(rng.integers(3)) * kind):
            place = int(rng.integers(n))
            if place < len(out):
                out[place] ^= pick(rng, (1, 2, 4, 8, 16, 32, 64, 128, 255))
        return bytes(out)
    if kind == 3:
        return data[:at]
    if kind == 4:  # a piece twice
        return data[: at + length] + data[at:]
    if kind == 5:  # a piece less
        return data[:at] + data[at + length :]
    if kind == 6:  # a whole number of eight or four bytes
        number = pick(rng, NUMBERS)
        new = struct.pack("<Q", number) if number >= 2**32 else struct.pack("<I", number)
        return data[:at] + new + data[at + len(new) :]
    return data[:at] + rng.bytes(length) + data[at:]


def places(value, here=()):
    """The path of every value inside a JSON value."""
    found = [here]
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        if len(found) > 2000:
            break
        found += places(inner, (*here, key))
    return found


def at(value, path):
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def mutated_json(rng, text, odd=ODD):
    """The text of a JSON object with one value, key or byte changed."""
    if rng.random() < 0.15:
        return mutated_bytes(rng, text)
    value = json.loads(text)
    kind = int(rng.integers(8))
    paths = [path for path in places(value) if path]
    if kind == 0 or not paths:  # the whole object
        return as_text(rng, pick(rng, odd))
    path = pick(rng, paths)
    parent, key = at(value, path[:-1]), path[-1]
    if kind == 1:
        del parent[key]
    elif kind == 2 and isinstance(parent, dict):
        parent[key + pick(rng, ("", " ", "x", "\n\x1b[1m", "\ud800", ".weight"))] = parent.pop(key)
    elif kind == 3 and isinstance(parent, dict):  # a new key
        parent[pick(rng, ("", "x\ny", "type", "__proto__", "\ud800"))] = pick(rng, odd)
    elif kind == 4:  # the value of another place
        parent[key] = json.loads(json.dumps(at(value, pick(rng, paths))))
    elif kind == 5:  # nested
        parent[key] = pick(rng, ([parent[key]], {"a": parent[key]}, [parent[key]] * 2))
    else:
        parent[key] = pick(rng, odd)
    text = as_text(rng, value)
    if kind == 3 and rng.random() < 0.5 and isinstance(value, dict) and value:  # a key twice
        double = json.dumps(pick(rng, list(value))).encode() + b": " + as_text(rng, pick(rng, odd))
        text = b"{" + double + b", " + text[1:]
    return text


def as_text(rng, value):
    """JSON as bytes, with what no library would write in it."""
    text = json.dumps(value)
    depth = pick(rng, (100, 900, 3000, 100_000))
    text = text.replace(json.dumps(DEEP), "[" * depth + "]" * depth)
    return text.replace(json.dumps(DIGITS), "9" * pick(rng, (400, 4300, 5000))).encode()


# --- safetensors


def tensors_of(data):
    """({name: (dtype, shape, bytes)}, metadata) of a sound safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    parts = {}
    for name, fields in header.items():
        start, stop = (8 + length + n for n in fields["data_offsets"])
        parts[name] = fields["dtype"], fields["shape"], data[start:stop]
    return parts, metadata


def safetensors_of(parts, metadata):
    """The file of such tensors."""
    header, blob = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, shape, raw) in parts.items():
        offsets = [len(blob), len(blob) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        blob += raw
    return with_header(json.dumps(header).encode(), blob)


def with_header(text, blob):
    """The file of a header's text and the tensors' bytes."""
    return len(text).to_bytes(8, "little") + text + blob


STATE = ".quant_state.bitsandbytes__"
ENDINGS = (".SCB", ".absmax", STATE + "nf4", STATE + "fp4", ".x\n", "_format", ".lora_A.weight")


def mutated_safetensors(rng, data):
    """The file with its header, its tensors or any of its bytes changed."""
    length = int.from_bytes(data[:8], "little")
    kind = int(rng.integers(6))
    if kind == 0:
        return mutated_bytes(rng, data, pick(rng, (8, 8 + length, len(data))))
    if kind == 1:
        return with_header(mutated_json(rng, data[8 : 8 + length]), data[8 + length :])
    parts, metadata = tensors_of(data)
    states = [name for name in parts if STATE in name]
    if kind == 2 and states:  # the JSON text of a quantized weight
        name = pick(rng, states)
        text = mutated_json(rng, parts[name][2])
        parts[name] = "U8", [len(text)], text
        return safetensors_of(parts, metadata)
    if kind == 3 and metadata:
        key = pick(rng, list(metadata))
        try:
            text = mutated_json(rng, metadata[key].encode())
            metadata[key] = text.decode("utf-8", "replace")
        except ValueError:
            metadata[key] = pick(rng, ODD)
        return safetensors_of(parts, metadata)
    name = pick(rng, list(parts))
    dtype, shape, raw = parts[name]
    change = int(rng.integers(8))
    if change == 0:
        del parts[name]
    elif change == 1:
        parts[name + pick(rng, ENDINGS)] = parts[pick(rng, list(parts))]
    elif change == 2:
        new = pick(rng, list(parts)) + pick(rng, ENDINGS)
        parts[new] = parts.pop(name)
    elif change == 3:
        empty = pick(rng, ([0, 10**30], [0], [0, 2**62, 2**62], [10**9, 0], [0, 0], [0] * 70))
        parts[name] = dtype, empty, b""
    elif change == 4:
        new = pick(
            rng, (shape[::-1], [1, *shape], [*shape, 1], [1] * 70 + shape, [math.prod(shape)])
        )
        parts[name] = dtype, new, raw
    elif change == 5:
        new, width = pick(
            rng, (("F16", 2), ("BF16", 2), ("U8", 1), ("I8", 1), ("F32", 4), ("I64", 8))
        )
        parts[name] = new, [len(raw) // width], raw[: len(raw) // width * width]
    elif change == 6:
        number = pick(rng, (math.nan, math.inf, -math.inf, 3e38, 1e-45, -1.0))
        if dtype == "F32" and len(raw) >= 4:
            where = 4 * int(rng.integers(len(raw) // 4))
            raw = raw[:where] + struct.pack("<f", number) + raw[where + 4 :]
        parts[name] = dtype, shape, raw
    else:
        parts[name] = dtype, shape, rng.bytes(len(raw))
    order = rng.permutation(list(parts)).tolist() if rng.random() < 0.3 else list(parts)
    return safetensors_of({name: parts[name] for name in order}, metadata)


# --- GGUF


def put_text(text):
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def put_typed(value):
    """(type number, bytes) of a metadata value of any type that the format has."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        if 0 <= value < 2**32:
            return 4, struct.pack("<I", value)
        if value < 0:
            return 11, struct.pack("<q", max(value, -(2**63)))
        return 10, struct.pack("<Q", min(value, 2**64 - 1))
    if isinstance(value, float):
        return 12, struct.pack("<d", value)
    if isinstance(value, list):
        items = [put_typed(item) for item in value]
        kind = items[0][0] if items else 4
        same = [raw for number, raw in items if number == kind]
        return 9, struct.pack("<IQ", kind, len(same)) + b"".join(same)
    return 8, put_text(value if isinstance(value, str) else json.dumps(value))


def mutated_gguf(rng, data, metadata, tensors):
    """A GGUF file with its bytes, its metadata or its table of tensors changed."""
    kind = int(rng.integers(4))
    if kind == 0:
        size = len(data) - sum(len(raw) for _, _, raw in tensors.values())
        return mutated_bytes(rng, data, pick(rng, (24, size, size, len(data))))
    metadata, tensors = dict(metadata), dict(tensors)
    double = []
    if kind == 3:
        name = pick(rng, list(tensors))
        number, shape, raw = tensors[name]
        change = int(rng.integers(7))
        if change == 0:
            del tensors[name]
        elif change == 1:
            new = pick(rng, (name + "\n", "x." + name[4:], name.upper(), "a.b"))
            tensors[new] = tensors.pop(name)
        elif change == 2:
            odd = ((0, 2**63), (0, 2**64 - 1), (2**40, 2**40), (0,), (1,) * 5, shape[::-1], ())
            tensors[name] = number, pick(rng, odd), raw
        elif change == 3:
            tensors[name] = pick(rng, (1, 2, 3, 8, 12, 30, 99, 2**31)), shape, raw
        elif change == 4:
            double = [(name, tensors[name])]
        elif change == 5:  # two pieces of the file in each other's place, or one in both
            other = pick(rng, list(tensors))
            tensors[name] = number, shape, tensors[other][2]
        else:
            tensors[name] = number, shape, rng.bytes(len(raw))
    else:
        key = pick(rng, list(metadata))
        change = int(rng.integers(6))
        if change == 0:
            del metadata[key]
        elif change == 1:
            metadata[key] = metadata[pick(rng, list(metadata))]
        elif change == 2 and isinstance(metadata[key], list) and metadata[key]:
            values = list(metadata[key])
            where = int(rng.integers(len(values)))
            change = int(rng.integers(4))
            if change == 0:
                del values[where]
            elif change == 1:
                values[where] = values[int(rng.integers(len(values)))]
            elif change == 2 and isinstance(values[0], str):
                values[where] = pick(rng, ("", " ", "a b", "$A", "\n", "x" * 5000, values[0] * 2))
            else:
                values[where] = pick(rng, values)
            metadata[key] = values
        elif change == 3:
            extra = ("general.alignment", "llama.vocab_size", "llama.rope.scaling.type",
                     "llama.attention.key_length", "llama.rope.freq_base",
                     "tokenizer.ggml.add_bos_token", "tokenizer.ggml.unknown_token_id",
                     "tokenizer.ggml.eot_token_id")  # fmt: skip
            metadata[pick(rng, extra)] = pick(rng, ODD)
        else:
            metadata[key] = pick(rng, ODD)
    return gguf_of(metadata, list(tensors.items()) + double)


def gguf_of(metadata, tensors):
    """The file; tensors: [(name, (type number, shape, bytes))]."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, raw = put_typed(value)
        head += put_text(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, (kind, shape, raw) in tensors:
        data += b"\0" * (-len(data) % 32)
        head += put_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    return head + b"\0" * (-len(head) % 32) + data


# --- text


def mutated_jsonl(rng, data):
    """The lines with one of them changed."""
    if rng.random() < 0.2:
        return mutated_bytes(rng, data)
    lines = data.splitlines()
    where = int(rng.integers(len(lines)))
    lines[where] = mutated_json(rng, lines[where])
    return b"\n".join(lines) + b"\n"


TOML_ODD = [
    "true", "0", "-1", "1e400", "nan", "inf", "0x" + "f" * 6000, "9" * 4300, "9" * 5000, "[]",
    "[1]",
    "[[1]]", "{a = 1}", '""', '"x"', r'"a\u0000b"', r'"a\nb\u001b"', "1979-05-27T07:32:00Z",
    "[" * 900 + "]" * 900, "[" * 9000 + "]" * 9000, '["a", 1, 2.5]', "0.5", "10" + "0" * 30,
    '"-1"',
    '"--x"', "1_000",
]  # fmt: skip


def mutated_toml(rng, data):
    """The settings with one value, key or byte changed."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, data)
    lines = data.decode().splitlines()
    where = int(rng.integers(len(lines)))
    key, _, value = lines[where].partition(" = ")
    kind = int(rng.integers(5))
    if kind == 0:
        key = pick(rng, ('"a\\nb"', '""', "a.b", "[x]", "config", "resume", "command", key + "_"))
    elif kind == 1:
        value = pick(rng, lines).partition(" = ")[2]
    elif kind == 2:
        lines.append(lines[where])
    else:
        value = pick(rng, TOML_ODD)
    lines[where] = f"{key} = {value}"
    return "\n".join(lines).encode()


def random_bytes(rng, data):
    """Mutations of a file that is plain text."""
    return pick(rng, (b"", b"\xff\xfe", "\ud800".encode("utf-8", "surrogatepass"), b"\x00" * 9,
                      mutated_bytes(rng, data), mutated_bytes(rng, data)))  # fmt: skip


def finite(leaf):
    """Whether every number of an array is finite."""
    return bool(np.isfinite(leaf).all())

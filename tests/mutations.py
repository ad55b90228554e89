"""Seeded mutations of files, for the fuzz tests."""

import json
import math
import struct

import numpy as np
import safetensors.numpy

ODD = [
    None, True, 0, -1, 3, 255, 2**31, 2**64 - 1, 10**400, 0.5, 1e-40, 1e300, math.nan, -math.inf,
    "", "a\nb\x1b[2J\u2028\x00", "\ud800", "é" * 3000, [], [-1], ["a"], [2**62, 0], [1] * 70, [[0]],
    {}, {"a": 1}, {"content": 5},
]  # fmt: skip


def pick(rng, options):
    """One of the options (`rng.choice` would make an array of them)."""
    return options[int(rng.integers(len(options)))]


def mutated_bytes(rng, data):
    """The bytes with one kind of damage; half of the time near the begin, where headers are."""
    size = len(data) if rng.random() < 0.5 else min(len(data), 2000)
    at, length = int(rng.integers(size + 1)), int(rng.integers(1, 64))
    number = struct.pack("<Q", pick(rng, (0, 1, 2**16, 2**31, 2**62, 2**64 - 1)))
    return pick(rng, (
        data[:at],  # cut off
        data[: at + length] + data[at:],  # a piece twice
        data[:at] + data[at + length :],  # a piece less
        data[:at] + rng.bytes(1) + data[at + 1 :],
        data[:at] + number + data[at + 8 :],
    ))  # fmt: skip


def parents(value):
    """Every list and object inside a JSON value that has an item."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if len(inner) else []
    for item in list(inner)[:100]:
        found += parents(item)
    return found


def mutated_json(rng, text):
    """The text of a JSON value with one value, key or byte changed."""
    if rng.random() < 0.15:
        return mutated_bytes(rng, text)
    value = json.loads(text)
    places = parents(value)
    parent = pick(rng, places)
    key = pick(rng, list(parent) if isinstance(parent, dict) else range(len(parent)))
    kind = int(rng.integers(5))
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[key + pick(rng, ("", "x", "\n\x1b[1m", "\ud800", ".weight"))] = parent.pop(key)
    elif kind == 2:  # the value of another place
        parent[key] = json.loads(json.dumps(pick(rng, places)))
    else:
        parent[key] = pick(rng, ODD)
    return json.dumps(value).encode()


STATE = ".quant_state.bitsandbytes__nf4"
ENDINGS = (".SCB", ".absmax", STATE, ".x\n", "_format", ".lora_A.weight")


def mutated_safetensors(rng, data):
    """The file with its header, one tensor, or any of its bytes changed."""
    length = int.from_bytes(data[:8], "little")
    kind = int(rng.integers(5))
    if kind == 0:
        return mutated_bytes(rng, data)
    if kind == 1:
        text = mutated_json(rng, data[8 : 8 + length])
        return len(text).to_bytes(8, "little") + text + data[8 + length :]
    tensors = safetensors.numpy.load(data)
    name = pick(rng, list(tensors))
    w = tensors[name]
    if STATE in name:
        tensors[name] = np.frombuffer(mutated_json(rng, bytes(w)), np.uint8)
    elif kind == 2:
        tensors[name + pick(rng, ENDINGS)] = tensors.pop(name)
    elif kind == 3:
        flat = w.reshape(-1)
        tensors[name] = pick(rng, (flat, w[None], flat[:0], np.zeros((10**9, 0), w.dtype)))
    else:
        tensors[name] = w.view(np.uint8).astype(pick(rng, ("u1", "i1", "f2", "f4")))
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    return safetensors.numpy.save(tensors, metadata)


MUTATED = {".json": mutated_json, ".jsonl": mutated_json, ".safetensors": mutated_safetensors}


def mutated(rng, path, data):
    """The contents of the file `path` with one change of its kind."""
    return MUTATED.get(path.suffix, mutated_bytes)(rng, data)

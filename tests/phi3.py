"""The family Phi-3 as a contributor would add it: its file joins q, k and v, and gate and up."""

from functools import partial

import numpy as np

from minilora.config import InputError
from minilora.formats.families.family import Family
from minilora.formats.fields import size
from minilora.formats.safetensors_file import FLOATS, Entry


def read(raw):
    """The window: null and a missing field are none."""
    if raw.get("sliding_window") is None:
        return {}
    return {"sliding_window": size(raw, "sliding_window")}


def write(config):
    """The window, and no token for padding: transformers' default is one of 32,064."""
    return {"sliding_window": config.sliding_window, "pad_token_id": None}


def joined(config):
    """{joined tensor: {its part: rows}}, in the order of the rows."""
    q, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden = config.intermediate_size
    return {
        "qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "gate_up_proj": {"gate_proj": hidden, "up_proj": hidden},
    }


def check_float(entry, where):
    if entry.dtype not in FLOATS:
        raise InputError(f"{where} is quantized, and a quantized phi3 is not implemented")


def split(config, tensors):
    """The parts of each joined tensor in its place."""
    found = {}
    for path, entry in tensors.items():
        node, _, name = path.removesuffix(".weight").rpartition(".")
        parts = joined(config).get(name)
        if parts is None:
            found[path] = entry
            continue
        check_float(entry, entry.where)
        expected = sum(parts.values()), config.hidden_size
        if entry.shape != expected:
            raise InputError(f"{entry.where} has the shape {entry.shape}, not {expected}")
        end = 0
        for part, rows in parts.items():
            start, end = end, end + rows
            read = partial(rows_of, entry, start, end)
            shape = rows, config.hidden_size
            found[f"{node}.{part}.weight"] = Entry(entry.dtype, shape, read, entry.where)
    return found


def rows_of(entry, start, end):
    return entry.read()[start:end]


def join(config, tensors):
    """The inverse of `split`."""
    found = dict(tensors)
    for name, parts in joined(config).items():
        first = f".{next(iter(parts))}.weight"
        for path in [path for path in tensors if path.endswith(first)]:
            node = path.removesuffix(first)
            entries = [found.pop(f"{node}.{part}.weight") for part in parts]
            check_float(entries[0], path)
            shape = sum(parts.values()), config.hidden_size
            read = partial(concatenated, entries)
            found[f"{node}.{name}.weight"] = Entry(entries[0].dtype, shape, read)
    return found


def concatenated(entries):
    return np.concatenate([entry.read() for entry in entries])


FAMILY = Family(
    "phi3", "Phi3ForCausalLM",
    read=read, write=write, split=split, join=join,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
)  # fmt: skip

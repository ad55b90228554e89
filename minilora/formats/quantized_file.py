"""Read and write a quantized base with the names and the layout of bitsandbytes.

A 4-bit weight consists of `weight` (the packed codes, one byte per row), `weight.absmax`,
`weight.quant_map` (the sixteen values) and a JSON text, stored as bytes, under
`weight.quant_state.bitsandbytes__nf4` (or fp4). With double quantization, `weight.absmax` holds
8-bit codes, which `weight.nested_absmax` and `weight.nested_quant_map` decode. An 8-bit weight
consists of `weight` (int8) and `SCB`, the absmax of each row.
"""

import json
import math

import numpy as np

from .. import nf4
from ..config import InputError
from ..double_quant import DYNAMIC_MAP, NESTED_BLOCK_SIZE, DoubleQuantized
from ..quant.int8 import Int8
from ..tree import named_leaves
from . import hf_folder
from .files import errors_in
from .safetensors_file import Entry, check_floats, entry

STATE = ".quant_state.bitsandbytes__"
MAPS = {"nf4": nf4.NF4, "fp4": nf4.FP4}
TYPES = ("int8", *MAPS)  # dtypes of the entries of quantized weights


def scheme(leaf):
    """Return (scheme, block size or None) of a weight, the arguments of `load`."""
    if isinstance(leaf, Int8):
        return "int8", None
    if isinstance(leaf, nf4.Quantized):
        double = "-dq" * isinstance(leaf.stored_absmax, DoubleQuantized)
        return leaf.quant_type + double, leaf.block_size
    return "none", None


def join(folder, settings, tensors):
    """Return {path: Entry} in which the parts of each quantized weight are joined into one Entry.

    `settings` is quantization_config of config.json, which must be of bitsandbytes.
    """
    with errors_in(f"{folder}/config.json"):
        if not isinstance(settings, dict):
            raise InputError("quantization_config must be an object")
        kind = settings.get("quant_method", "bitsandbytes")
        if kind != "bitsandbytes":
            raise InputError(f"quant_method {kind!r} is not supported; only bitsandbytes is")
    rest = dict(tensors)
    joined = {}
    for name in tensors:
        weight, _, quant_type = name.partition(STATE)
        if quant_type:
            own = [key for key in rest if key.startswith(weight + ".")]
            parts = {key.removeprefix(weight + "."): rest.pop(key) for key in own}
            joined[weight] = _four_bit(quant_type, rest.pop(weight, None), tensors[name], parts)
        elif name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
            rest.pop(weight + "_format", None)
            rest.pop(name, None)
            joined[weight] = _eight_bit(rest.pop(weight, None), tensors[name])
    return rest | joined


def _eight_bit(codes, absmax):
    """Return the Entry of the 8-bit weight with these parts."""
    if codes is None:
        raise InputError(f"{absmax.where} has no weight")
    shape = codes.shape
    if len(shape) != 2:
        raise InputError(f"{codes.where} is int8 {shape}, which is not a matrix")

    def read():
        return Int8(_part(codes, np.int8, shape), _part(absmax, np.float32, shape[:1]))

    return Entry("int8", shape, read, codes.where)


def _four_bit(quant_type, codes, state, parts):
    """Return the Entry of the 4-bit weight with these parts, {name below the weight: Entry}."""
    if codes is None:
        raise InputError(f"{state.where} has no weight")
    try:
        fields = json.loads(bytes(state.read()))
        shape = tuple(fields["shape"])
        block_size = fields["blocksize"]
        nf4.check_4bit(block_size, quant_type)
        sizes = all(type(size) is int and size > 0 for size in (*shape, block_size))
        sound = sizes and len(shape) == 2 and fields["quant_type"] == quant_type
        sound = sound and fields.get("nested_blocksize", NESTED_BLOCK_SIZE) == NESTED_BLOCK_SIZE
        sound = sound and ("nested_absmax" not in parts or abs(fields["nested_offset"]) < 1e38)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{state.where} is malformed")
    n = math.prod(shape)
    m = -(-n // block_size)

    def part(name, shape, dtype=np.float32):
        if name not in parts:
            raise InputError(f"{codes.where} has no {name}")
        return _part(parts[name], dtype, shape)

    def check_map(name, values):
        if not np.allclose(part(name, values.shape), values, rtol=0, atol=1e-6):
            raise InputError(
                f"{codes.where} has another code: its {name} differs from bitsandbytes'"
            )

    def stored_absmax():
        if "nested_absmax" not in parts:
            return part("absmax", (m,))
        check_map("nested_quant_map", DYNAMIC_MAP)
        nested = part("nested_absmax", (-(-m // NESTED_BLOCK_SIZE),))
        offset = fields["nested_offset"]
        return DoubleQuantized(part("absmax", (m,), np.uint8), nested, np.float32(offset))

    def read():
        check_map("quant_map", MAPS[quant_type])
        packed = _part(codes, np.uint8, (-(-n // 2), 1)).reshape(-1)
        return nf4.Quantized(packed, stored_absmax(), shape, block_size, quant_type)

    return Entry(quant_type, shape, read, codes.where)


def _part(found, dtype, shape):
    w = found.read()
    if w.dtype != dtype or w.shape != shape:
        raise InputError(f"{found.where} is {w.dtype} {w.shape}, not {np.dtype(dtype)} {shape}")
    return check_floats(found.where, w) if dtype is np.float32 else w


def save_quantized(folder, config, base, tokenizer=None, dtype="float32"):
    """Write a quantized base as a folder, which minilora and transformers (bitsandbytes) load.

    The other weights are stored in `dtype`, to which bitsandbytes dequantizes. Raises InputError as
    `save_pretrained` does, and if not all projections use the same scheme.
    """
    schemes = {scheme(w) for path, w in named_leaves(base) if path.endswith("_proj.weight")}
    if not (len(schemes) == 1 and ("none", None) not in schemes):
        raise InputError(
            f"all projections must be quantized with one scheme, not {sorted(schemes)}"
        )
    ((name, _),) = schemes
    four_bits = name != "int8"
    settings = {  # as transformers' BitsAndBytesConfig writes them
        "quant_method": "bitsandbytes", "load_in_4bit": four_bits, "load_in_8bit": not four_bits,
        "bnb_4bit_quant_type": name.removesuffix("-dq") if four_bits else "fp4",
        "bnb_4bit_use_double_quant": name.endswith("-dq"), "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": dtype, "llm_int8_threshold": 6.0,
    }  # fmt: skip

    def quantized(path, leaf):
        if isinstance(leaf, nf4.Quantized):
            return _four_bit_sources(path, leaf, dtype)
        if not isinstance(leaf, Int8):
            return {}
        return {
            path: entry("I8", leaf.codes),
            path.removesuffix("weight") + "SCB": entry("F32", leaf.absmax),
            path + "_format": entry("U8", np.array(0, np.uint8)),  # row-major
        }

    hf_folder.write(folder, config, base, tokenizer, dtype, quantized, quantization_config=settings)


def _four_bit_sources(path, leaf, dtype):
    state = {"quant_type": leaf.quant_type, "blocksize": leaf.block_size, "dtype": dtype}
    state["shape"] = list(leaf.shape)
    parts = {"quant_map": entry("F32", MAPS[leaf.quant_type])}
    if isinstance(leaf.stored_absmax, DoubleQuantized):
        state |= {"nested_blocksize": NESTED_BLOCK_SIZE, "nested_dtype": "float32"}
        state["nested_offset"] = float(leaf.stored_absmax.offset)
        parts["absmax"] = entry("U8", leaf.stored_absmax.codes)
        parts["nested_absmax"] = entry("F32", leaf.stored_absmax.nested_absmax)
        parts["nested_quant_map"] = entry("F32", DYNAMIC_MAP)
    else:
        parts["absmax"] = entry("F32", leaf.stored_absmax)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts[STATE[1:] + leaf.quant_type] = entry("U8", text)
    codes = entry("U8", leaf.codes.reshape(-1, 1))
    return {path: codes} | {f"{path}.{name}": found for name, found in parts.items()}

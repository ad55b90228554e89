"""Read and write a quantized base with the names and the layout of bitsandbytes.

A 4-bit weight consists of `weight` (the packed codes, one byte per row), `weight.absmax`,
`weight.quant_map` (the sixteen values) and a JSON text, stored as bytes, under
`weight.quant_state.bitsandbytes__nf4` (or fp4). With double quantization, `weight.absmax` holds
8-bit codes, which `weight.nested_absmax` and `weight.nested_quant_map` decode. An 8-bit weight
consists of `weight` (int8) and `SCB`, the absmax of each row.
"""

import json
import math
import warnings

import numpy as np

from .. import nf4
from ..config import FINITE, POSITIVE_INT, InputError, check_setting
from ..double_quant import DYNAMIC_MAP, NESTED_BLOCK_SIZE, DoubleQuantized
from ..quant.int8 import Int8
from ..quant.schemes import is_projection, storage_of
from ..tree import named_leaves
from . import hf_folder
from .fields import number, size
from .files import errors_in, parse_object
from .safetensors_file import Entry, check_floats, entry

STATE = ".quant_state.bitsandbytes__"
TYPES = ("int8", *nf4.CODEBOOKS)  # dtypes of the entries of quantized weights


def is_quantized(tensors):
    """Return whether one of {path: Entry} is a quantized weight."""
    return any(entry.dtype in TYPES for entry in tensors.values())


def join(tensors):
    """Return {path: Entry}, with the parts of each quantized weight joined into one Entry."""
    rest = dict(tensors)
    joined = {}
    for name, found in tensors.items():
        weight, _, quant_type = name.partition(STATE)
        if name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
        elif not quant_type:
            continue
        codes = rest.pop(weight, None)
        if codes is None:
            raise InputError(f"{found.where} has no weight")
        if quant_type:
            own = [key for key in rest if key.startswith(weight + ".")]
            parts = {key.removeprefix(weight + "."): rest.pop(key) for key in own}
            joined[weight] = _four_bit(codes, found, parts)
        else:
            del rest[name]
            layout = rest.pop(weight + "_format", None)
            if layout and layout.read().any():
                raise InputError(f"{layout.where} is not 0: save the rows in their order")
            joined[weight] = _eight_bit(codes, found)
    return rest | joined


def _read(found, dtype, shape):
    """Return the numbers of a part of a weight, which must have this type and shape."""
    if (found.dtype, found.shape) != (dtype, shape):
        raise InputError(f"{found.where} is {found.dtype} {found.shape}, not {dtype} {shape}")
    w = found.read()
    return check_floats(found.where, w) if dtype == "F32" else w


def _eight_bit(codes, absmax):
    """Return the Entry of the 8-bit weight with these parts."""
    shape = codes.shape
    if len(shape) != 2:
        raise InputError(f"{codes.where} has the shape {shape}, which is not a matrix")

    def read():
        return Int8(_read(codes, "I8", shape), _read(absmax, "F32", shape[:1]))

    return Entry("int8", shape, read, codes.where)


def _four_bit(codes, state, parts):
    """Return the Entry of the 4-bit weight with these parts, {name below the weight: Entry}."""
    double = "nested_absmax" in parts
    fields = parse_object(bytes(state.read()), state.where)
    with errors_in(state.where):
        quant_type = str(fields.get("quant_type"))
        block_size = size(fields, "blocksize")
        nf4.check_4bit(block_size, quant_type)
        shape = tuple(fields["shape"])
        for length in shape:
            check_setting("shape", length, POSITIVE_INT)
        offset = number(fields, "nested_offset", FINITE, None if double else 0)
    n = math.prod(shape)
    m = -(-n // block_size)

    def part(name, dtype, shape):
        if name not in parts:
            raise InputError(f"{codes.where} has no {name}")
        return _read(parts[name], dtype, shape)

    def check_map(name, values):
        if not np.allclose(part(name, "F32", values.shape), values, rtol=0, atol=1e-6):
            raise InputError(f"{codes.where}: {name} differs from that of bitsandbytes")

    def read():
        check_map("quant_map", nf4.CODEBOOKS[quant_type].values)
        absmax = part("absmax", "U8" if double else "F32", (m,))
        if double:
            check_map("nested_quant_map", DYNAMIC_MAP)
            nested = part("nested_absmax", "F32", (-(-m // NESTED_BLOCK_SIZE),))
            absmax = DoubleQuantized(absmax, nested, np.float32(offset))
        packed = _read(codes, "U8", (-(-n // 2), 1)).reshape(-1)
        return nf4.Quantized(packed, absmax, shape, block_size, quant_type)

    return Entry(quant_type, shape, read, codes.where)


BLOCK_SIZES = {2**n for n in range(5, 13)}  # of bitsandbytes


def save_quantized(folder, model, tokenizer=None, dtype="float32"):
    """Write a quantized model as a folder, which minilora and transformers (bitsandbytes) load.

    The other weights are stored in `dtype`, to which bitsandbytes dequantizes. Warns of a block
    size that bitsandbytes does not read. Raises InputError as `save_pretrained` does, and if not
    all projections use the same scheme.
    """
    projections = [w for path, w in named_leaves(model.base) if is_projection(path)]
    schemes = {storage_of(w)[0] for w in projections}
    if len(schemes) != 1 or "none" in schemes:
        raise InputError(
            f"all projections must be quantized with one scheme, not {sorted(schemes)}"
        )
    name = schemes.pop()
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": name == "int8"}
    if name != "int8":
        settings |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": name.removesuffix("-dq"),
            "bnb_4bit_use_double_quant": name.endswith("-dq"),
            "bnb_4bit_compute_dtype": dtype,
        }
        sizes = {w.block_size for w in projections}
        if not sizes <= BLOCK_SIZES:
            what = f"bitsandbytes reads blocks of 32 to 4,096 weights, and not of {max(sizes)}"
            warnings.warn(f"{what}: only minilora will read {folder}", stacklevel=2)
    hf_folder.write(folder, model, tokenizer, dtype, _parts, quantization_config=settings)


def _parts(path, leaf, dtype):
    """Return {name: Entry} of the parts of a quantized weight; {} for another leaf."""
    if isinstance(leaf, Int8):
        return {
            path: entry("I8", leaf.codes),
            path.removesuffix("weight") + "SCB": entry("F32", leaf.absmax),
            path + "_format": entry("U8", np.array(0, np.uint8)),  # row-major
        }
    if not isinstance(leaf, nf4.Quantized):
        return {}
    state = {
        "quant_type": leaf.quant_type,
        "blocksize": leaf.block_size,
        "dtype": dtype,
        "shape": leaf.shape,
    }
    absmax = leaf.stored_absmax
    parts = {"quant_map": entry("F32", nf4.CODEBOOKS[leaf.quant_type].values)}
    if isinstance(absmax, DoubleQuantized):
        state |= {
            "nested_blocksize": NESTED_BLOCK_SIZE,
            "nested_dtype": "float32",
            "nested_offset": float(absmax.offset),
        }
        parts["absmax"] = entry("U8", absmax.codes)
        parts["nested_absmax"] = entry("F32", absmax.nested_absmax)
        parts["nested_quant_map"] = entry("F32", DYNAMIC_MAP)
    else:
        parts["absmax"] = entry("F32", absmax)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts[STATE[1:] + leaf.quant_type] = entry("U8", text)
    named = {f"{path}.{name}": found for name, found in parts.items()}
    return {path: entry("U8", leaf.codes.reshape(-1, 1))} | named

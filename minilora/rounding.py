"""Round float32 arrays to float16 or bfloat16: to the nearest number, ties to even.

NumPy has no bfloat16. It is the upper half of float32.
"""

import numpy as np

from .config import InputError
from .tree import Array, Tree, named_leaves, unflatten


def round_to(params: Tree, dtype: str) -> Tree:
    """Round to numbers that float16 or bfloat16, the type of the adapter's file, holds exactly.

    The arrays stay float32. Raises InputError if a number is not finite in this type.
    """
    if dtype == "float32":
        return params
    rounded = {}
    for path, w in named_leaves(params):
        with np.errstate(over="ignore"):
            half = from_bfloat16(to_bfloat16(w)) if dtype == "bfloat16" else w.astype(np.float16)
        if not bool(np.isfinite(half).all()):
            raise InputError(f"{path} has a number that {dtype} cannot hold: use float32 adapters")
        rounded[path] = half.astype(np.float32)
    return unflatten(rounded)


def to_bfloat16(w: Array) -> Array:
    """Round finite float32 numbers to bfloat16, ties to even; return the bits as uint16."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    # add 0x8000 if the last bit that is kept is 1, else 0x7FFF, then drop them: ties go to even
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 numbers whose upper 16 bits are `bits` (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

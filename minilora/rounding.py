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
        half = nearest(w, dtype)
        if not bool(np.isfinite(half).all()):
            raise InputError(f"{path} has a number that {dtype} cannot hold: use float32 adapters")
        rounded[path] = half
    return unflatten(rounded)


def nearest(x: Array, dtype: str) -> Array:
    """Round x to float32, float16 or bfloat16; return the numbers in float32."""
    if dtype == "float32":
        return x
    if dtype == "bfloat16":
        return from_bfloat16(to_bfloat16(x))
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def to_bfloat16(w: Array) -> Array:
    """Round float32 numbers to bfloat16, ties to even; return the bits as uint16."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    # add 0x8000 if the last bit that is kept is 1, else 0x7FFF, then drop them: ties go to even
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    # a carry would turn some NaN into a number: keep its upper bits, and make it a quiet NaN
    return np.where(np.isnan(w), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 numbers whose upper 16 bits are `bits` (uint16)."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)

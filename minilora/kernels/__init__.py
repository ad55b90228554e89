"""The optimized operations: derived backward passes, numba loops, tiles, threads.

`fused.py` lists the operations. Read `linear.py` and `attention.py` first: each file derives its
gradient. The package uses these names of this module: `ops`, `quantize_4bit` and `HAS_BFLOAT16`.
Without numba, or with the environment variable MINILORA_PLAIN=1, they are those of the reference
implementation. They are imported when they are first used, because an import of numba takes longer
than `minilora --help`.
"""

import os
import warnings
from typing import Any

from .. import layers
from .. import nf4 as plain_nf4

PLAIN = {"ops": layers, "quantize_4bit": plain_nf4.quantize, "HAS_BFLOAT16": False}
__all__ = [*PLAIN]


def __getattr__(name: str) -> Any:
    """Return the operation of this name; all of them become attributes of the module."""
    if name not in PLAIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(load())
    return globals()[name]


def load() -> dict[str, Any]:
    """Import the optimized operations; return those of the reference if this is not possible."""
    if os.environ.get("MINILORA_PLAIN"):
        return PLAIN
    try:
        from . import bfloat16, fused, threads
        from .nf4 import quantize
    except (ImportError, RuntimeError, ValueError, AttributeError) as error:
        # no numba, no folder for compiled code, a bad NUMBA_NUM_THREADS, or a numba whose cache
        # has other names (see `loops.jit`)
        warnings.warn(f"{error}: minilora computes without numba, which is slower", stacklevel=2)
        return PLAIN
    threads.keep_freed_memory()
    has_bfloat16 = bfloat16.HAS_BFLOAT16
    return {"ops": fused, "quantize_4bit": quantize, "HAS_BFLOAT16": has_bfloat16}

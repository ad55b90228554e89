"""The optimized operations: derived backward passes, numba loops, tiles, threads.

`fused.py` lists the operations. Read `linear.py` and `attention.py` first: each file derives its
gradient. The package imports `ops` and the functions in `__all__` from here. Without numba, or
with the environment variable MINILORA_PLAIN=1, they are those of the reference implementation.
"""

import os
import warnings
from typing import Any

from .. import layers

MAX_PARALLEL_PARAMETERS = 2**24
PLAIN = os.environ.get("MINILORA_PLAIN")
try:
    if PLAIN:
        raise ImportError
    from . import fused as ops
    from . import threads
    from .nf4 import quantize as quantize_4bit
    from .weights import dense
except (ImportError, RuntimeError, ValueError) as error:
    # no numba, no folder for compiled code, or a bad NUMBA_NUM_THREADS
    if not PLAIN:
        warnings.warn(f"{error}: minilora computes without numba, which is slower", stacklevel=2)
    ops = layers  # type: ignore[misc]
    MAX_PARALLEL_PARAMETERS = -1  # `threads` is not there
    from ..layers import dense
    from ..nf4 import quantize as quantize_4bit


def parallel(ops: Any, num_trained: int) -> tuple[Any, int]:
    """Return (parallel_map, num_shards) of `training.train` for operations and a gradient's size.

    The reference is computed in one piece, as it is read. So is a gradient that is too large to
    have in memory once per core.
    """
    reference = getattr(ops, "inner", ops) is layers
    if reference or num_trained > MAX_PARALLEL_PARAMETERS:
        return map, 1
    return threads.parallel_map, threads.THREADS


__all__ = ["dense", "ops", "parallel", "quantize_4bit"]

"""The optimized operations: derived backward passes, numba loops, tiles, threads.

`fused.py` lists the operations. Read `linear.py` and `attention.py` first: each file derives its
gradient. The package imports `ops` and `quantize_4bit` from here. Without numba, or with the
environment variable MINILORA_PLAIN=1, they are those of the reference implementation.
"""

import os
import warnings
from typing import Any

from .. import layers
from ..nf4 import quantize

HAS_BFLOAT16 = False  # whether the processor has an instruction for products in bfloat16
ops: Any = layers
quantize_4bit: Any = quantize
if not os.environ.get("MINILORA_PLAIN"):
    try:
        from . import fused as ops
        from .bfloat16 import HAS_BFLOAT16
        from .nf4 import quantize as quantize_4bit
    except (ImportError, RuntimeError, ValueError, AttributeError) as error:
        # no numba, no folder for compiled code, a bad NUMBA_NUM_THREADS, or a numba whose cache
        # has other names (see `loops.jit`)
        warnings.warn(f"{error}: minilora computes without numba, which is slower", stacklevel=2)

__all__ = ["HAS_BFLOAT16", "ops", "quantize_4bit"]

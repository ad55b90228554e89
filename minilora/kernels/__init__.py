"""The optimized operations: derived backward passes, numba loops, tiles, threads.

Read `fused.py` first: it has the operations of `layers.py`, with the derivation of each gradient.
The package imports `OPS` and the functions in `__all__` from here. Without numba, or with the
environment variable MINILORA_PLAIN=1, they are those of the reference implementation.
"""

import os
import sys
import warnings

PLAIN = bool(os.environ.get("MINILORA_PLAIN"))
number = os.environ.get("NUMBA_NUM_THREADS", "1")
if not (number.isdecimal() and int(number) > 0):
    # numba cannot be imported with 0 threads, and prints a traceback for a text
    del os.environ["NUMBA_NUM_THREADS"]
    text = f"NUMBA_NUM_THREADS={number} is not a number of threads: it is ignored"
    print(f"minilora: {text}", file=sys.stderr)
try:
    if PLAIN:
        raise ImportError
    from . import fused as OPS
    from .nf4 import quantize as quantize_4bit
    from .threads import num_threads, parallel_map
    from .weights import dense
except ImportError as error:
    if not PLAIN:
        warnings.warn(f"{error}: minilora computes without numba, which is slower", stacklevel=2)
    from .. import layers as OPS  # type: ignore[no-redef]
    from ..layers import dense
    from ..nf4 import quantize as quantize_4bit

    parallel_map = map

    def num_threads():
        """Return the number of calls that `parallel_map` computes at the same time."""
        return 1


__all__ = ["OPS", "dense", "num_threads", "parallel_map", "quantize_4bit"]

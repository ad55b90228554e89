"""The optimized operations of `layers.py`: the same names, arguments and values.

Part 4 of `lessons/00_qlora_in_one_file.py`, made general. Each costly operation is one autograd
primitive in a file of its name, with the derivation of its gradient. It keeps only arrays that are
expensive to recompute. Autograd hands the backward pass only the arguments and the result, so a
forward pass keeps other arrays in an argument of its own, `saved`, a dict. Loops use numba, matmuls
use NumPy. Tests compare each operation with `layers.py`, in values and gradients.
"""

from .attention import attention
from .linear import linear
from .loss import cross_entropy
from .norm import rms_norm
from .swiglu import swiglu
from .threads import THREADS, parallel_map
from .weights import dense

__all__ = ["THREADS", "attention", "cross_entropy", "dense", "linear", "parallel_map", "rms_norm",
           "swiglu"]  # fmt: skip

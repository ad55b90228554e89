"""Compilation of loops over rows, and functions that loops share: an exponential and a maximum.

A kernel is a function `kernel(lo, hi, *arrays)` that fills the rows lo to hi - 1 of its outputs.
With `NUMBA_DISABLE_JIT=1` it runs as Python, and a debugger can step through it. Compiled loops
check no bounds: the caller of a kernel guarantees them. numba computes a sum that starts at 0.0 in
float64, and one that starts at np.float32(0) in the type of its terms.

numba caches compiled code next to the source, and notices only changes of that source file. A
kernel may also contain functions and constants of other files, so `jit` makes numba notice changes
of all SOURCES.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numba
import numpy as np
from numba.core import config
from numba.core.registry import cpu_target
from numba.extending import overload

ONE = np.float32(1)
MIN_DIVISOR = np.float32(1e-30)  # replaces a zero that the backward pass divides by
# sums are reordered and products fused, but NaN and infinity are kept
FAST = {"reassoc", "contract", "arcp", "nsz"}

# elements of a weight from which on compiled loops quantize it, decode its absmax and its 16 bits,
# and multiply it with a single row. For a smaller weight, NumPy and the product of several rows do
# so: the compilation of a loop (0.2 to 2 s, once) would take longer than it saves
LARGE = 2**18

PACKAGE = Path(__file__).parents[1]
SOURCES = sorted(PACKAGE.glob("kernels/*.py")) + [PACKAGE / "nf4.py", PACKAGE / "double_quant.py"]
# no file is found if the package is in a zip file, which numba notices as a whole
CONTENTS = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES if path.is_file()))


# Both compile at the first call, cache on disk, and release Python's lock; `jit` reorders no
# operation, `fast_jit` allows reordered sums and fused products.
def jit(kernel=None, **options) -> Any:
    """Compile a kernel; numba reads its cache only if all SOURCES are as they were."""
    if kernel is None:
        return partial(jit, **options)
    options["no_cfunc_wrapper"] = True  # no C code calls a kernel: it compiles in 0.9 of the time
    compiled = numba.njit(kernel, nogil=True, cache=True, **options)
    if compiled is not kernel:  # with NUMBA_DISABLE_JIT it is
        cache = compiled._cache._cache_file
        cache._source_stamp = cache._source_stamp, CONTENTS.digest()
        # numba numbers the files of a kernel, so two processes that compile it for different types
        # at the same time could give both files one name
        cache._data_name = lambda _: f"{kernel.__name__}.{uuid4()}.nbc"
    return compiled


fast_jit = partial(jit, fastmath=FAST, error_model="numpy")


def has_feature(name):
    """Return whether compiled loops can use a feature of the processor, for example avx512f."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()  # "+avx2,-avx512f,…"
    return f"+{name}" in features.split(",") and not vars(config)["DISABLE_JIT"]


def rows(x):
    """Return x (..., n) as a contiguous matrix (rows, n), the shape that kernels loop over."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


@jit(fastmath=True)
def row_max(x):
    """Return the maximum of x (n,), n ≥ 1, from four independent running maxima."""
    # NaN is ignored: a check takes four times as long, and the next loop over the row shows it.
    # Here and in `_exp32`, comparisons replace min and max: numba compiles those as separate
    # functions, which takes 0.15 s in all
    a = x[0]
    b = a
    c = a
    d = a
    four = x.size // 4 * 4
    for i in range(0, four, 4):
        a = x[i] if x[i] > a else a
        b = x[i + 1] if x[i + 1] > b else b
        c = x[i + 2] if x[i + 2] > c else c
        d = x[i + 3] if x[i + 3] > d else d
    for i in range(four, x.size):
        a = x[i] if x[i] > a else a
    a = b if b > a else a
    c = d if d > c else c
    return c if c > a else a


def exp(x):
    """Compute eˣ in a kernel: `_exp32` in float32 (error at most 2 units in the last place)."""
    return np.exp(x)


LOWEST = np.float32(-87)
HIGHEST = np.float32(88)
HALF = np.float32(0.5)  # also the coefficient of r²: 0.50000001201 in float32
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # ln 2 is the sum of two parts
LN2_LOW = np.float32(-2.12194440e-4)
C3 = np.float32(0.16666665459)
C4 = np.float32(4.1665795894e-2)
C5 = np.float32(8.3334519073e-3)
C6 = np.float32(1.3981999507e-3)
C7 = np.float32(1.9875691500e-4)


def _exp32(x):
    # eˣ = 2ⁿ·eʳ with n = ⌊x/ln 2 + ½⌋, |r| ≤ ln 2 / 2: a short polynomial (minimax coefficients of
    # the Cephes library), and n in the bits of the exponent for 2ⁿ. NaN stays NaN. The compiler can
    # vectorize it, so it is ten times as fast as a call of the library.
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = ((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + HALF
    two_n = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + ONE) * two_n


@overload(exp, jit_options={"fastmath": FAST - {"reassoc"}})
def _exp_for(x):
    return _exp32 if x == numba.types.float32 else lambda x: np.exp(x)

"""How a numba loop runs here: compiled once, cached on disk, its rows shared out over the cores.

A kernel is a plain function `kernel(lo, hi, *arrays)` that fills rows lo..hi of its outputs, so it
can be read, and stepped through, as Python; `@jit` compiles it; `share_rows` runs it on every
core, each with its own span of rows. No two threads ever write or sum into the same number, so
the result has the same bits for any number of threads.

numba's own thread layers are not used: OpenMP's threads spin while they wait and fight with the
matrix products' threads for the cores (a training step takes twice as long), and `workqueue`
aborts the process when two Python threads call kernels at once. A plain thread pool does neither.
"""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numba
import numpy as np
from numba.core import event
from numba.extending import overload

FAST = {"reassoc", "contract", "arcp", "nsz"}  # reorder and fuse, but keep NaN and infinity
# the cores that this process may use, where the system says so
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SERIAL_BELOW = 2**19  # elements; less work than this takes no longer than to wake a thread
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory():
    """Have glibc keep what is freed, for the next array.

    Else it goes back to the system after each training step and is had again page by page, each
    page filled with zeros first: a third of a small model's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, 2**30)


keep_freed_memory()


def jit(kernel):
    """Compile on first use, keep on disk, release Python's lock while running.

    Every operation rounds as it is written, so the plain twin gives the same bits.
    """
    return numba.njit(nogil=True, cache=True)(kernel)


def fast_jit(kernel):
    """As `jit`, but sums may be reordered and products fused, for vector instructions.

    NaN and infinity keep their meaning: a loss that is not finite has to be seen.
    """
    return numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")(kernel)


def share_rows(kernel, n, *args, width=1):
    """Run kernel(lo, hi, *args) over the n rows, each of `width` elements, on all cores."""
    if THREADS == 1 or n < 2 or n * width < SERIAL_BELOW:
        kernel(0, n, *args)
        return
    edges = [n * i // THREADS for i in range(THREADS + 1)]
    others = [_pool(os.getpid()).submit(kernel, *span, *args) for span in pairwise(edges[1:])]
    kernel(0, edges[1], *args)
    for other in others:
        other.result()


@cache
def _pool(pid):
    """One pool a process: threads do not survive a fork, so the process id is part of the key."""
    return ThreadPoolExecutor(THREADS - 1, thread_name_prefix="minilora")


class _SayOnce(event.Listener):
    """One line when the first kernel is really compiled (not when it comes from the cache)."""

    said = False

    def on_start(self, event):
        if not self.said:
            self.said = True
            print("minilora: compiling kernels, once for this machine", file=sys.stderr, flush=True)

    def on_end(self, event):
        pass


event.register("numba:compile", _SayOnce())


def exp(x):
    """eˣ inside a kernel: in float32 a polynomial that the compiler can vectorise, ten times as
    fast as a call and within 2 units in the last place; in float64 the library's."""
    return np.exp(x)


LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # ln 2 in two parts
C2, C3, C4, C5, C6, C7 = (
    np.float32(c)
    for c in (0.50000001201, 0.16666665459, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3,
              1.9875691500e-4)
)  # fmt: skip
LOWEST, HIGHEST, HALF, ONE = (np.float32(c) for c in (-87.0, 88.0, 0.5, 1.0))


def _exp32(x):
    # eˣ = 2ⁿ·eʳ with n = ⌊x/ln 2 + ½⌋, |r| ≤ ln 2 / 2: a short polynomial (minimax coefficients
    # of the Cephes library), and 2ⁿ made by writing n into the exponent's bits. NaN stays NaN.
    x = LOWEST if x < LOWEST else (HIGHEST if x > HIGHEST else x)
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = ((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2
    two_n = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + ONE) * two_n


@overload(exp, jit_options={"fastmath": FAST - {"reassoc"}})
def _exp_for(x):
    return _exp32 if x == numba.types.float32 else lambda x: np.exp(x)

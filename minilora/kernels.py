"""How a numba loop runs here: compiled once, cached on disk, its rows shared out over the cores.

A kernel is a plain function `kernel(lo, hi, *arrays)` that fills rows lo..hi of its outputs, so it
can be read, and stepped through, as Python; `@jit` compiles it; `share_rows` runs it on every
core, each with its own span of rows. No two threads ever write or sum into the same number, so
the result has the same bits for any number of threads. `on_cores` gives whole calls a core each:
to wake a thread that sleeps can take 0.1 ms, and a training step would do so a thousand times.

numba's own thread layers are not used: OpenMP's threads spin while they wait and fight with the
matrix products' threads for the cores (a training step takes twice as long), and `workqueue`
aborts the process when two Python threads call kernels at once. Plain threads do neither.
"""

import ctypes
import os
import sys
import threading
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numba
import numpy as np
from numba.core import config, event
from numba.extending import overload
from threadpoolctl import ThreadpoolController

FAST = {"reassoc", "contract", "arcp", "nsz"}  # reorder and fuse, but keep NaN and infinity
THREADS: int = vars(config)["NUMBA_NUM_THREADS"]  # this variable, else the cores it may use
SERIAL_BELOW = 2**20  # elements; less work than this takes no longer than to wake a thread
# with what loops of other files call
CALLED = ("kernels.py", "ahead.py", "registers.py", "panels.py", "lookup.py")
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
    return numba.njit(nogil=True, cache=True)(_stamped(kernel))


def fast_jit(kernel):
    """As `jit`, but sums may be reordered and products fused, for vector instructions.

    NaN and infinity keep their meaning: a loss that is not finite has to be seen.
    """
    return numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")(_stamped(kernel))


inlined = numba.njit(inline="always")  # for what is too short to be called


def _stamped(kernel):
    """The kernel, whose compiled code is kept under a name that changes with `CALLED`.

    numba itself sees a change of the kernel's own file only, and not of what it calls elsewhere.
    """
    kernel.__qualname__ += f"-{_stamp():08x}"
    return kernel


@cache
def _stamp():
    return crc32(b"".join(Path(__file__).with_name(name).read_bytes() for name in CALLED))


def rows(x):
    """x as a contiguous matrix (rows, last axis): what the kernels loop over."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def chunks(n, floats, most):
    """As few slices of range(n) as hold about `most` floats, of nearly equal length."""
    pieces = min(n, -(-n * floats // most))
    edges = [n * i // pieces for i in range(pieces + 1)] if n else []
    return [slice(*edge) for edge in pairwise(edges)]


def share_rows(kernel, n, *args, width=1):
    """Run kernel(lo, hi, *args) over the n rows, each of `width` elements, on all cores.

    Where the cores are taken already, by `on_cores` or by another Python thread, it runs alone.
    """
    if THREADS == 1 or n < 2 or n * width < SERIAL_BELOW or not _free.acquire(blocking=False):
        kernel(0, n, *args)
        return
    try:
        edges = [n * i // THREADS for i in range(THREADS + 1)]
        _together([partial(kernel, *span, *args) for span in pairwise(edges)])
    finally:
        _free.release()


def on_cores(f, items):
    """[f(item), …], each on a core of its own, its matrix products and its kernels too.

    No call waits for another until all are done, so that no core idles between two products. One
    after the other where there are not as many cores, or where they are taken already.
    """
    if not 1 < len(items) <= THREADS or not _free.acquire(blocking=False):
        return [f(item) for item in items]
    try:
        with _blas().limit(limits=1, user_api="blas"):
            return _together([partial(f, item) for item in items])
    finally:
        _free.release()


_free = threading.Lock()  # held by whoever has the cores


def _together(calls):
    """What the calls return, the first made here and each other one on a helper's core."""
    helpers = _helpers(os.getpid(), len(calls) - 1)
    for helper, call in zip(helpers, calls[1:]):
        helper.begin(call)
    try:
        results = [calls[0]()]
    finally:  # whatever happened, none of them may still be running when the arrays go
        ends = [helper.end() for helper in helpers]
    for result, error in ends:
        if error is not None:
            raise error
        results.append(result)
    return results


class _Helper:
    """A thread that waits for a call; two locks wake it twice as fast as an executor does."""

    def __init__(self):
        self.go, self.done = threading.Lock(), threading.Lock()
        self.call: Any = None
        self.outcome: Any = None
        self.go.acquire()
        self.done.acquire()
        threading.Thread(target=self._serve, name="minilora", daemon=True).start()

    def begin(self, call):
        self.call = call
        self.go.release()

    def end(self):
        """Wait; (what the call returned, None) or (None, what it raised)."""
        self.done.acquire()
        outcome, self.call, self.outcome = self.outcome, None, None  # both hold arrays
        return outcome

    def _serve(self):
        while self.go.acquire():
            try:
                self.outcome = self.call(), None
            except BaseException as error:
                self.outcome = None, error
            self.done.release()


@cache
def _helpers(pid, n):
    """n helpers; threads do not survive a fork, so the process's id is part of the key."""
    return [_Helper() for _ in range(n)]


@cache
def _blas():
    return ThreadpoolController()


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


@numba.njit(nogil=True, cache=True, fastmath=True)
def largest(x):
    """The largest number of x (n,), n ≥ 1: four at a time, for each waits for the one before it.

    It does not look for NaN, which takes four times as long: what reads the row next must show it.
    """
    a = b = c = d = x[0]
    four = x.size // 4 * 4
    for i in range(0, four, 4):
        a, b, c, d = max(a, x[i]), max(b, x[i + 1]), max(c, x[i + 2]), max(d, x[i + 3])
    for i in range(four, x.size):
        a = max(a, x[i])
    return max(max(a, b), max(c, d))


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

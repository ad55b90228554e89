"""How a numba loop runs here: compiled once, cached on disk, its rows shared out over the cores.

A kernel is a plain function `kernel(lo, hi, *arrays)` that fills rows lo..hi of its outputs, so it
can be read, and stepped through, as Python; `@jit` compiles it; `share_rows` runs it on every
core, each with its own span of rows. No two threads ever write or sum into the same number, so
the result has the same bits for any number of threads.

numba's own thread layers are not used: OpenMP's threads spin while they wait and fight with the
matrix products' threads for the cores (a training step takes twice as long), and `workqueue`
aborts the process when two Python threads call kernels at once. A plain thread pool does neither.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numba
from numba.core import event

SERIAL_BELOW = 32768  # elements; less work than this costs less than waking a thread


def jit(kernel):
    """Compile on first use, keep on disk, release Python's lock while running.

    Every operation rounds as it is written, so the plain twin gives the same bits.
    """
    return numba.njit(nogil=True, cache=True)(kernel)


def fast_jit(kernel):
    """As `jit`, but sums may be reordered and products fused, for vector instructions.

    NaN and infinity keep their meaning: a loss that is not finite has to be seen.
    """
    return numba.njit(
        nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy"
    )(kernel)


def share_rows(kernel, n, *args, width=1):
    """Run kernel(lo, hi, *args) over the n rows, each of `width` elements, on all cores."""
    threads = os.cpu_count() or 1
    if threads == 1 or n < 2 or n * width < SERIAL_BELOW:
        kernel(0, n, *args)
        return
    edges = [n * i // threads for i in range(threads + 1)]
    others = [_pool(os.getpid()).submit(kernel, *span, *args) for span in pairwise(edges[1:])]
    kernel(0, edges[1], *args)
    for other in others:
        other.result()


@cache
def _pool(pid):
    """One pool a process: threads do not survive a fork, so the process id is part of the key."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="minilora")


class _SayOnce(event.Listener):
    """One line when the first kernel is really compiled (not when it comes from the cache)."""

    said = False

    def on_start(self, event):
        if not self.said:
            self.said = True
            print("minilora: compiling kernels, once for this machine …", file=sys.stderr, flush=True)

    def on_end(self, event):
        pass


event.register("numba:compile", _SayOnce())

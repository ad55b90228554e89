"""Rows or calls in parallel on all cores, with threads of the standard library.

Each number is computed by one thread, so the results have the same bits for any number of threads.
numba's thread layers are not used: OpenMP's threads spin while they wait and slow down the threads
of the matmuls (a training step takes twice as long), and `workqueue` aborts the process if two
Python threads call kernels at the same time.
"""

import ctypes
import math
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise

from numba.core import config
from threadpoolctl import ThreadpoolController


def max_threads(available, omp_num_threads):
    """Return `available`, or the value of OMP_NUM_THREADS (a text) if it is lower."""
    first = omp_num_threads.partition(",")[0].strip()  # the others are for nested threads
    limit = int(first) if first.isdecimal() else 0  # as OpenMP does, ignore 0 and other texts
    return min(available, limit or available)


# NUMBA_NUM_THREADS is this variable, or the number of available cores
THREADS: int = max_threads(vars(config)["NUMBA_NUM_THREADS"], os.environ.get("OMP_NUM_THREADS", ""))
SERIAL_BELOW = 2**20  # elements: starting a thread takes as long as computing so many

_free = threading.Lock()  # locked while a call uses all cores


def parallel_rows(kernel, shape, *args):
    """Run kernel(lo, hi, *args) over the rows of this shape (..., width), a span per core."""
    # little work, or work while another call uses the cores, runs only on the calling thread
    n = math.prod(shape[:-1])
    if THREADS == 1 or n * shape[-1] < SERIAL_BELOW:
        kernel(0, n, *args)
        return
    with cores() as free:
        edges = [n * i // THREADS for i in range(THREADS + 1)] if free else [0, n]
        _run_all([partial(kernel, *span, *args) for span in pairwise(edges)])


def parallel_map(f, items):
    """Return [f(item), …], one core per call; in sequence if the cores are too few or in use."""
    # starting a thread takes 0.1 ms, so it is faster to split a training step once than to split
    # each of its thousand operations
    if 1 < len(items) <= THREADS:
        with cores() as free:
            if free:
                with _blas().limit(limits=1, user_api="blas"):
                    return _run_all([partial(f, item) for item in items])
    return [f(item) for item in items]


@contextmanager
def cores():
    """Reserve the cores during a block, and delay Ctrl-C; yield whether the cores were free."""
    # an interrupt in the block could leave the lock locked, BLAS on one thread, or a thread that
    # still writes to the arrays
    handler = signal.getsignal(signal.SIGINT)
    late = []
    waits = callable(handler) and threading.current_thread() is threading.main_thread()
    if waits:
        signal.signal(signal.SIGINT, lambda *args: late.append(args))
    free = _free.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            _free.release()
        if waits:
            signal.signal(signal.SIGINT, handler)
        if callable(handler) and late:
            handler(*late[0])


def _run_all(calls):
    """Return the results of the calls; the first runs on this thread, the others on the pool's."""
    first, *others = calls
    futures = [_pool(os.getpid(), THREADS - 1).submit(call) for call in others]
    try:
        result = first()
    finally:
        wait(futures)  # also after an error, none of them may still write to the arrays
    return [result, *(future.result() for future in futures)]


@cache
def _pool(pid, workers):
    """Return the threads of the process `pid`: a fork does not copy them."""
    return ThreadPoolExecutor(workers, thread_name_prefix="minilora")


_blas = cache(ThreadpoolController)


def keep_freed_memory():
    """Make glibc keep freed memory for the next arrays instead of returning it to the system."""
    # getting zeroed pages from the system again takes half of the time of a small model's forward
    # pass, and a third of that of its training step
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # another C library may have none
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD in glibc's malloc.h
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD

"""Rows and whole calls shared out over the cores, on threads of the standard library.

No two threads ever write or sum into the same number, so the result has the same bits for any
number of threads. numba's own thread layers are not used: OpenMP's threads spin while they wait
and compete with the matrix products' threads (a training step takes twice as long), and
`workqueue` aborts the process when two Python threads call kernels at once.
"""

import ctypes
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

THREADS: int = vars(config)["NUMBA_NUM_THREADS"]  # this variable, else the cores it may use
SERIAL_BELOW = 2**20  # elements; less work than this takes no longer than to wake a thread
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h

_free = threading.Lock()  # held by the call that has the cores


def parallel_rows(kernel, n, *args, width=1):
    """Run kernel(lo, hi, *args) over n rows of `width` elements each, a span of rows per core.

    It runs on the calling thread alone where the work is small, or where `parallel_map` or another
    Python thread has the cores already.
    """
    if THREADS == 1 or n < 2 or n * width < SERIAL_BELOW:
        kernel(0, n, *args)
        return
    with cores() as free:
        edges = [n * i // THREADS for i in range(THREADS + 1)] if free else [0, n]
        _run_all([partial(kernel, *span, *args) for span in pairwise(edges)])


def num_threads():
    """Return how many calls `parallel_map` computes at the same time."""
    return THREADS


def parallel_map(f, items):
    """Return [f(item), …], each call on a core of its own, its matrix products and kernels too.

    No call waits for another until all are done: to wake a thread takes 0.1 ms, and a training
    step that shared out each operation would do so a thousand times. The calls run one after the
    other where there are not as many cores, or where the cores are taken.
    """
    keep_freed_memory()
    if 1 < len(items) <= THREADS:
        with cores() as free:
            if free:
                with _blas().limit(limits=1, user_api="blas"):
                    return _run_all([partial(f, item) for item in items])
    return [f(item) for item in items]


@contextmanager
def cores():
    """Hold the cores during a block, if they are free; yield whether they were.

    Ctrl-C waits until the block has ended. Inside, it could leave the lock locked, BLAS on one
    thread, or a thread that goes on writing into the arrays.
    """
    handler, late = signal.getsignal(signal.SIGINT), []
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
    """Return what the calls return; the first runs on this thread, the others on the pool's."""
    first, *others = calls
    futures = [_pool(os.getpid(), THREADS - 1).submit(call) for call in others]
    try:
        result = first()
    finally:
        wait(futures)  # whatever happened, none of them may go on writing into the arrays
    return [result, *(future.result() for future in futures)]


@cache
def _pool(pid, workers):
    """The threads of this process; they do not survive a fork, so its id is part of the key."""
    return ThreadPoolExecutor(workers, thread_name_prefix="minilora")


@cache
def _blas():
    return ThreadpoolController()


@cache
def keep_freed_memory():
    """Have glibc keep freed memory for the next array, from the first training step on.

    Otherwise it returns the memory to the system after each step and gets it back page by page,
    each page filled with zeros first: a third of a small model's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, 2**30)

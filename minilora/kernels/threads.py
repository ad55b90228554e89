"""Rows and whole calls shared out over the cores, on threads of the standard library.

No two threads ever write or sum into the same number, so the result has the same bits for any
number of threads. numba's own thread layers are not used: OpenMP's threads spin while they wait
and compete with the matrix products' threads (a training step takes twice as long), and
`workqueue` aborts the process when two Python threads call kernels at once.
"""

import ctypes
import os
import sys
import threading
from functools import cache, partial
from itertools import pairwise
from queue import SimpleQueue

from numba.core import config
from threadpoolctl import ThreadpoolController

THREADS: int = vars(config)["NUMBA_NUM_THREADS"]  # this variable, else the cores it may use
SERIAL_BELOW = 2**20  # elements; less work than this takes no longer than to wake a thread
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h

_taken: dict = {}  # "by": the `limited` of the call that has the cores


def share_rows(kernel, n, *args, width=1):
    """Run kernel(lo, hi, *args) over n rows of `width` elements each, a span of rows per core.

    It runs on the calling thread alone where the work is small, or where `on_cores` has the cores.
    """
    if THREADS == 1 or n < 2 or n * width < SERIAL_BELOW or _taken:
        kernel(0, n, *args)
        return
    edges = [n * i // THREADS for i in range(THREADS + 1)]
    _together([partial(kernel, *span, *args) for span in pairwise(edges)])


def on_cores(f, items):
    """Return [f(item), …], each call on a core of its own, its matrix products and kernels too.

    No call waits for another until all are done: to wake a thread takes 0.1 ms, and a training
    step that shared out each operation would do so a thousand times. The calls run one after the
    other where there are not as many cores, or where the cores are taken.
    """
    keep_freed_memory()
    limited: list = []  # BLAS libraries, and the number of threads that each had
    try:
        try:
            # no lock: an interrupt just after its `acquire` would leave it locked for ever
            if not 1 < len(items) <= THREADS or _taken.setdefault("by", limited) is not limited:
                return [f(item) for item in items]
            limited += [(library, library.num_threads) for library in _blas().lib_controllers]
            for library, _ in limited:
                library.set_num_threads(1)
            return _together([partial(f, item) for item in items])
        finally:
            _release(limited)
    except KeyboardInterrupt:
        _release(limited)  # the interrupt may have come while this was done the first time
        raise


def _release(limited):
    """Give the cores and the BLAS threads back if the call of `limited` has them."""
    if _taken.get("by") is limited:
        for library, threads in limited:
            library.set_num_threads(threads)
        _taken.clear()


def _together(calls):
    """Return what the calls return; the first runs on this thread, the others on workers.

    An interrupt is passed on when the calls that have begun have ended, and no other will begin:
    until then they write into arrays, and OpenBLAS must not get another number of threads.
    """
    results: list = [None] * len(calls)
    errors: list = []
    ended: SimpleQueue = SimpleQueue()
    wanted: dict = {}  # of each call: True once it has begun, False if it may no longer begin
    others, done = range(1, len(calls)), set()

    def run(i):
        if wanted.setdefault(i, True):
            try:
                results[i] = calls[i]()
            except BaseException as error:
                errors.append(error)
            done.add(i)
            ended.put(i)

    def stop():
        try:
            while not done.issuperset(i for i in others if wanted.setdefault(i, False)):
                ended.get()
        except KeyboardInterrupt:
            stop()
            raise

    try:
        jobs = _jobs(os.getpid(), THREADS - 1)
        for i in others:
            jobs.put(partial(run, i))
        try:
            results[0] = calls[0]()
        finally:
            while not done.issuperset(others):
                ended.get()
    except KeyboardInterrupt:
        stop()
        raise
    for error in errors:
        raise error
    return results


@cache
def _jobs(pid, workers):
    """The queue of this process's workers; they do not survive a fork, so its id is in the key.

    SimpleQueue is written in C, so an interrupt leaves no lock of it behind, as it does where it
    meets `concurrent.futures.wait`.
    """
    jobs: SimpleQueue = SimpleQueue()

    def work():
        while True:
            jobs.get()()

    for _ in range(workers):
        threading.Thread(target=work, name="minilora", daemon=True).start()
    return jobs


@cache
def _blas():
    return ThreadpoolController().select(user_api="blas")


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

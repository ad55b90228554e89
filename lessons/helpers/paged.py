"""Steps of Adam in a process that may allocate only so many MB: averages in memory, or in a file.

python -m minilora.lessons.helpers.paged WHERE LIMIT prints the seconds of three steps and their
result. WHERE is `memory`, `file`, or `evicted`: a file whose pages the system writes out and
forgets after each step. The study `paged_optimizers` runs it, on Linux.
"""

import mmap
import os
import resource
import sys
import tempfile
import time

import numpy as np

NUMBERS, CHUNK = 40_000_000, 1_000_000
BETA1, BETA2, EPS, RATE = 0.9, 0.999, 1e-8, 1e-3


def step(w, m, v, t, g):
    """Take one step of Adam on w, a chunk at a time; g: the gradient of each chunk."""
    for begin in range(0, len(w), CHUNK):
        part = slice(begin, begin + CHUNK)
        m[part] = BETA1 * m[part] + (1 - BETA1) * g
        v[part] = BETA2 * v[part] + (1 - BETA2) * g * g
        m_hat, v_hat = m[part] / (1 - BETA1**t), v[part] / (1 - BETA2**t)
        w[part] -= RATE * m_hat / (np.sqrt(v_hat) + EPS)


def main(where, limit):
    """Print the seconds of each step; raise MemoryError if they need more than `limit` MB."""
    # what the process allocates; the pages of a file do not count
    resource.setrlimit(resource.RLIMIT_DATA, (limit * 10**6,) * 2)
    rng = np.random.default_rng(0)
    w = np.zeros(NUMBERS, np.float32)
    with tempfile.TemporaryFile() as file:
        if where == "memory":
            averages = np.zeros((2, NUMBERS), np.float32)
        else:
            averages = np.memmap(file, np.float32, "w+", shape=(2, NUMBERS))
        for t in range(1, 4):
            g = rng.standard_normal(CHUNK, np.float32)
            began = time.perf_counter()
            step(w, *averages, t, g)
            if where == "evicted":
                averages.flush()
                averages._mmap.madvise(mmap.MADV_DONTNEED)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            print(time.perf_counter() - began)
        print(w[-3:].tolist())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

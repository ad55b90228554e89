"""Interrupts of a training on two threads do not change the state of the process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minilora.kernels import threads

SCRIPT = Path(__file__).with_name("interrupted.py")


def instructions(call, stop=None):
    """Call; count the instructions of `kernels.threads`, and interrupt at number `stop`."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != threads.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == stop:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def test_an_interrupt_at_any_instruction_leaves_the_cores_free(monkeypatch):
    """Afterwards two calls run on two threads again."""
    monkeypatch.setattr(threads, "THREADS", 2)

    def both():
        return threads.parallel_map(lambda i: threading.get_ident(), [0, 1])

    both()  # starts the threads
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for stop in range(1, instructions(both) + 1):
            with pytest.raises(KeyboardInterrupt):
                instructions(both, stop)
            assert len(set(both())) == 2, stop
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_after_an_interrupt_gives_the_bits_of_a_fresh_process(rng, tries):
    """An interrupt could leave the lock locked, BLAS on one thread, or a thread writing."""
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, SCRIPT, str(rng.randrange(10**6)), str(tries(4, 200))]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr

"""Interrupts of a training on two threads do not change the state of the process."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from minilora.formats.safetensors_file import entry, read_header, write
from minilora.kernels import threads

SCRIPT = Path(__file__).with_name("interrupted.py")


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where the tests were started without a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def instructions(call, stop=None, file=None):
    """Call; count the instructions (of a source file, or all), and interrupt at number `stop`."""
    number = 0

    def trace(frame, event, _):
        nonlocal number
        if file is not None and frame.f_code.co_filename != file:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            number += 1
            if number == stop:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return number


def test_an_interrupt_at_any_instruction_leaves_the_cores_free(monkeypatch, interrupts):
    """Afterwards two calls run on two threads again."""
    monkeypatch.setattr(threads, "THREADS", 2)

    def both():
        return threads.parallel_map(lambda i: threading.get_ident(), [0, 1])

    both()  # starts the threads
    for stop in range(1, instructions(both, file=threads.__file__) + 1):
        with pytest.raises(KeyboardInterrupt):
            instructions(both, stop, threads.__file__)
        assert len(set(both())) == 2, stop


def test_an_interrupt_at_any_instruction_of_reading_a_tensor_is_no_other_error(
    tmp_path, interrupts
):
    """NumPy's own reader calls methods of Python, and makes a SystemError of an interrupt there."""
    path = tmp_path / "model.safetensors"
    write(path, {"w": entry("F32", np.ones((2, 3), np.float32))})
    read = read_header(path)["w"].read
    for stop in count(1):
        with suppress(KeyboardInterrupt):
            instructions(read, stop)
            break  # it ended before this instruction
    assert stop > 1


def test_training_after_an_interrupt_gives_the_bits_of_a_fresh_process(rng, tries):
    """An interrupt could leave the lock locked, BLAS on one thread, or a thread writing."""
    numbers = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(numbers, "2")
    command = [sys.executable, SCRIPT, str(rng.randrange(10**6)), str(tries(4, 200))]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr

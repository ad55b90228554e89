"""Interrupts of a training on two threads leave nothing behind in the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interrupted.py")


@pytest.mark.parametrize(("moments", "few", "many"), [("threads", 5, 200), ("clock", 10, 200)])
def test_training_after_an_interrupt_gives_the_bits_of_a_fresh_process(moments, few, many, long):
    """Before, an interrupt could leave the cores taken, BLAS on one thread, or a thread writing."""
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, SCRIPT, "2", str(many if long else few), moments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # some came in time

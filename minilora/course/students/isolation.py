"""Call a student's function: in this process (`Local`) or in a separate process (`Student`).

The student's process only returns values. Right answers, rules and the private seed stay with the
judge, which loads them first. A server with an emptied environment forks the student's process.
The judge reads its answers as pickles of arrays, plain containers and minilora's own dataclasses.
"""

import copy
import importlib
import io
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import sys
import tempfile
import threading
import warnings
from bdb import BdbQuit
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import autograd.numpy as np
from autograd import grad

from ..outcome import Outcome, Stopped, difference, failure, leaves

KEPT = ("HOME", "LANG", "NUMBA_CACHE_DIR", "PATH", "SYSTEMROOT")  # environment variables
OUTPUT = "the result is huge or not plain data"  # how the crash of such a result begins
MAX_ANSWER_BYTES = 2**24
LATE = "out of time: it is too slow, or an endless loop"
WAIT = 90  # seconds on the clock until code that neither returns nor computes is stopped
# most bytes of memory, seconds of processor time, and bytes of a file
LIMITS = {"AS": 2**32, "CPU": 30, "FSIZE": 2**22}
HARMLESS = {"ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer"}  # NumPy's, in pickles
ENVIRONMENT = {name: os.environ[name] for name in KEPT if name in os.environ} | {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "PYTHONWARNINGS": "ignore:resource_tracker",  # it warns of locks of killed processes
}
FORKS = hasattr(os, "fork")
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
CONTEXT.set_forkserver_preload([__name__, "minilora"])


def gradient(function, by):
    """Return the gradient of a weighted sum of the function's result by these arguments."""

    def total(*arguments):
        result = np.ravel(function(*arguments))
        return np.sum(result * np.cos(np.arange(len(result))))

    return grad(total, by)


class Local(NamedTuple):
    """A function in this process, called with copies. A crash shows only lines of `file`."""

    function: Any
    file: str = ""

    def ask(self, many, by=()):
        """Yield the Outcome of each call: of the function, or of its gradient by arguments `by`."""
        function = gradient(self.function, by) if by else self.function
        for arguments in many:
            given = copy.deepcopy(arguments)
            with warnings.catch_warnings(action="ignore"):
                try:
                    value = function(*given)
                except Exception as error:
                    if isinstance(error, BdbQuit) and not multiprocessing.parent_process():
                        raise  # a person has left the debugger
                    yield failure(error, self.file)
                    continue
            pairs = enumerate(zip(arguments, given))
            yield Outcome(value, tuple(n for n, pair in pairs if difference(*pair)))


class Reader(pickle.Unpickler):
    """Read a pickle of arrays and plain data; raise UnpicklingError for anything else."""

    def find_class(self, module, name):
        """Return the class if it is harmless."""
        if module.partition(".")[0] == "numpy" and name in HARMLESS:
            return super().find_class(module, name)
        found = getattr(sys.modules.get(module), name, None)
        plain = isinstance(found, type) and (is_dataclass(found) or issubclass(found, tuple))
        if module.startswith("minilora.") and plain:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not an array and not minilora's")


class Student(NamedTuple):
    """A function in another process."""

    process: Any
    connection: Any

    def end(self):
        """Kill the process and its children, and wake the thread that waits for an answer."""
        with suppress(OSError, AttributeError):  # the process has ended, or no groups here
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        with suppress(OSError, ValueError):
            socket.socket(fileno=os.dup(self.connection.fileno())).shutdown(socket.SHUT_RDWR)

    def ask(self, many, by=()):
        """Send tuples of arguments and wait; return the Outcome of each call, as Local does."""
        many = [*many]
        timer = threading.Timer(WAIT, self.end)
        timer.start()
        try:
            self.connection.send((many, by))
            return [decode_answer(self.connection.recv_bytes(MAX_ANSWER_BYTES)) for _ in many]
        except (EOFError, OSError):
            self.process.join(1)
            is_late = self.process.exitcode in (-9, -24)  # SIGKILL, SIGXCPU
            raise Stopped(LATE if is_late else "your code ended its process") from None
        finally:
            timer.cancel()


@contextmanager
def running(e, files):
    """Yield a Student for an exercise's file in `files`, {name: bytes}; end its processes then."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, source in files.items():
            Path(folder, name).write_bytes(source)
        connection, theirs = CONTEXT.Pipe()
        blocked = e.sought if e.module and not e.is_test else []
        arguments = theirs, folder, LIMITS, e.file, e.answer, e.module, blocked
        student = Student(CONTEXT.Process(target=serve, args=arguments, daemon=True), connection)
        with patch.dict(os.environ, ENVIRONMENT, clear=True):
            student.process.start()
        theirs.close()
        try:
            (loading,) = student.ask([()])
            if loading.crash:
                raise Stopped(f"the file cannot be loaded: {loading.crash}")
            yield student
        finally:
            student.end()


def decode_answer(answer):
    """Read the bytes of an Outcome. They come from the student, so nothing in them is run."""
    try:
        value, touched, crash = Reader(io.BytesIO(answer)).load()
        list(leaves(value))  # RecursionError if a value contains itself
        return Outcome(value, tuple(map(int, touched)), str(crash))
    except Exception as error:
        return Outcome(crash=f"{OUTPUT}: {error}")


def packed(outcome):
    """Return the bytes of an Outcome, or of a crash if the result cannot be sent."""
    try:
        answer = pickle.dumps(outcome)
        if len(answer) > MAX_ANSWER_BYTES:
            raise OverflowError(f"more than {MAX_ANSWER_BYTES >> 20} MB")
        return answer
    except Exception as error:
        return packed(Outcome(crash=f"{OUTPUT}: {error}"))


def serve(connection, folder, limits, file, name, module, blocked):
    """Answer requests until the connection closes. The student's process runs this function."""
    confine(folder, limits)

    for own in blocked:
        block_function(importlib.import_module(module), own)
    names: dict = {}

    def load():
        names.update(runpy.run_path(file))
        if name not in names:
            raise NameError(f"it has no function {name}")

    function: Any = load  # the first call loads the file
    with suppress(EOFError):
        while True:
            # pickles of the judge are trusted
            for answer in Local(function, file).ask(*connection.recv()):
                connection.send_bytes(packed(answer))
            function = names.get(name)


def confine(folder, limits):
    """Give this process a private folder and no input or output; limit what it can use."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    sys.path.append(folder)  # the student's files can import each other
    if FORKS:
        import resource

        os.setsid()
        for kind, most in limits.items():
            with suppress(ValueError, OSError):  # already lower, or unknown to the system
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def block_function(module, name):
    """Replace a function in all modules that import it."""

    def refuse(*_, **__):
        raise RuntimeError(f"write {name} yourself: this exercise cannot call minilora's {name}")

    original = getattr(module, name)
    for key, place in [*sys.modules.items()]:
        if key.startswith("minilora") and getattr(place, name, None) is original:
            setattr(place, name, refuse)

"""Call a student's function: in this process (`Local`) or in a separate process (`Student`).

The student's process only returns values. Right answers, rules and the private seed stay with the
judge, which loads them first. A server with an emptied environment forks the student's process.
The judge reads its answers as pickles of arrays, plain containers and minilora's own dataclasses.
"""

import copy
import importlib
import io
import linecache
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from .. import kernels
from .exercises import PACKAGE, compiled
from .outcome import Crash, Outcome, Stopped, difference, leaves

KEPT = ("HOME", "LANG", "NUMBA_CACHE_DIR", "PATH", "SYSTEMROOT")  # environment variables
ANSWER = 2**25  # most bytes of an answer
LIMITS = {"AS": 2**32, "FSIZE": 2**22, "CORE": 0}  # most bytes of memory, and of a file or prints
HARMLESS = {"ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer"}  # NumPy's, in pickles
FORKS = hasattr(os, "fork")
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
CONTEXT.set_forkserver_preload([__name__, "minilora"])


class Local(NamedTuple):
    """A function in this process. A crash shows only lines of `file`."""

    function: Any
    file: str | None = None

    def ask(self, kind, *many):
        """Yield the Outcome of each call. For kind `test`, `many` holds sources to test."""
        for arguments in many:
            if kind == "test":
                arguments = (compiled(*arguments),)
            before = copy.deepcopy(arguments)
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                try:
                    value = self.function(*arguments)
                except Exception as error:
                    yield Outcome(crash=Crash.of(error, self.file))
                    continue
            pairs = enumerate(zip(before, arguments))
            touched = tuple(n for n, (old, new) in pairs if difference(old, new))
            yield Outcome() if kind == "test" else Outcome(value, touched)


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


def environment():
    """Return the environment of a student's process: KEPT, and what Python needs."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = "ignore:resource_tracker"  # it warns of locks of killed processes
    return kept | threads | {"PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": quiet}


@contextmanager
def running(exercise, source, user=None):
    """Yield a Student for the source (bytes) of a file, and end its processes afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        student = Student(folder, user)
        e = exercise
        try:
            student.ask("start", ())  # wait for the imports, which the time limit does not count
            student.left = e.seconds
            taken = e.sought if e.module and not e.is_test else []
            (answer,) = student.ask("load", (source, e.file, e.sought[-1], e.module, taken))
            if answer.crash:
                raise Stopped(f"the file cannot be loaded: {answer.crash.text}")
            yield student
        finally:
            student.end()
            student.printed.close()


class Student:
    """A function in another process, which has `left` seconds for its answers."""

    def __init__(self, folder, user):
        self.printed = open(f"{folder}/printed", "w+b")  # noqa: SIM115 (the student's prints)
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, folder, user), daemon=True)
        with patch.dict(os.environ, environment(), clear=True):
            self.process.start()
        theirs.close()
        self.over = "the process of your code ended"
        self.left = 120.0

    def end(self, over=None):
        """Kill the process and its children, and wake the thread that waits for an answer."""
        self.over = over or self.over
        with suppress(OSError, AttributeError):  # the process has ended, or no groups here
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        with suppress(OSError, ValueError):
            socket.socket(fileno=os.dup(self.connection.fileno())).shutdown(socket.SHUT_RDWR)

    def ask(self, kind, *many):
        """Send requests of one kind and wait; return the Outcome of each."""
        timer = threading.Timer(self.left, self.end, ["out of time: an endless loop?"])
        timer.start()
        began = time.monotonic()
        try:
            self.connection.send((kind, *many))
            return [decode_answer(self.connection.recv_bytes(ANSWER)) for _ in many]
        except (EOFError, OSError):
            raise Stopped(self.over) from None
        finally:
            timer.cancel()
            self.left -= time.monotonic() - began

    def output(self):
        """Return the first line that the code printed, or an empty string."""
        self.printed.seek(0)
        return self.printed.read(200).decode("utf-8", "replace").partition("\n")[0]


def decode_answer(answer):
    """Read the bytes of an Outcome. They come from the student, so nothing in them is run."""
    try:
        value, touched, crash = Reader(io.BytesIO(answer)).load()
        list(leaves(value))  # RecursionError if a value contains itself
        return Outcome(value, tuple(map(int, touched)), crash and Crash(*map(str, crash)))
    except Exception as error:
        return Outcome(crash=Crash("TypeError", f"the result is not plain data: {error}"))


def packed(value, touched, crash):
    """Return the bytes of an Outcome, or of a Crash if the result cannot be sent."""
    try:
        if sum(getattr(leaf, "nbytes", 0) for _, leaf in leaves(value)) > ANSWER // 2:
            raise OverflowError(f"the result is huge: more than {ANSWER >> 21} MB")
        return pickle.dumps((value, touched, crash and (crash.kind, crash.text)))
    except Exception as error:
        return packed(None, (), Crash(type(error).__name__, f"the result is not data: {error}"))


def serve(connection, folder, user):
    """Answer requests until the connection closes. The student's process runs this function."""
    confine(folder, user)
    subject: Any = None
    with suppress(EOFError):
        while True:
            kind, *many = connection.recv()  # pickles of the judge are trusted
            answers = [Outcome()]
            if kind == "load":
                subject, answers[0] = loaded(*many[0])
            elif kind != "start":
                answers = subject.ask(kind, *many)
            for answer in answers:
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                connection.send_bytes(packed(*answer))


def confine(folder, user):
    """Give this process a private folder and no input; limit its memory, files and rights."""
    out = os.open(Path(folder, "printed"), os.O_WRONLY | os.O_APPEND)
    for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(target, number)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    if FORKS:
        import pwd
        import resource

        os.setsid()
        for kind, most in LIMITS.items():
            with suppress(ValueError, OSError):  # already lower, or unknown to the system
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
        if user:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)


def loaded(source, file, name, module, taken):
    """Return (subject, Outcome) of a file, which cannot call the module's functions `taken`."""
    for own in taken:
        block_function(importlib.import_module(module), own)
    text = source.decode("utf-8", "replace")
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # for tracebacks
    names: dict = {"__name__": "submission", "__file__": file}
    try:
        exec(compile(source, file, "exec"), names)
    except BaseException as error:
        return None, Outcome(crash=Crash.of(error, file))
    if callable(names.get(name)):
        return Local(names[name], file), Outcome()
    own = [key for key, value in names.items() if getattr(value, "__module__", 0) == "submission"]
    return None, Outcome(crash=Crash("NameError", f"it has no function {name}; it has {own}"))


def block_function(module, name):
    """Replace a function in all modules that import it, and its namesakes in the kernels."""

    def refuse(*_, **__):
        raise RuntimeError(f"write {name} yourself: this exercise cannot call minilora's {name}")

    original = getattr(module, name)
    for place in [m for key, m in sys.modules.items() if key.startswith("minilora")]:
        twin = hasattr(place, name) and place.__name__.startswith(kernels.__name__)
        if twin or getattr(place, name, None) is original:
            setattr(place, name, refuse)

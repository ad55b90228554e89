"""Call a student's function: in this process, `Local`, or in one of its own, `Student`.

The student's process is only asked for values: right answers, rules and the private seed stay with
the judge, which has loaded them before. It is forked from a server whose environment was emptied.
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

SEED = "MINILORA_GRADING_SEED"  # of the hidden checks
KEPT = ("HOME", "LANG", "NUMBA_CACHE_DIR", "PATH", "SYSTEMROOT")  # of the environment
ANSWER = 2**25  # bytes of an answer
LIMITS = {"AS": 2**32, "FSIZE": 2**22, "CORE": 0}  # bytes of memory, and of a file or of prints
HARMLESS = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "builtins": {"set", "frozenset", "slice", "complex", "range"},
}
FORKS = hasattr(os, "fork")
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
CONTEXT.set_forkserver_preload([__name__, "minilora"])


class Local(NamedTuple):
    """A function of this process; a crash shows no lines but those of `file`."""

    function: Any
    file: str | None = None

    def ask(self, kind, *many):
        """Yield the Outcome of each call; kind `test`: of a test, on the functions of sources."""
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
    """Read a pickle of arrays and plain data; UnpicklingError if there is more in it."""

    def find_class(self, module, name):
        if name in HARMLESS.get(module, ()):
            return super().find_class(module, name)
        found = getattr(sys.modules.get(module), name, None)
        plain = isinstance(found, type) and (is_dataclass(found) or issubclass(found, tuple))
        if module.startswith("minilora.") and plain:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor minilora's")


def environment():
    """Return the environment of a student's process: KEPT, and what the process needs."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = "ignore:resource_tracker"  # about locks of processes that are killed
    return kept | threads | {"PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": quiet}


@contextmanager
def running(exercise, source, user=None):
    """Give a Student for the source (bytes) of a file, and end its processes afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        student = Student(folder, user, exercise.seconds)
        try:
            student.ask("start", ())  # it has imported minilora: what follows is the student's time
            student.timer.start()
            module, names = exercise.module, exercise.sought
            tried = [(module, exercise.edited(*job), exercise.name) for job in exercise.jobs]
            taken = [(module, name) for name in names]
            parts = ((), tried) if exercise.is_test else (taken, ())
            (answer,) = student.ask("load", (source, exercise.file, names[-1], *parts))
            if answer.crash:
                raise Stopped(f"the file cannot be loaded: {answer.crash.text}")
            yield student
        finally:
            student.end()


class Student:
    """A function of another process, which has a time limit."""

    def __init__(self, folder, user, seconds):
        self.printed = open(f"{folder}/printed", "w+b")  # noqa: SIM115 (the student's prints)
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, folder, user), daemon=True)
        with patch.dict(os.environ, environment(), clear=True):
            self.process.start()
        theirs.close()
        self.over = "the process of your code ended"
        late = f"stopped after {seconds:g} s: an endless loop?"
        self.timer = threading.Timer(seconds, self.end, [late])

    def end(self, over=None):
        """Kill the process and what it started, and wake whoever waits at the connection."""
        self.over = over or self.over
        self.timer.cancel()
        with suppress(OSError, AttributeError):  # no process any more, or no groups here
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        with suppress(OSError, ValueError):
            socket.socket(fileno=os.dup(self.connection.fileno())).shutdown(socket.SHUT_RDWR)
        self.printed.close()

    def ask(self, kind, *many):
        """Send requests of one kind, and return the Outcome of each."""
        try:
            self.connection.send((kind, *many))
            answers = [self.connection.recv_bytes(ANSWER) for _ in many]
        except (EOFError, OSError):
            raise Stopped(self.over) from None
        return list(map(decode_answer, answers))

    def output(self):
        """Return the first line that the code printed, or an empty string."""
        self.printed.seek(0)
        return self.printed.read(200).decode("utf-8", "replace").partition("\n")[0]


def decode_answer(answer):
    """Read the bytes of an Outcome: it is the student's data, so nothing of it is run."""
    try:
        value, touched, crash = Reader(io.BytesIO(answer)).load()
        list(leaves(value))  # a RecursionError, where a value contains itself
        return Outcome(value, tuple(map(int, touched)), crash and Crash(*map(str, crash)))
    except Exception as error:
        return Outcome(crash=Crash("TypeError", f"the result is no plain data: {error}"))


def packed(value, touched, crash):
    """Return the bytes of an Outcome, or of one that says why there are none."""
    try:
        if sum(getattr(leaf, "nbytes", 0) for _, leaf in leaves(value)) > ANSWER // 2:
            raise OverflowError(f"the result is huge: more than {ANSWER >> 21} MB")
        return pickle.dumps((value, touched, crash and (crash.kind, crash.text)))
    except Exception as error:
        return packed(None, (), Crash(type(error).__name__, f"the result is no data: {error}"))


def serve(connection, folder, user):
    """Answer each request until there are no more: what the student's process does."""
    confine(folder, user)
    subject: Any = None
    with suppress(EOFError):
        while True:
            kind, *many = connection.recv()  # from the judge, which is trusted
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
    """Leave this process a folder of its own and no input; bound its memory, files and rights."""
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
            with suppress(ValueError, OSError):  # already lower, or unknown here
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
        if user:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)


def loaded(source, file, name, taken, tried):
    """Return (subject, Outcome) of a file, which cannot call minilora's functions `taken`.

    The functions on which a student's test is tried are made before the file runs.
    """
    for arguments in tried:
        compiled(*arguments)
    for module, own in taken:
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
    return None, Outcome(crash=Crash("NameError", f"it has no function {name}, but {own}"))


def block_function(module, name):
    """Replace a function wherever it was imported to, and its twin among the kernels."""

    def refuse(*_, **__):
        raise RuntimeError(f"the exercise is to write {name}, not to call minilora's")

    original = getattr(module, name)
    for place in [m for key, m in sys.modules.items() if key.startswith("minilora")]:
        twin = hasattr(place, name) and place.__name__.startswith(kernels.__name__)
        if twin or getattr(place, name, None) is original:
            setattr(place, name, refuse)

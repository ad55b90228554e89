"""Call a student's function: in this process, `Local`, or in one of its own, `Student`.

`python -m minilora.course.student SECONDS` is that process. It takes requests and gives answers
through what was its standard input and output, which are then closed to the student's code. The
process is only asked for values: the right answers and the private seed stay with the judge. A
message is a pickle behind its length; the judge reads pickles of arrays, plain containers and
minilora's own dataclasses, and of nothing else.
"""

import copy
import importlib
import io
import os
import pickle
import queue
import runpy
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import kernels
from .exercises import compiled
from .outcome import Crash, Outcome, Stopped, difference

SEED = "MINILORA_GRADING_SEED"  # of the hidden checks
STARTING = 60  # seconds that the process may take to import minilora
STARTING_CPU = 10  # seconds of CPU time for that, beside the student's
LARGEST = 256 * 2**20  # bytes of an answer
HARMLESS = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "builtins": {"set", "frozenset", "slice", "complex", "range"},
}


class Local(NamedTuple):
    """A function of this process; a crash shows no lines but those of `file`."""

    function: Any
    file: str | None = None

    def ask(self, kind, *arguments):
        """Call the function, or (kind `check`) call it, a test, on the function of a source."""
        if kind == "check":
            arguments = (compiled(*arguments),)
        before = copy.deepcopy(arguments)
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            try:
                value = self.function(*arguments)
            except Exception as error:
                return Outcome(crash=Crash.of(error, self.file))
        pairs = enumerate(zip(before, arguments))
        touched = tuple(n for n, (old, new) in pairs if difference(old, new))
        return Outcome(None if kind == "check" else value, touched)


def send(file, data):
    """Write a message: bytes behind their length."""
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()


def receive(file):
    """Read a message; None at the end, or where the message is too large."""
    head = file.read(8)
    if len(head) < 8 or (size := struct.unpack("<Q", head)[0]) > LARGEST:
        return None
    data = file.read(size)
    return data if len(data) == size else None


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
    """Return the environment of a student's process: the same minilora, not the private seed."""
    path = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    known = {key: value for key, value in os.environ.items() if key != SEED}
    return {**known, "PYTHONPATH": os.pathsep.join(path)}


@contextmanager
def running(exercise, path, seconds=None):
    """Give a Student for the file at `path`, and end its process afterwards."""
    seconds = seconds or exercise.seconds
    names = exercise.sought[1]
    written = () if exercise.kind == "test" else names
    with tempfile.TemporaryDirectory() as folder:
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "minilora.course.student", str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=folder, env=environment(), start_new_session=True,
        )  # fmt: skip
        try:
            student = Student(process, seconds)
            student.ask("start")  # minilora is imported by now: what follows is the student's time
            student.deadline = time.monotonic() + seconds
            path = str(Path(path).resolve())
            crash = student.ask("load", path, names[-1], exercise.module, written).crash
            if crash:
                raise Stopped(f"the file cannot be loaded: {crash.text}")
            yield student
        finally:
            with suppress(OSError):
                if hasattr(os, "killpg"):  # with what the process started
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
            process.stdin.close()
            process.stdout.close()
            process.wait()


class Student:
    """A function of another process, which has a time limit."""

    def __init__(self, process, seconds):
        self.requests = io.BufferedWriter(process.stdin)
        self.replies = io.BufferedReader(process.stdout)
        self.seconds, self.deadline = seconds, time.monotonic() + STARTING

    def ask(self, *request):
        """Send a request, and return the Outcome of the student's code."""
        data = pickle.dumps(request)  # an error here is the exercise's, not the student's
        answers: queue.SimpleQueue = queue.SimpleQueue()

        def exchange():  # in a thread: what the student's code started may block the pipes
            answer = None
            with suppress(OSError, ValueError):  # ValueError: closed meanwhile
                send(self.requests, data)
                answer = receive(self.replies)
            answers.put(answer)

        threading.Thread(target=exchange, daemon=True).start()
        try:
            answer = answers.get(timeout=max(0, self.deadline - time.monotonic()))
        except queue.Empty:
            raise Stopped(f"stopped after {self.seconds:g} s: an endless loop?") from None
        if answer is None:
            raise Stopped("the process of your code ended without an answer")
        try:
            value, touched, crash = Reader(io.BytesIO(answer)).load()
            crash = crash and Crash(*map(str, crash))
            return Outcome(value, tuple(map(int, touched)), crash)
        except Exception as error:
            return Outcome(crash=Crash("TypeError", f"the result is no plain data: {error}"))


def main():
    """Answer each request until there are no more."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    limit(int(float(sys.argv[1])) + STARTING_CPU)
    subject: Any = None
    while (data := receive(requests)) is not None:
        kind, *rest = pickle.loads(data)  # from the trusted side
        answer = Outcome()
        if kind == "load":
            subject, answer = loaded(*rest)
        elif kind != "start":
            answer = subject.ask(kind, *rest)
        crash = answer.crash and (answer.crash.kind, answer.crash.text)
        try:
            data = pickle.dumps((answer.value, answer.touched, crash))
        except Exception as error:
            crash = "TypeError", f"TypeError: the result is no data: {error}"
            data = pickle.dumps((None, (), crash))
        send(replies, data)


def limit(seconds):
    """Bound the process's time, memory and files, where the system can."""
    with suppress(ImportError):
        import resource

        for kind, most in (("CPU", seconds), ("AS", 4 * 2**30), ("FSIZE", 64 * 2**20)):
            with suppress(ValueError, OSError, AttributeError):  # already lower, or unknown here
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def loaded(path, name, module, written):
    """Return (subject, Outcome) of the file, from which minilora's `written` are out of reach."""
    for own in written:
        take_away(importlib.import_module(module), own)
    try:
        function = runpy.run_path(path, run_name="submission").get(name)
    except BaseException as error:
        return None, Outcome(crash=Crash.of(error, path))
    crash = None if function else Crash("NameError", f"it has no function {name}")
    return Local(function, path), Outcome(crash=crash)


def take_away(module, name):
    """Replace a function wherever it was imported to, and its twin in the engine."""

    def refuse(*_, **__):
        raise RuntimeError(f"the exercise is to write {name}, not to call minilora's")

    original = getattr(module, name)
    for place in [m for key, m in sys.modules.items() if key.startswith("minilora")]:
        found = getattr(place, name, None)
        twin = found is not None and place.__name__.startswith(kernels.__name__)
        if found is original or twin:
            setattr(place, name, refuse)


if __name__ == "__main__":
    main()

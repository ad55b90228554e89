"""The judge's side of the student's process: a subject whose calls go through a pipe.

What comes back is read by an unpickler that makes arrays, plain containers and minilora's own
dataclasses, and nothing else.
"""

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from .outcome import Crash, Stopped
from .worker import frame

SEED = "MINILORA_GRADING_SEED"  # of the hidden checks
STARTING = 60  # seconds that the process may take to import minilora
LARGEST = 256 * 2**20  # bytes of an answer
HARMLESS = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.core.numeric": {"_frombuffer"},
    "builtins": {"set", "frozenset", "slice", "complex", "range"},
}


class Student:
    """An exercise's function as the file at `path` defines it, in a process with a time limit."""

    def __init__(self, exercise, path, seconds=None):
        self.exercise, self.path = exercise, str(Path(path).resolve())
        self.seconds = seconds or exercise.seconds

    def __enter__(self):
        self.late, self.clock, self.folder = False, None, tempfile.TemporaryDirectory()
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "minilora.course.worker", str(self.seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.folder.name, env=environment(), start_new_session=True,
        )  # fmt: skip
        try:
            self._start_clock(STARTING)
            self._ask("hello")  # minilora is imported by now: what follows is the student's time
            self._start_clock(self.seconds)
            self._load()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_clock(self, seconds):
        if self.clock:
            self.clock.cancel()
        self.clock = threading.Timer(seconds, self._too_late)
        self.clock.daemon = True
        self.clock.start()

    def __exit__(self, *_):
        self.clock.cancel()
        self._kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was still to be written to it
                pipe.close()
        self.process.wait()
        self.folder.cleanup()

    def _too_late(self):
        self.late = True
        self._kill()

    def _kill(self):
        """The process, and what it started, where the system knows groups."""
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()

    def _load(self):
        exercise = self.exercise
        names = () if exercise.kind == "test" else (*exercise.helpers, exercise.name)
        name = "check" if exercise.kind == "test" else exercise.name
        try:
            self._ask("load", self.path, name, (exercise.module, names))
        except Crash as error:
            raise Stopped(f"the file cannot be loaded: {error.text}") from error

    def _ask(self, *request):
        """The answer to a request; Crash where the student's code raised."""
        data = pickle.dumps(request)  # an error here is the exercise's, not the student's
        try:
            frame(self.process.stdin, data)
            head = self.process.stdout.read(8)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            data = self.process.stdout.read(size) if 0 < size <= LARGEST else b""
            if not data or len(data) < size:
                raise EOFError
        except (OSError, EOFError) as error:
            if self.late:
                raise Stopped(f"stopped after {self.seconds:g} s: an endless loop?") from error
            raise Stopped("the process of your code ended without an answer") from error
        try:
            kind, *rest = _Reader(io.BytesIO(data)).load()
            if kind == "crash":
                name, text = map(str, rest)
            elif kind == "value":
                value, touched = rest
                return value, tuple(map(int, touched))
        except Exception as error:
            raise Crash("TypeError", f"the result is no plain data: {error}") from error
        if kind == "crash":
            raise Crash(name, text)
        return None

    def call(self, *arguments):
        return self._ask("call", *arguments) or (None, ())

    def __call__(self, *arguments):
        return self.call(*arguments)[0]

    def check(self, exercise, text):
        try:
            self._ask("check", _Compiling(exercise.module, exercise.name), text)
        except Crash as error:
            return error
        return None


def environment():
    """What the student's process sees of ours: not the private seed, and the same minilora."""
    known = {key: value for key, value in os.environ.items() if key != SEED}
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**known, "PYTHONPATH": os.pathsep.join(path)}


class _Compiling:
    """As much of an exercise as its worker needs for running a test on a source."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def compiled(self, text):
        from .source import compiled

        return compiled(self.module, text, self.name)


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if name in HARMLESS.get(module, ()):
            return super().find_class(module, name)
        found = getattr(sys.modules.get(module), name, None)
        plain = isinstance(found, type) and (is_dataclass(found) or issubclass(found, tuple))
        if module.startswith("minilora.") and plain:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor minilora's")

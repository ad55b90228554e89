"""The judge's side of the student's process: a subject whose calls go through a pipe.

The private seed stays on this side; so do the right answers.
"""

import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from .frames import frame, harmless, read_frames
from .outcome import Crash, Stopped

SEED = "MINILORA_GRADING_SEED"  # of the hidden checks
STARTING = 60  # seconds that the process may take to import minilora


class Student:
    """An exercise's function as the file at `path` defines it, in a process with a time limit."""

    def __init__(self, exercise, path, seconds=None):
        self.exercise, self.path = exercise, str(Path(path).resolve())
        self.seconds = seconds or exercise.seconds

    def __enter__(self):
        self.late, self.folder = False, tempfile.TemporaryDirectory()
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "minilora.course.worker", str(self.seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=self.folder.name, env=environment(), start_new_session=True,
        )  # fmt: skip
        self.process = process
        self.requests = io.BufferedWriter(process.stdin)
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        # A thread reads: what a student's code started and nobody can kill may hold the pipe open.
        threading.Thread(
            target=read_frames, args=(self.process.stdout, self.answers), daemon=True
        ).start()
        self.clock = self._clock(STARTING)
        try:
            self._ask("hello")  # minilora is imported by now: what follows is the student's time
            self.clock.cancel()
            self.clock = self._clock(self.seconds)
            self._load()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.clock.cancel()
        self._kill()
        for pipe in (self.requests, self.process.stdout):
            with suppress(OSError):  # what was still to be written to it
                pipe.close()
        self.process.wait()
        self.folder.cleanup()

    def _clock(self, seconds):
        clock = threading.Timer(seconds, self._too_late)
        clock.daemon = True
        clock.start()
        return clock

    def _too_late(self):
        self.late = True
        self._kill()
        self.answers.put(None)

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
        with suppress(OSError):  # then there is no answer either
            frame(self.requests, data)
        data = self.answers.get()
        if data is None:
            self.answers.put(None)  # for whoever asks again
            if self.late:
                raise Stopped(f"stopped after {self.seconds:g} s: an endless loop?")
            raise Stopped("the process of your code ended without an answer")
        try:
            kind, *rest = harmless(data)
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

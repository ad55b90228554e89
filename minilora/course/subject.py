"""A function that is to be judged, in this process.

A subject has `call(*arguments)`, which gives (value, numbers of the arguments that it changed) or
raises Crash; calling the subject gives the value alone, which is what properties see. A subject
that is a test has `check`. `student.Student` is the same in a process of its own.
"""

import traceback
import warnings
from contextlib import contextmanager

import numpy as np

from .outcome import Crash, snapshot, touched


class Local:
    """A function of this process; `files` are those whose lines a crash may show."""

    def __init__(self, function, files=()):
        self.function, self.files = function, files

    def call(self, *arguments):
        before = snapshot(arguments)
        with quiet():
            try:
                value = self.function(*arguments)
            except Exception as error:
                raise crash(error, self.files) from error
        return value, touched(before, arguments)

    def __call__(self, *arguments):
        return self.call(*arguments)[0]

    def check(self, exercise, text):
        """Run the function, a test, on what `text` defines: None, or the Crash that it raised."""
        with quiet():
            try:
                self.function(exercise.compiled(text))
            except Exception as error:
                return crash(error, self.files)
        return None


@contextmanager
def quiet():
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def crash(error, files):
    """What `error` says, with the last line of `files` that it came through."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    where = f"\n    line {lines[-1].lineno}: {lines[-1].line}" if lines else ""
    return Crash(type(error).__name__, f"{type(error).__name__}: {error}{where}")

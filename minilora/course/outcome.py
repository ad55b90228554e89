"""Record the result of a call, and compare values: integers exactly, floats within a bound.

An outcome holds the returned value (arrays in trees, tuples and dataclasses), the arguments that
the call changed, or how it failed. The properties of exercises use `close`.
"""

import dataclasses
import traceback
from typing import Any, NamedTuple

import numpy as np

UNWRITTEN = "not written yet"  # what ends the check of a stub


class Crash(Exception):
    """An exception in a student's function: "type: message", and the student's line."""

    @classmethod
    def of(cls, error, file):
        """Make a Crash from `error`, with the last line of `file` in its traceback."""
        where = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == file:
                where = f"\n    line {frame.lineno}: {frame.line}"
        return cls(f"{type(error).__name__}: {error}{where}"[:2000])


class Stopped(BaseException):
    """The end of a check. Not an `Exception`, so that no property catches it."""


class Outcome(NamedTuple):
    """The result of a call."""

    value: Any = None
    touched: tuple = ()  # indices of the arguments that the call changed
    crash: Crash | None = None


def leaves(value, path=""):
    """Yield (path, array) of each leaf of a tree, a tuple or a dataclass."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}[{key!r}]")
    elif isinstance(value, np.ndarray | np.generic | int | float | str | None):
        yield path, np.asarray(value)


def difference(expected, got, bound=0.0):
    """Return a text on the first difference, or an empty string."""
    wanted = dict(leaves(expected))
    given = dict(leaves(got))
    if wanted.keys() != given.keys():
        return f"the result: expected {describe(expected)}, got {describe(got)}"
    for path, a in wanted.items():
        b = given[path]
        kinds = {x.dtype.kind.replace("u", "i") for x in (a, b)}  # no matter the width and the sign
        if a.shape != b.shape or len(kinds) > 1:
            return f"{path or 'the result'}: expected {describe(a)}, got {describe(b)}"
        with np.errstate(all="ignore"):
            equal = (a == b) | ((a != a) & (b != b))
            if kinds == {"f"}:
                equal |= np.abs(a - b) <= bound
        if not equal.all():
            index = np.argwhere(~equal)[0].tolist() or ""  # a number has no index
            place = f"{path}{index}" or "the result"
            return f"{place}: expected {a[~equal][0]}, got {b[~equal][0]}"
    return ""


def same(a, b, bound):
    """Tell whether two outcomes are both a crash, or the same value and changes."""
    return not difference(a, b, bound)  # a Crash is no leaf, None is one


def describe(value):
    """Describe a value in a few words: shape and dtype, and the contents if it is small."""
    if isinstance(value, np.ndarray):
        numbers = f" {np.array2string(value, separator=', ')}".replace("\n", "")
        return f"{value.shape} {value.dtype}" + numbers * (value.size <= 8)
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    if isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {describe(v)}' for key, v in value.items())}}}"
    if isinstance(value, list | tuple):
        text += f" ({', '.join(describe(v) for v in value)})"
    return text if len(text) <= 160 else text[:158] + " …"


def close(got, expected, bound=0.0):
    """Assert that two values (arrays, trees, tuples) are equal; floats within `bound`."""
    found = difference(expected, got, bound)
    assert not found, found

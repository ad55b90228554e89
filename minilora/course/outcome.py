"""Record the result of a call, and compare values: integers exactly, floats within a bound.

An outcome holds the returned value (arrays in trees, tuples and dataclasses), the arguments that
the call changed, or how it failed. The properties of exercises use `close`.
"""

import dataclasses
import traceback
from typing import Any, NamedTuple

import numpy as np


class Crash(Exception):
    """An exception in a student's function: its type, and the message with the student's line."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind, self.text = kind, text

    @classmethod
    def of(cls, error, file):
        """Make a Crash from `error`, with the last line of `file` in its traceback."""
        kind = type(error).__name__
        where = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == file:
                where = f"\n    line {frame.lineno}: {frame.line}"
        return cls(kind, f"{kind}: {error}{where}"[:2000])


class Stopped(BaseException):
    """The student's process has ended. Not an `Exception`, so that no property catches it."""


class Outcome(NamedTuple):
    """The result of a call."""

    value: Any = None
    touched: tuple[int, ...] = ()  # indices of the arguments that the call changed
    crash: Crash | None = None


def leaves(value, path=""):
    """Yield (path, leaf) of a tree, a tuple or a dataclass; numbers become arrays."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}[{key!r}]")
    elif isinstance(value, np.ndarray | np.generic | int | float):
        yield path, np.asarray(value)
    elif value is None or isinstance(value, str):
        yield path, value


def difference(expected, got, bound=0.0):
    """Return texts on the first difference (expected value, actual value, place), or None."""
    wanted, given = dict(leaves(expected)), dict(leaves(got))
    if wanted.keys() != given.keys():
        a, b = describe(expected), describe(got)
        return a, b, f"the result: expected {a}, got {b}"
    for path, leaf in wanted.items():
        equal = equal_elements(leaf, given[path], bound)
        if np.all(equal):
            continue
        a, b = describe(leaf), describe(given[path])
        if equal is False:
            return a, b, f"{path or 'the result'}: expected {a}, got {b}"
        index = tuple(int(i) for i in np.argwhere(~equal)[0])
        place = f"{path} index {index}" if index else path or "the result"
        return a, b, f"{place.strip()}: expected {leaf[index]}, got {given[path][index]}"
    return None


def equal_elements(a, b, bound):
    """Compare two leaves: one boolean per element, or False where kinds or shapes differ."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return type(a) is type(b) and a == b
    kinds = {x.dtype.kind.replace("u", "i") for x in (a, b)}  # the width and the sign do not count
    if a.shape != b.shape or len(kinds) > 1:
        return False
    with np.errstate(all="ignore"):
        equal = (a == b) | ((a != a) & (b != b))
        return equal | (np.abs(a - b) <= bound) if kinds == {"f"} else equal


def same(a, b, bound):
    """Tell whether two outcomes are the same kind of crash, or the same value and changes."""
    if (a.crash and a.crash.kind) != (b.crash and b.crash.kind) or a.touched != b.touched:
        return False
    return difference(a.value, b.value, bound) is None


def describe(value, contents=True):
    """Describe a value in a few words: shape and dtype, and the contents if it is small."""
    if isinstance(value, np.ndarray):
        numbers = f" {np.array2string(value, separator=', ')}".replace("\n", "")
        return f"{value.shape} {value.dtype}" + numbers * (contents and value.size <= 8)
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    if isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {describe(v, False)}' for key, v in value.items())}}}"
    if isinstance(value, list | tuple):
        text += f" ({', '.join(describe(v, False) for v in value)})"
    return text if len(text) <= 160 else text[:158] + " …"


def close(got, expected, bound=0.0):
    """Assert that two values (arrays, trees, tuples) are equal; floats within `bound`."""
    found = difference(expected, got, bound)
    assert found is None, found[2]

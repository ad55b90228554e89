"""What a call gave, and whether two calls gave the same.

An outcome is what was returned (arrays in trees, tuples and dataclasses), which arguments the
call changed, or how it failed. Whole numbers and booleans must be equal, floats to within the
exercise's bound.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class Crash(Exception):
    """A function of the student's raised: the exception's type, and its own lines as text."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind, self.text = kind, text


class Stopped(BaseException):
    """The student's process is over, by itself or by the clock. No `Exception`, so that the search
    for a smaller case does not catch it."""


class Outcome(NamedTuple):
    value: Any = None
    touched: tuple[int, ...] = ()  # numbers of the arguments that were changed
    crash: Crash | None = None


class Difference(NamedTuple):
    """The first place where two values differ: a leaf, and an index in it."""

    path: str  # "[0]['lora_A']"
    place: tuple[int, ...] | None  # in the leaf; None where kinds or shapes differ
    expected: str  # the leaf, described
    got: str
    numbers: tuple = ()  # what stands there

    def __str__(self):
        expected, got = self.numbers or (self.expected, self.got)
        where = [self.path] * bool(self.path) + [f"index {self.place}"] * bool(self.place)
        return f"{', '.join(where) or 'the result'}: expected {expected}, got {got}"


def leaves(value, path=""):
    """(path, leaf) of what a tree, a tuple or a dataclass holds; arrays and numbers as arrays."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for n, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{n}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, np.ndarray | np.generic | int | float):
        yield path, np.asarray(value)
    elif value is None or isinstance(value, str):
        yield path, value


def difference(expected, got, bound=0.0):
    """The first Difference between two values, or None."""
    wanted, given = dict(leaves(expected)), dict(leaves(got))
    for path in [*wanted, *given]:
        if (path in wanted) != (path in given):
            a, b = (describe(d[path]) if path in d else "nothing" for d in (wanted, given))
            return Difference(path, None, a, b)
        found = _of_leaf(path, wanted[path], given[path], bound)
        if found:
            return found
    return None


def _of_leaf(path, a, b, bound):
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    if not arrays and type(a) is type(b) and a == b:
        return None
    if not arrays or a.shape != b.shape or _sort(a) != _sort(b):
        return Difference(path, None, describe(a), describe(b))
    with np.errstate(all="ignore"):
        same = (a == b) | ((a != a) & (b != b))
        if _sort(a) == "float":
            same |= np.abs(a - b) <= bound
    if same.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~same)[0])
    return Difference(path, index, describe(a), describe(b), (a[index], b[index]))


def _sort(a):
    """Which arrays may be equal: integers of any width, floats of any width."""
    return {"i": "integer", "u": "integer", "b": "boolean", "f": "float"}.get(a.dtype.kind, "other")


def same(a, b, bound):
    """Whether two outcomes are the same."""
    if a.crash or b.crash:
        return bool(a.crash and b.crash) and a.crash.kind == b.crash.kind
    return a.touched == b.touched and difference(a.value, b.value, bound) is None


def snapshot(arguments):
    """The leaves of each argument, copied."""
    return [[(p, np.copy(x) if isinstance(x, np.ndarray) else x) for p, x in leaves(a)]
            for a in arguments]  # fmt: skip


def touched(before, arguments):
    """The numbers of the arguments that are no longer as in the snapshot `before`."""
    after = [list(leaves(a)) for a in arguments]
    return tuple(n for n, (x, y) in enumerate(zip(before, after)) if difference(x, y))


def describe(value, contents=True):
    """A value in a few words: shape and dtype, and what is in it if it is small."""
    if isinstance(value, np.ndarray):
        text = f"{value.shape} {value.dtype}"
        if not contents or value.size > 8:
            return text
        return f"{text} {np.array2string(value, separator=', ')}".replace("\n", "")
    if isinstance(value, dict):
        inner = ", ".join(f"{key}: {describe(v, False)}" for key, v in value.items())
        return _cut("{" + inner + "}")
    if isinstance(value, list | tuple):
        return _cut("(" + ", ".join(describe(v, False) for v in value) + ")")
    if dataclasses.is_dataclass(value) or callable(value):
        return type(value).__name__
    return _cut(repr(value))


def _cut(text, most=160):
    return text if len(text) <= most else text[: most - 2] + " …"

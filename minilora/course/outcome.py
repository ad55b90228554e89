"""Record the result of a call, and compare values: integers exactly, floats within a bound.

An outcome holds the returned value (arrays in trees, tuples and dataclasses), the arguments that
the call changed, or how it failed. The properties of exercises use `close`.
"""

import dataclasses
import traceback
from typing import Any, NamedTuple

import numpy as np

LEAF = (np.ndarray, np.generic, int, float, str, type(None))


class Stopped(BaseException):
    """The end of a check. Not an `Exception`, so that no property catches it."""


class Outcome(NamedTuple):
    """The result of a call."""

    value: Any = None
    touched: tuple = ()  # indices of the arguments that the call changed
    crash: str = ""  # "type: message" of an exception, and the student's line


def failure(error, file):
    """Return the Outcome of an exception, with the last line of `file` in its traceback."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file:
            where = f"\n    line {frame.lineno}: {frame.line}"
    return Outcome(crash=f"{type(error).__name__}: {error}{where}"[:2000])


def parts(value):
    """Return {suffix of the path: part} of a tree, a tuple or a dataclass; None of a leaf."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f".{name}": part for name, part in vars(value).items()}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {f"[{key!r}]": part for key, part in value.items()}
    return None


def leaves(value, path=""):
    """Yield (path, array) of each leaf of a tree, a tuple or a dataclass."""
    if isinstance(value, LEAF):
        yield path, np.asarray(value)
        return
    for suffix, part in (parts(value) or {}).items():
        yield from leaves(part, path + suffix)


def difference(expected, got, bound=0.0, dtypes=False):
    """Return a text on the first difference, or an empty string.

    With `dtypes`, float32 and float64 differ; otherwise only integers and floats do.
    """
    wanted = dict(leaves(expected))
    given = dict(leaves(got))
    if wanted.keys() != given.keys():
        return f"the result{TYPE} expected {describe(expected)}, got {describe(got)}"
    for path, a in wanted.items():
        b = given[path]
        if (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()):
            continue  # most are equal to the bit, which is quick to see
        kinds = {x.dtype.kind.replace("u", "i") for x in (a, b)}  # no matter the width and the sign
        others = dtypes and "U" not in kinds and a.dtype != b.dtype
        if a.shape != b.shape or len(kinds) > 1 or others:
            return f"{path or 'the result'}{TYPE} expected {describe(a)}, got {describe(b)}"
        with np.errstate(all="ignore"):
            equal = (a == b) | ((a != a) & (b != b))
            if kinds == {"f"}:
                equal |= np.abs(a - b) <= bound
        if not equal.all():
            index = np.argwhere(~equal)[0].tolist() or ""  # a number has no index
            place = f"{path}{index}" or "the result"
            return f"{place}: expected {a[~equal][0]}, got {b[~equal][0]}"
    return ""


TYPE = ", its shape or type:"  # in a text of `difference`


def describe(value):
    """Describe a value in a few words: shape and dtype, and the contents if it is small."""
    if isinstance(value, np.ndarray | np.generic):
        if value.size > 12:
            return f"{value.shape} {value.dtype}"
        text = np.array2string(np.asarray(value), precision=6, separator=", ").replace("\n", "")
        return f"{value.shape} {value.dtype} {text}"
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    if isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {describe(v)}' for key, v in value.items())}}}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [  # the fields that are not the default
            f"{f.name}={describe(getattr(value, f.name))}"
            for f in dataclasses.fields(value)
            if difference(f.default, getattr(value, f.name))
        ]
        text += f"({', '.join(inner)})"
    elif isinstance(value, list | tuple):
        text += f" ({', '.join(describe(v) for v in value)})"
    return text if len(text) <= 160 else text[:158] + " …"


def lines(name, value):
    """Return a line that describes a value; of a large tree or tuple, a line per part."""
    inner = parts(value)
    text = describe(value)
    if inner is None or not text.endswith("…"):
        return [f"{name:<9} {text}"]
    found = [line for suffix, part in inner.items() for line in lines(f"{name}{suffix}", part)]
    return found if len(found) <= 16 else [*found[:16], "…"]


def close(got, expected, bound=0.0):
    """Assert that two values (arrays, trees, tuples) are equal; floats within `bound`."""
    found = difference(expected, got, bound)
    assert not found, found

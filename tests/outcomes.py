"""What a test expects: an InputError, or what commands of `minilora` print and how they fail."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

import pytest

from minilora import cli
from minilora.config import InputError


def refused(message=None):
    """Return a context in which an InputError must be raised; `message` is a regular expression."""
    return pytest.raises(InputError, match=message)


class Printed(NamedTuple):
    """What a command prints."""

    out: str
    err: str


def printed(argv, status=0):
    """Return what `minilora` with these arguments prints; it must end with this exit status."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        found = cli.main(argv)
    result = Printed(out.getvalue(), err.getvalue())
    assert found == status, result
    return result


def arguments(words):
    """Return words as a list of arguments (a string is split at spaces)."""
    return [str(a) for word in words for a in (word.split() if isinstance(word, str) else [word])]


def run(*words, status=0):
    """Run `minilora`, which must end with this exit status; return what it prints."""
    return printed(arguments(words), status)


def error_of(act, *args, **options):
    """Return the single line on standard error of act(…), a command that must fail."""
    lines = act(*args, status=2, **options).err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]

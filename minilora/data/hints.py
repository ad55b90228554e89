"""Hints in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of a message that asks for the known name that resembles `word`, or "".

    >>> did_you_mean("Tinny", ["micro", "tiny"]), did_you_mean("large", ["micro", "tiny"])
    ('; did you mean tiny?', '')
    """
    near = get_close_matches(str(word).lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""

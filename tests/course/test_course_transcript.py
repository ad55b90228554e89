"""All that the course prints: verdicts on wrong answers, and its commands."""

from pathlib import Path

import pytest
from transcripts import check_transcript

from minilora.course.students import exercises, judge
from minilora.course.students.isolation import Local

SET = Path(__file__).with_name("exercises")


def exercise(words):
    """Print an exercise."""
    e = exercises.load()[words[0]]
    print(e.about, *e.parameters, sep=", ")


def verdict(words):
    """Print the verdict on an answer: the name of a mistake, `nothing` or the `check` of a test."""
    name, answer, *seed = words
    e = exercises.load()[name]
    functions = {mistake.name: mistake for mistake in reversed(e.mistakes)}
    if answer == "nothing":
        function = give_nothing
    elif answer == "check":
        function = e.checks.check
    else:
        function = e.copy(functions[answer])
    found = judge.check(e, Local(function), *map(int, seed))
    print(f"{found.share:.3f} of the points: {found.text}")


def give_nothing(*_):
    """Return nothing, as a function without a `return` does."""


@pytest.fixture
def fewer_calls(monkeypatch):
    """Check each rule on two calls at most, which takes less time than forty."""
    monkeypatch.setitem(judge.CALLS, judge.REFERENCE, 2)
    monkeypatch.setitem(judge.CALLS, judge.SLOPES, 1)
    monkeypatch.setattr(judge, "CALLS_OF_A_PROPERTY", 2)


def test_transcript_of_the_course(tmp_path, monkeypatch, pytestconfig, fewer_calls, pools):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    path = Path(__file__).with_name("transcripts.txt")
    rewrite = pytestconfig.getoption("--rewrite")
    check_transcript(path, rewrite, exercise=exercise, verdict=verdict)

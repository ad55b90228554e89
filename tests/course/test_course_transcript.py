"""All that the course prints: verdicts on wrong answers, and its commands."""

from minilora.course.students import exercises, judge
from minilora.course.students.isolation import Local


def exercise(words):
    """Print an exercise."""
    e = exercises.load()[words[0]]
    print(e.about, *e.parameters, sep=", ")


def verdict(words):
    """Print the verdict on an answer: the name of a usual mistake, `nothing`, or `raises`."""
    name, answer, *seed = words
    e = exercises.load()[name]
    functions = {mistake.name: e.copy(mistake) for mistake in reversed(e.mistakes)}
    functions |= {"nothing": lambda *_: None, "raises": lambda *_: 1 / 0}
    found = judge.check(e, Local(functions[answer]), *map(int, seed))
    print(f"{found.share:.3f} of the points: {found.text}")


def test_transcript_of_the_course(transcript, monkeypatch, pools):
    calls = {judge.REFERENCE: 2, judge.SLOPES: 1}  # enough for a verdict
    monkeypatch.setattr(judge, "CALLS", calls)
    monkeypatch.setattr(judge, "CALLS_OF_A_PROPERTY", 2)
    transcript(exercise=exercise, verdict=verdict)

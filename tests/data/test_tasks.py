"""The built-in language and its exact entropy; a task whose answers cannot be memorized."""

import math
import re
from collections import Counter
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.data import tasks
from minilora.data.rows import check_row
from minilora.data.tokenizer import ByteTokenizer

# ----------------------------------------------------------------------------------- entropy


class Script:
    """A generator that draws what the script says, and records the other possible draws.

    Stands in for NumPy's where a die asks it: `integers(n)`.
    """

    def __init__(self, script):
        self.script, self.width = script, []

    def integers(self, n):
        self.width.append(n)
        at = len(self.width) - 1
        return self.script[at] if at < len(self.script) else 0


def outcomes(draw):
    """(what draw(rng) returns, its probability) for every way in which the draws can fall."""
    script = []
    while True:
        rng = Script(script)
        result = draw(rng)
        yield result, math.prod(1 / n for n in rng.width)
        script = script + [0] * (len(rng.width) - len(script))
        while script and script[-1] + 1 == rng.width[len(script) - 1]:
            script.pop()
        if not script:
            return
        script[-1] += 1


@pytest.fixture
def small(monkeypatch):
    """The language with two words of each kind and notes of one or two facts."""
    for words in ("NAMES", "THINGS", "COLOURS", "PLACES"):
        monkeypatch.setattr(tasks, words, getattr(tasks, words)[:2])
    monkeypatch.setattr(tasks, "FACTS", (1, 2))


def test_nats_are_the_probability_of_the_text(small):
    # If two ways of drawing gave one text, its probability would be their sum and the stated
    # entropy too high; if a draw were not counted, the stated probabilities would not sum to one.
    probability, stated = Counter(), {}
    for (row, nats), p in outcomes(tasks.note):
        probability[row["text"]] += p
        assert stated.setdefault(row["text"], nats) == pytest.approx(nats, abs=1e-12)
    assert len(probability) == 48 + 48**2  # 2·2·2·2 facts with three echoes
    assert math.fsum(probability.values()) == pytest.approx(1, abs=1e-9)
    assert math.fsum(math.exp(-nats) for nats in stated.values()) == pytest.approx(1, abs=1e-9)
    for text, p in probability.items():
        assert -math.log(p) == pytest.approx(stated[text], abs=1e-9)


def test_the_full_languages_nats_in_closed_form():
    # log 3 lengths · (24 names · 8 colours · 24 things · 8 places · 3 echoes)ᵏ
    rows, nats = tasks.notes(200, seed=0)
    for row, got in zip(rows, nats):
        k = len(read(row["text"]))
        assert got == pytest.approx(math.log(3) + k * math.log(24 * 8 * 24 * 8 * 3), abs=1e-9)


def fair(counts, options):
    """Tell whether each option occurs as often as in n fair draws, within six deviations."""
    n, p = sum(counts.values()), 1 / len(options)
    wide = 6 * math.sqrt(n * p * (1 - p))  # outside of it once in 5·10⁸
    return counts.keys() == set(options) and all(abs(c - n * p) < wide for c in counts.values())


def test_draws_are_fair():
    rows, _ = tasks.notes(3000, seed=1)
    said = [read(row["text"]) for row in rows]
    assert fair(Counter(map(len, said)), tasks.FACTS)
    facts = [fact for note in said for fact, _ in note]
    for words, part in zip((tasks.NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES), zip(*facts)):
        assert fair(Counter(part), words)
    assert fair(Counter(echo for note in said for _, echo in note), tasks.ECHOES)


def test_the_same_seed_gives_the_same_rows():
    for make in (lambda s: tasks.notes(20, s)[0], lambda s: tasks.questions("train", 20, s)):
        assert make(0) == make(0) != make(1)
    assert tasks.notes(5, 0)[0] == tasks.notes(9, 0)[0][:5]


# ------------------------------------------------------------------------------------- notes


def pattern(template):
    """Return the template as a pattern, in which a repeated word must be the same."""
    seen, parts = set(), []
    for literal, name, *_ in Formatter().parse(template):
        again = f"(?P={name})" if name in seen else rf"(?P<{name}>\w+)"
        parts.append(re.escape(literal) + (again if name else ""))
        seen.add(name)
    return "".join(parts)


def read(text):
    """[((name, colour, thing, place), echo's template)] of a note that says nothing untrue."""
    facts = []
    while text:
        tries = ((e, re.match(pattern(f"{tasks.STATEMENT} {e}"), text)) for e in tasks.ECHOES)
        echo, match = next((echo, match) for echo, match in tries if match)
        facts.append((match.group("name", "colour", "thing", "place"), echo))
        text = text[match.end() :].removeprefix(" ")
    return facts


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_an_echo_repeats_its_fact(seed):
    for row in tasks.notes(5, seed)[0]:
        assert len(read(row["text"])) in tasks.FACTS
    for template in (*tasks.ECHOES, tasks.ANSWER):  # nothing but what the statement says
        fields = {name for _, name, *_ in Formatter().parse(template) if name}
        assert fields and fields <= {"name", "colour", "thing", "place"}


def test_words_can_be_told_apart():
    words = [*tasks.NAMES, *tasks.THINGS, *tasks.COLOURS, *tasks.PLACES]
    assert len(set(words)) == len(words)
    # what the comment in the source promises to a model that counts bytes
    assert {len(name) for name in tasks.NAMES} == {3}
    assert {len(word) for word in words if word not in tasks.NAMES} == {4}
    assert len({name[0] for name in tasks.NAMES}) == len(tasks.NAMES)


# --------------------------------------------------------------------------------- questions


def subject(row):
    """(name, colour, thing, place) of a row, from its prompt alone."""
    match = re.fullmatch(pattern(tasks.STATEMENT + tasks.QUESTION), row["prompt"])
    return match.group("name", "colour", "thing", "place")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_answer_says_what_its_sentence_says(split):
    for row in tasks.questions(split, 300, seed=0):
        check_row(row, "here")
        name, colour, thing, place = subject(row)
        assert row["completion"] == f" {name}, {colour} {thing}, {place}."


def test_held_out_rows_are_about_pairs_that_training_never_meets():
    pairs = {
        split: {subject(row)[::2] for row in tasks.questions(split, 3000, seed=0)}
        for split in ("train", "valid", "test")
    }
    held_out = pairs["valid"] | pairs["test"]
    assert not pairs["train"] & held_out
    # 24·24 pairs, of which one in eight is held out; 3000 rows meet nearly all of them
    assert len(held_out) == 24 * 24 / 8 and len(pairs["train"]) > 0.95 * 24 * 24 * 7 / 8
    # each name and each thing is met in both, so none is a stranger
    for split in (held_out, pairs["train"]):
        assert {name for name, _ in split} == set(tasks.NAMES)
        assert {thing for _, thing in split} == set(tasks.THINGS)


# ----------------------------------------------------------------------------------- builtin


@pytest.mark.parametrize("name", tasks.BUILTIN)
def test_a_builtin_set_has_its_counts_and_sound_rows(name):
    splits = [tasks.builtin(name, split) for split in tasks.SPLITS]
    assert tuple(map(len, splits)) == tasks.BUILTIN[name].counts
    for row in (row for split in splits for row in split):
        check_row(row, name)
    if name != "notes":  # which are for pretraining; short ones recur
        train, *held_out = ({row["prompt"] for row in split} for split in splits)
        assert not train & set.union(*held_out)


@pytest.mark.parametrize("name", ["notes", "questions"])
def test_the_embedded_sets_are_ascii(name):
    # a base of bytes never has to meet the upper half
    for row in tasks.builtin(name, "test"):
        assert max(t for text in row.values() for t in ByteTokenizer().encode(text)) < 128

"""The built-in language and its exact entropy; a task whose answers cannot be memorized."""

import hashlib
import json
import math
import re
from collections import Counter
from itertools import chain
from string import Formatter

import pytest

from minilora.data import load_rows, tasks


def pattern(template):
    """Return the template as a pattern, in which a repeated word must be the same."""
    seen, parts = set(), []
    for literal, name, *_ in Formatter().parse(template):
        again = f"(?P={name})" if name in seen else rf"(?P<{name}>\w+)"
        parts.append(re.escape(literal) + (again if name else ""))
        seen.add(name)
    return "".join(parts)


def read(text):
    """Return [((name, colour, thing, place), echo)] of a note, whose echoes repeat their facts."""
    facts = []
    while text:
        tries = [(e, re.match(pattern(f"{tasks.STATEMENT} {e}"), text)) for e in tasks.ECHOES]
        [(echo, match)] = [(echo, match) for echo, match in tries if match]
        facts.append((match.group("name", "colour", "thing", "place"), echo))
        text = text[match.end() :].removeprefix(" ")
    return facts


def fair(values, options):
    """Tell whether each option occurs as often as in n fair draws, within six deviations."""
    counts = Counter(values)
    n, p = sum(counts.values()), 1 / len(options)
    wide = 6 * math.sqrt(n * p * (1 - p))  # outside of it once in 5·10⁸
    return counts.keys() == set(options) and all(abs(c - n * p) < wide for c in counts.values())


def test_the_entropy_of_the_language_is_known():
    """A text can be read in one way, so its probability is that of its draws, which are fair."""
    rows, nats = tasks.notes(3000, seed=1)
    notes = [read(row["text"]) for row in rows]
    assert fair(map(len, notes), tasks.FACTS)
    facts = [fact for note in notes for fact, _ in note]
    lists = tasks.FIRST_NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES
    for words, part in zip(lists, zip(*facts)):
        assert fair(part, words)
    assert fair((echo for note in notes for _, echo in note), tasks.ECHOES)
    for note, got in zip(notes, nats):
        # log 3 lengths · (24 names · 8 colours · 24 things · 8 places · 3 echoes)ᵏ
        expected = math.log(3) + len(note) * math.log(24 * 8 * 24 * 8 * 3)
        assert got == pytest.approx(expected, abs=1e-9)


def subject(row):
    """Return (name, colour, thing, place) of a row of the task, from its prompt alone."""
    match = re.fullmatch(pattern(tasks.STATEMENT + tasks.QUESTION), row["prompt"])
    return match.group("name", "colour", "thing", "place")


def test_held_out_rows_are_about_pairs_that_training_never_meets():
    rows = {split: load_rows("questions", split) for split in tasks.SPLITS}
    for row in chain(*rows.values()):
        name, colour, thing, place = subject(row)
        assert row["completion"] == f" {name}, {colour} {thing}, {place}."
    pairs = {split: {subject(row)[::2] for row in rows[split]} for split in rows}
    held_out = pairs["valid"] | pairs["test"]
    assert not pairs["train"] & held_out
    # 24·24 pairs, of which one in eight is held out; training meets nearly all of the others
    assert len(held_out) == 24 * 24 / 8 and len(pairs["train"]) > 0.95 * 24 * 24 * 7 / 8
    assert sum(row in rows["valid"] for row in rows["test"]) == 14  # as data-and-models.md says
    # each name and each thing occurs in training, so none is new
    names, things = map(set, zip(*pairs["train"]))
    assert names == set(tasks.FIRST_NAMES) and things == set(tasks.THINGS)
    assert tasks.questions("test", 9, seed=1) != rows["test"][:9]


# SHA-256: with other rows, the numbers of the lessons and of older runs are those of other data
DIGESTS = {"notes": "fd335b54ec5385b6", "questions": "0e009c1b1818c5d0"}


@pytest.mark.parametrize("name", tasks.BUILTIN)
def test_a_builtin_set_has_the_same_rows_everywhere(name):
    splits = [load_rows(name, split) for split in tasks.SPLITS]
    assert [len(rows) for rows in splits] == [4000, 200, 400]
    assert hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16] == DIGESTS[name]

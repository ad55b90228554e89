"""The embedded language: its entropy outcome by outcome; a task that memory cannot answer."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import tasks
from minilora.data import check_row
from minilora.tokenizer import ByteTokenizer

# ----------------------------------------------------------------------------------- entropy


class Script:
    """A generator that draws what the script says, and notes what else it could have drawn.

    Stands in for NumPy's where the tasks ask it: `integers(n)` and `permutation(n)`.
    """

    def __init__(self, script):
        self.script, self.at, self.width = script, 0, []

    def choose(self, n):
        choice = self.script[self.at] if self.at < len(self.script) else 0
        self.at += 1
        self.width.append(n)
        return choice

    def integers(self, n):
        return self.choose(n)

    def permutation(self, n):
        return list(permutations(range(n)))[self.choose(math.factorial(n))]


def outcomes(draw):
    """(what draw(rng) returns, its probability) for every way in which the draws can fall."""
    script = []
    while True:
        rng = Script(script)
        result = draw(rng)
        yield result, math.prod(1 / n for n in rng.width)
        script = script[: rng.at] + [0] * (rng.at - len(script))
        while script and script[-1] + 1 == rng.width[len(script) - 1]:
            script.pop()
        if not script:
            return
        script[-1] += 1


@pytest.fixture
def small(monkeypatch):
    """The language with three names, two things, two colours and notes of one or two facts."""
    monkeypatch.setattr(tasks, "NAMES", tasks.NAMES[:3])
    monkeypatch.setattr(tasks, "THINGS", tasks.THINGS[:2])
    monkeypatch.setattr(tasks, "COLOURS", tasks.COLOURS[:2])
    monkeypatch.setattr(tasks, "SIZES", (1, 2))


def test_nats_are_the_probability_of_the_text(small):
    # If two ways of drawing gave one text, its probability would be their sum and the stated
    # entropy too high; if a draw were not counted, the stated probabilities would not sum to one.
    probability, stated = Counter(), {}
    for (row, nats), p in outcomes(tasks.note):
        probability[row["text"]] += p
        assert stated.setdefault(row["text"], nats) == pytest.approx(nats, abs=1e-12)
    assert len(probability) == 3 * 2 * 2 * 3 + (3 * 2) * (2 * 1) * 2**2 * 2 * 3**2
    assert math.fsum(probability.values()) == pytest.approx(1, abs=1e-9)
    assert math.fsum(math.exp(-nats) for nats in stated.values()) == pytest.approx(1, abs=1e-9)
    for text, p in probability.items():
        assert -math.log(p) == pytest.approx(stated[text], abs=1e-9)


def test_the_full_languages_nats_in_closed_form():
    # log 3 sizes · (24·23·…)² names and things · 8ᵏ colours · k! orders · 3ᵏ closings
    rows, nats = tasks.notes(200, seed=0)
    for row, got in zip(rows, nats):
        k = row["text"].count(" has a ")
        ways = 3 * math.perm(24, k) ** 2 * 8**k * math.factorial(k) * 3**k
        assert got == pytest.approx(math.log(ways), abs=1e-9)


def test_sizes_and_closings_are_fair():
    rows, _ = tasks.notes(3000, seed=1)
    sizes = Counter(row["text"].count(" has a ") for row in rows)
    # three equal chances in 3000 draws: 1000 ± 26, and six times that is one in 5·10⁸
    assert sizes.keys() == {2, 3, 4} and all(abs(n - 1000) < 6 * 26 for n in sizes.values())
    text = " ".join(row["text"] for row in rows)
    kinds = [text.count(word) for word in ("Find the", "Ask ", "Paint the")]
    n = sum(kinds)
    assert n == sum(size * count for size, count in sizes.items())
    assert all(abs(kind - n / 3) < 6 * math.sqrt(n * 2 / 9) for kind in kinds)


def test_the_same_seed_gives_the_same_rows():
    for make in (lambda s: tasks.notes(20, s)[0], lambda s: tasks.questions("train", 20, s)):
        assert make(0) == make(0) != make(1)
    assert tasks.notes(5, 0)[0] == tasks.notes(9, 0)[0][:5]


# ------------------------------------------------------------------------------------- notes


def read(sentences):
    """{name: (colour, thing)} of the facts in "Ada has a red kite. Tom …"."""
    facts = {}
    for sentence in sentences.split(". "):
        name, _, _, colour, thing = sentence.rstrip(".").split(" ")
        assert name not in facts  # or a question about it would have two answers
        facts[name] = colour, thing
    assert len({thing for _, thing in facts.values()}) == len(facts)
    return facts


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_a_note_looks_up_everything_it_says_truly(seed):
    (row,), _ = tasks.notes(1, seed)
    sentences = row["text"].split(". ")
    facts = read(". ".join(s for s in sentences if " has a " in s))
    owner = {thing: (name, colour) for name, (colour, thing) in facts.items()}
    looked_up = set()
    for closing in (s.rstrip(".") for s in sentences if ":" in s):
        asked, answer = closing.split(": ")
        if asked.startswith("Ask "):
            thing = answer.split(" ")[-1]
            assert answer == "a {} {}".format(*facts[asked[4:]])
        else:
            thing = asked.split(" ")[-1]
            name, colour = owner[thing]
            expected = f"{name} has it" if asked.startswith("Find") else f"now it is {colour}"
            assert answer == expected
        looked_up.add(thing)
    assert looked_up == owner.keys()


# --------------------------------------------------------------------------------- questions


def asked_about(row):
    """((name, colour, thing) that the question is about, the right answer), from the text alone."""
    text, question, end = row["prompt"].split("\n")
    assert question.startswith("Q: ") and end == "A:"
    facts = read(text)
    name, (colour, thing) = next(
        (name, fact)
        for name, fact in facts.items()
        if name in question or fact[1] + "?" in question
    )
    answer = {"Who": name, "What has": f"a {colour} {thing}", "What colour": colour}
    kind = next(k for k in ("Who", "What has", "What colour") if question.startswith(f"Q: {k}"))
    return (name, colour, thing), answer[kind]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_question_has_its_one_answer_in_the_text(split):
    for row in tasks.questions(split, 300, seed=0):
        check_row(row, "here")
        assert row["completion"] == " " + asked_about(row)[1]


def test_held_out_questions_ask_about_pairs_that_training_never_asks_about():
    pairs = {
        split: {asked_about(row)[0][::2] for row in tasks.questions(split, 3000, seed=0)}
        for split in ("train", "valid", "test")
    }
    held_out = pairs["valid"] | pairs["test"]
    assert not pairs["train"] & held_out
    # 24·24 pairs, of which one in eight is held out; 3000 questions meet nearly all of them
    assert len(held_out) == 24 * 24 / 8 and len(pairs["train"]) > 0.95 * 24 * 24 * 7 / 8
    # each name and each thing is held out with something, so none is a stranger
    assert {name for name, _ in held_out} == set(tasks.NAMES)
    assert {thing for _, thing in held_out} == set(tasks.THINGS)


def test_splits_share_no_prompt():
    prompts = {
        split: {row["prompt"] for row in tasks.questions(split, 1000, seed=0)}
        for split in ("train", "valid", "test")
    }
    assert all(len(p) == 1000 for p in prompts.values())
    assert len(set.union(*prompts.values())) == 3000


# ----------------------------------------------------------------------------------- builtin


@pytest.mark.parametrize("name", tasks.BUILTIN)
def test_a_builtin_set_has_its_counts_and_sound_rows(name):
    for split, count in zip(tasks.SPLITS, tasks.BUILTIN[name].counts):
        rows = tasks.builtin(name, split)
        assert len(rows) == count
        for row in rows:
            check_row(row, name)
        texts = [str(row) for row in rows]
        assert len(set(texts)) == count or name.startswith("toolcalls")
    seen = [{str(row) for row in tasks.builtin(name, split)} for split in tasks.SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


@pytest.mark.parametrize("name", ["notes", "questions"])
def test_the_embedded_sets_are_ascii(name):
    # a base of bytes never has to meet the upper half
    for row in tasks.builtin(name, "test"):
        assert max(t for text in row.values() for t in ByteTokenizer().encode(text)) < 128


def test_fair_draws_are_counted():
    dice = tasks.Dice(np.random.default_rng(0))
    dice.one("abcd")
    assert dice.nats == pytest.approx(math.log(4))
    drawn = dice.some("abcde", 3)
    assert len(set(drawn)) == 3 and dice.nats == pytest.approx(math.log(4 * 5 * 4 * 3))

"""The language of the embedded bases, and the task that they are fine-tuned on.

The language is notes about who has what, each closed by looking everything up again:

    Ada has a pink kite. Tom has a blue drum. Find the drum: Tom has it. Ask Ada: a pink kite.

A note is a handful of fair draws and nothing else, and the text shows every draw, so its
probability is the product of theirs and the entropy of the language is known exactly: no model can
have a lower loss than the mean of −log p(note), and a good one comes close.

The task asks about such notes in words that the bases never saw:

    Ada has a pink kite. Tom has a blue drum. Mia has a jade boat.
    Q: Who has the drum?
    A: Tom
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import toolcalls

SPLITS = ("train", "valid", "test")

# Names have three letters and different initials, things and colours four letters: a byte-level
# model finds a word by its place, and the small bases learn to look things up in minutes.
NAMES = (
    "Ada", "Ben", "Cal", "Dot", "Eve", "Fay", "Gus", "Hal", "Ivo", "Jan", "Kai", "Lea",
    "Mia", "Ned", "Oda", "Pia", "Rex", "Sue", "Tom", "Uma", "Val", "Wes", "Xia", "Zoe",
)  # fmt: skip
THINGS = (
    "ball", "bell", "boat", "book", "cake", "coat", "coin", "dart", "doll", "drum", "flag", "fork",
    "gong", "harp", "kite", "lamp", "mask", "nail", "pipe", "ring", "rope", "sled", "tent", "vase",
)  # fmt: skip
COLOURS = ("blue", "gold", "grey", "jade", "lime", "pink", "plum", "teal")
SIZES = (2, 3, 4)  # facts in a note
CLOSINGS = (
    "Find the {thing}: {name} has it.",
    "Ask {name}: a {colour} {thing}.",
    "Paint the {thing}: now it is {colour}.",
)
QUESTIONS = (
    ("Who has the {thing}?", "{name}"),
    ("What has {name}?", "a {colour} {thing}"),
    ("What colour is the {thing}?", "{colour}"),
)


class Dice:
    """Fair draws, and the information that they carry: `nats` = −log of their joint probability."""

    def __init__(self, rng):
        self.rng, self.nats = rng, 0.0

    def one(self, options):
        """One of the options."""
        self.nats += math.log(len(options))
        return options[self.rng.integers(len(options))]

    def some(self, options, k):
        """k different ones, in order: n·(n−1)·… equally likely outcomes."""
        self.nats += sum(math.log(len(options) - i) for i in range(k))
        return [options[i] for i in self.rng.permutation(len(options))[:k]]


def facts(dice):
    """(the sentences, what they say): two to four people with a coloured thing each."""
    k = dice.one(SIZES)
    names, things = dice.some(NAMES, k), dice.some(THINGS, k)
    said = [{"name": n, "thing": t, "colour": dice.one(COLOURS)} for n, t in zip(names, things)]
    return " ".join("{name} has a {colour} {thing}.".format(**f) for f in said), said


def note(rng):
    """({"text": one note}, −log p(note) in nats)."""
    dice = Dice(rng)
    text, said = facts(dice)
    closings = [dice.one(CLOSINGS).format(**fact) for fact in dice.some(said, len(said))]
    return {"text": " ".join([text, *closings])}, dice.nats


def notes(n, seed):
    """(n rows of the language, their −log p in nats as an array)."""
    rng = np.random.default_rng([1, seed])
    rows, nats = zip(*(note(rng) for _ in range(n)))
    return list(rows), np.array(nats)


def question(rng, held_out):
    """A prompt and its completion; one pair in eight of name and thing is asked about only in the
    held-out split, so nothing can be answered from memory."""
    while True:
        dice = Dice(rng)
        text, said = facts(dice)
        asked = dice.one(said)
        ask, answer = dice.one(QUESTIONS)
        if reserved(asked) == held_out:
            prompt = f"{text}\nQ: {ask}\nA:".format(**asked)
            return {"prompt": prompt, "completion": " " + answer.format(**asked)}


def reserved(fact):
    """True for the pairs of name and thing that only held-out questions ask about."""
    return (NAMES.index(fact["name"]) + THINGS.index(fact["thing"])) % 8 == 0


def questions(split, n, seed):
    """n rows of the task; split `train`, `valid` or `test`, the latter two of reserved pairs."""
    rng = np.random.default_rng([2, SPLITS.index(split), seed])
    return [question(rng, held_out=split != "train") for _ in range(n)]


class Builtin(NamedTuple):
    """A data set that `--data` can name."""

    rows: Callable  # (split, n, seed) -> n rows
    counts: tuple[int, int, int]  # rows of train, valid and test
    recipe: str = ""  # the flags of `minilora train` that suit it, where the user gives none


def few_shot(split, n, seed):
    """The tool calls, each asked with the schemas and an example of every tool."""
    return [toolcalls.few_shot_row(row) for row in toolcalls.rows(split, n, seed)]


BUILTIN = {
    "notes": Builtin(lambda split, n, seed: notes(n, SPLITS.index(split) + 3 * seed)[0],
                     (4000, 200, 400)),
    "questions": Builtin(
        questions, (4000, 200, 400),
        "--iters 300 --learning-rate 4e-3 --batch-size 16 --mask-prompt "
        "--target-modules all-linear --steps-per-eval 50",
    ),
    "toolcalls": Builtin(
        toolcalls.rows, (1600, 96, 240),
        "--iters 150 --learning-rate 1e-3 --batch-size 8 --mask-prompt "
        "--target-modules all-linear --steps-per-eval 50",
    ),
    "toolcalls-few-shot": Builtin(few_shot, (1600, 96, 240)),
}  # fmt: skip


def builtin(name, split, seed=0):
    """The rows of a built-in data set's split."""
    task = BUILTIN[name]
    return task.rows(split, task.counts[SPLITS.index(split)], seed)

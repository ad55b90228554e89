"""Generate the language of the built-in models, and the task for fine-tuning them.

This generalizes part 5 of `lessons/00_qlora_in_one_file.py`.

The language consists of notes about who keeps what where. An echo follows each fact:

    Ada keeps a pink kite in the barn. Who? Ada. Tom keeps a blue drum in the loft. In the loft.

A note is made from a few uniform random draws, and its text shows every draw. So its probability is
the product of their probabilities, and the entropy of the language is known exactly: no model can
have a lower loss than the mean of −log p(note).

The task asks about such a sentence in a form that the built-in models have not seen:

    Ada keeps a pink kite in the barn. Who, what, where? Ada, pink kite, barn.
"""

import math

import numpy as np

COUNTS = {"train": 4000, "valid": 200, "test": 400}  # rows of each split of a built-in data set
SPLITS = tuple(COUNTS)

# Names have three letters and different initials, all other words have four letters. A byte-level
# model can then find a word by its distance: even the small one learns that in a few hundred steps.
FIRST_NAMES = (
    "Ada Ben Cal Dot Eve Fay Gus Hal Ivo Jan Kai Lea "
    "Mia Ned Oda Pia Rex Sue Tom Uma Val Wes Xia Zoe"
).split()
THINGS = (
    "ball bell boat book cake coat coin dart doll drum flag fork "
    "gong harp kite lamp mask nail pipe ring rope sled tent vase"
).split()
COLOURS = "blue gold grey jade lime pink plum teal".split()
PLACES = "barn cave dock hall loft park shed yard".split()
WORDS = {"name": FIRST_NAMES, "colour": COLOURS, "thing": THINGS, "place": PLACES}
FACTS = (1, 2, 3)  # facts in a note
STATEMENT = "{name} keeps a {colour} {thing} in the {place}."
ECHOES = ("Who? {name}.", "What? The {thing}, a {colour} one.", "In the {place}.")
QUESTION = " Who, what, where?"
ANSWER = " {name}, {colour} {thing}, {place}."


def _draw(rng, options):
    return options[rng.integers(len(options))]


def _fact(rng):
    return {part: _draw(rng, options) for part, options in WORDS.items()}


def notes(n, seed):
    """Return (n rows of the language, each with one note; array of their −log p in nats)."""
    rng = np.random.default_rng([1, seed])
    rows = []
    nats = []
    for _ in range(n):
        facts = [_fact(rng) for _ in range(_draw(rng, FACTS))]
        sentences = [f"{STATEMENT} {_draw(rng, ECHOES)}".format(**fact) for fact in facts]
        rows.append({"text": " ".join(sentences)})
        draws = [FACTS, *[*WORDS.values(), ECHOES] * len(facts)]
        nats.append(sum(math.log(len(options)) for options in draws))
    return rows, np.array(nats)


def questions(split, n, seed=0):
    """Return n rows of the task, each with a prompt and its completion."""
    rng = np.random.default_rng([2, SPLITS.index(split), seed])
    rows: list = []
    while len(rows) < n:
        fact = _fact(rng)
        # one in eight pairs of name and thing is held out, so that no answer can be memorized
        held_out = (FIRST_NAMES.index(fact["name"]) + THINGS.index(fact["thing"])) % 8 == 0
        if held_out == (split != "train"):
            prompt = STATEMENT.format(**fact) + QUESTION
            rows.append({"prompt": prompt, "completion": ANSWER.format(**fact)})
    return rows


# {data set that `--data` can name: function (split, n) -> n rows}
BUILTIN = {"notes": lambda split, n: notes(n, SPLITS.index(split))[0], "questions": questions}
RECIPES = {  # default flags of `minilora train` for a data set
    "questions": "--iters 200 --learning-rate 4e-3 --batch-size 16 --mask-prompt "
    "--target-modules all-linear"
}

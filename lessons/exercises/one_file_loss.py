"""one-file-loss: compute the loss of the answers.

rows is a list of (prompt, answer), two texts of ASCII letters. All prompts have the same length,
and so have all answers. A token is a byte of the text, and 255 ends a text: the tokens of a row are
those of the prompt, those of the answer, and 255. `forward(adapters, base, tokens, config)` takes
tokens (N, T) and returns the logits (N, T, V) of the next tokens.

Return the mean of −log softmax(logits)[token], with the natural logarithm, over the tokens of the
answers with their ends (255): a number. The tokens of the prompts are inputs only.
"""

import numpy as np

from minilora.course.outcome import close
from minilora.course.students.exercises import load

CASES = {"count": range(1, 4), "prompt": range(1, 5), "answer": range(1, 5)}
HIDDEN = {"count": range(4, 6), "prompt": range(5, 9), "answer": range(5, 8)}


def arguments(rng, count, prompt, answer):
    make = load()["one-file-forward"].checks.make_model
    adapters, base, config = make(rng, 1, 2, 2, vocab=256)

    def text(length):
        return "".join(rng.choice(list("abcdefgh"), length))

    return adapters, base, [(text(prompt), text(answer)) for _ in range(count)], config


def tolerance(*_):
    """float64: logits of at most some 100, computed as in the reference."""
    return 2.0**-30


def property_a_guess(function, adapters, base, rows, config):
    """if all logits are equal, the loss is log V"""
    flat = base | {"model.norm": 0 * base["model.norm"]}
    close(function(adapters, flat, rows, config), np.log(256), 2.0**-40)


def property_rows_twice(function, adapters, base, rows, config):
    """the same rows twice have the same loss"""
    once, twice = (float(function(adapters, base, many, config)) for many in (rows, rows + rows))
    close(twice, once, 2.0**-30)

"""one-file-loss: compute the loss of the answers.

rows is a list of (prompt, answer), two texts of ASCII letters. All prompts have the same length,
and so have all answers. A token is a byte of the text, and 255 ends a text: the tokens of a row are
those of the prompt, those of the answer, and 255. `forward(adapters, base, tokens, config)` takes
tokens (N, T) and returns the logits (N, T, V) of the next tokens.

Return the mean of −log softmax(logits)[token], with the natural logarithm, over the tokens of the
answers with their ends (255): a number. The tokens of the prompts are inputs only. The result must
be finite for logits of several thousand, too. autograd must be able to differentiate it by
`adapters`: use autograd.numpy, and do not assign into arrays.
"""

import numpy as np

from minilora.course import one_file
from minilora.course.outcome import close
from minilora.course.students.exercises import load

CASES = {"count": range(1, 4), "prompt": range(1, 5), "answer": range(1, 5),
         "large": [False, True]}  # fmt: skip
HIDDEN = {"count": range(4, 6), "prompt": range(5, 9), "answer": range(5, 8)}


def arguments(rng, count, prompt, answer, large):
    make = load()["one-file-forward"].checks.make_model
    adapters, base, config = make(rng, 1, 2, 2, vocab=256)
    if large:
        base["model.norm"] *= 2000

    def text(length):
        return "".join(rng.choice(list("abcdefgh"), length))

    return adapters, base, [(text(prompt), text(answer)) for _ in range(count)], config


def tolerance(adapters, base, *_):
    """float64: logits of at most some ten times the largest weight of the last norm."""
    return 2.0**-34 * float(base["model.norm"].max())


def property_a_guess(function, adapters, base, rows, config):
    """if all logits are equal, the loss is log V"""
    flat = base | {"model.norm": 0 * base["model.norm"]}
    close(function(adapters, flat, rows, config), np.log(256), 2.0**-40)


def property_the_mean_of_rows(function, adapters, base, rows, config):
    """the loss of several rows is the mean of their losses, which differ"""
    rows = [*rows, (rows[0][0], "z" * len(rows[0][1]))]
    each = [float(function(adapters, base, [row], config)) for row in rows]
    bound = tolerance(adapters, base)
    close(float(function(adapters, base, rows, config)), np.mean(each), bound)
    assert max(each) > min(each) + bound, "all rows have the same loss"


def mistake_log_of_the_softmax(adapters, base, rows, config):
    tokens = np.array([[*(prompt + answer).encode(), 255] for prompt, answer in rows])
    start = len(rows[0][0])
    z = one_file.forward(adapters, base, tokens[:, :-1], config)[:, start - 1 :]
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    return -np.mean(np.log(np.take_along_axis(p, tokens[:, start:, None], axis=-1)))

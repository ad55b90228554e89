"""one-file-generate: continue a text with the likeliest tokens.

The tokens of the prompt, an ASCII text, are its bytes. Append 24 tokens, one after the other: each
is the one with the largest logit of the next token. `forward(adapters, base, tokens, config)` takes
tokens (1, T) and returns the logits (1, T, V). Then keep the tokens after the prompt and before the
first 255, which ends a text, and return them as a str: `bytes(…).decode(errors="replace")`.
"""

import numpy as np

from minilora.course.one_file import forward
from minilora.course.students.exercises import load

CASES = {
    "length": range(2, 6),
    "letters": [False, True],
    "end": [False, True],
    "spaces": [False, True],
}
HIDDEN = {"length": range(6, 10)}


def arguments(rng, length, letters, end, spaces):
    make = load()["one-file-forward"].checks.make_model
    adapters, base, config = make(rng, 1, 2, 2, vocab=256)
    # a token is not always followed by itself
    base["model.norm"] *= rng.choice([-1, 1], base["model.norm"].size)
    if letters:  # else many bytes are not UTF-8
        base["model.embed_tokens"][97:123] *= 4
    if spaces:  # a text can begin and end with one
        base["model.embed_tokens"][32] *= 6
    if end:
        base["model.embed_tokens"][255] *= 6
    return adapters, base, "".join(rng.choice(list("abcdefgh"), length)), config


def property_the_likeliest_first(function, adapters, base, prompt, config):
    """the text has at most 24 characters and begins with the likeliest token after the prompt"""
    text = function(adapters, base, prompt, config)
    assert isinstance(text, str) and len(text) <= 24, f"{text!r} is not a text of 24 characters"
    token = int(forward(adapters, base, np.array([list(prompt.encode())]), config)[0, -1].argmax())
    if token == 255:
        assert not text, "255 ends the text"
    elif token < 128:
        assert text.startswith(chr(token)), f"{text!r} does not begin with {chr(token)!r}"
    else:  # the beginning of another character, or none
        assert text and not text[0].isascii(), f"{text!r} does not begin with the byte {token}"


def mistake_end_kept(adapters, base, prompt, config):
    tokens = list(prompt.encode())
    for _ in range(24):
        tokens.append(int(forward(adapters, base, np.array([tokens]), config)[0, -1].argmax()))
        if tokens[-1] == 255:
            break
    return bytes(tokens[len(prompt) :]).decode(errors="replace")

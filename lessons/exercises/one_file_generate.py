"""one-file-generate: continue a text with the likeliest tokens.

The tokens of the prompt, an ASCII text, are its bytes. Append 24 tokens, one after the other: each
is the one with the largest logit of the next token. `forward(adapters, base, tokens, config)` takes
tokens (1, T) and returns the logits (1, T, V). Then keep the tokens after the prompt and before the
first 255, which ends a text, and return them as a str: `bytes(…).decode(errors="replace")`.
"""

from minilora.course.students.exercises import load

CASES = {"length": range(2, 6), "letters": [False, True], "end": [False, True]}
HIDDEN = {"length": range(6, 10)}


def arguments(rng, length, letters, end):
    make = load()["one-file-forward"].checks.make_model
    adapters, base, config = make(rng, 1, 2, 2, vocab=256)
    if letters:  # else many bytes are not UTF-8
        base["model.embed_tokens"][97:123] *= 4
    if end:
        base["model.embed_tokens"][255] *= 6
    return adapters, base, "".join(rng.choice(list("abcdefgh"), length)), config


def property_at_most_24(function, adapters, base, prompt, config):
    """the text has at most 24 characters"""
    assert len(function(adapters, base, prompt, config)) <= 24

"""The task of the studies on rewards: after a sentence of the base's language, name the place.

    Ada keeps a pink kite in the barn. In the barn.

The base answers with one of its three echoes, about equally often: who, what or where. The reward
is 1 if the answer names the place, in any form, and 0 otherwise.
"""

from typing import NamedTuple

import numpy as np

import minilora
from minilora.batching import Example, collate
from minilora.data import tasks
from minilora.lessons.helpers import rollouts

OWN = " In the {place}."  # the base's own form
FORMS = {"own": OWN, "near": " At the {place}.", "foreign": " Where? {place}."}
TOKENS = 14  # of an answer at most: enough for all FORMS
CHOICE = 4  # the first bytes of an echo, which choose its form: " Who", " Wha" or " In "


class Sentence(NamedTuple):
    """A sentence as token ids, and what it says."""

    prompt: list
    fact: dict  # its name, colour, thing and place

    def answer(self, form):
        """Return the token ids of an answer of this form, a text with the fields of `fact`."""
        return list(form.format(**self.fact).encode())


def rows(split, n, seed=0):
    """Return n rows whose sentences are those of the questions' split; all have equal length."""
    found = []
    for row in tasks.questions(split, n, seed):
        sentence = row["prompt"].removesuffix(tasks.QUESTION)
        name, what, place = row["completion"].strip(" .").split(", ")
        colour, thing = what.split()
        fact = {"name": name, "colour": colour, "thing": thing, "place": place}
        found.append(Sentence(list(sentence.encode()), fact))
    return found


def reward(row, answer):
    """Return 1.0 if the answer (token ids) names the place of the row, else 0.0."""
    return float(row.fact["place"].encode() in bytes(answer))


def examples(some_rows, form):
    """Return the rows with answers of this form, as examples for `minilora.train`."""
    return [rollouts.as_example(row.prompt, row.answer(form)) for row in some_rows]


def own_text(n, seed=1):
    """Return n notes of the base's language, without the bytes that choose the form of an echo.

    A model that names the place more often has to predict these bytes worse. All other bytes it
    could predict as well as before.
    """
    found = []
    for row in tasks.notes(n, seed)[0]:
        text = row["text"]
        mask = np.ones(len(text) + 1, int)
        for end in (i for i, letter in enumerate(text) if letter == "."):
            if text[:end].rpartition(".")[2].count(" ") > CHOICE:  # a statement, not an echo
                mask[end + 1 : end + 1 + CHOICE] = 0
        found.append(Example([*text.encode(), 255], mask.tolist()))
    return found


def batch_of(some_rows, answers):
    """Return the batch of the rows with these answers."""
    return collate([[rollouts.as_example(r.prompt, a)] for r, a in zip(some_rows, answers)])


def expected_reward(adapters, model, some_rows):
    """Return the mean probability of an answer in one of FORMS, all of which name the place."""
    total = 0.0
    for form in FORMS.values():
        batch = batch_of(some_rows, [row.answer(form) for row in some_rows])
        log_p = rollouts.log_probabilities(adapters, model, batch)
        total += float(np.mean(np.exp(rollouts.of_targets(log_p, batch))))
    return total


def entropies(adapters, model, some_rows, seed=0):
    """Return the entropy of the answers to each row in nats, estimated from one sampled answer.

    The entropy of each token is exact, given the tokens before it.
    """
    prompts = [row.prompt for row in some_rows]
    answers = rollouts.sample(adapters, model, prompts, seed, TOKENS)
    batch = batch_of(some_rows, answers)
    log_p = rollouts.log_probabilities(adapters, model, batch)
    return -rollouts.expected(log_p, log_p, batch)


def divergence(p, q, model, some_rows, seed=0):
    """Return KL(p‖q) of an answer in nats, from answers sampled from p.

    p, q: adapters of the model. Per token, the sum over the vocabulary is exact.
    """
    prompts = [row.prompt for row in some_rows]
    batch = batch_of(some_rows, rollouts.sample(p, model, prompts, seed, TOKENS))
    log_p, log_q = (rollouts.log_probabilities(adapters, model, batch) for adapters in (p, q))
    return float(np.mean(rollouts.expected(log_p, log_p - log_q, batch)))


def own_loss(adapters, model, seed=1):
    """Return the loss on 64 notes of the base's own text, in nats per byte; see `own_text`."""
    return minilora.evaluate(adapters, model, own_text(64, seed), quiet=True)["loss"]

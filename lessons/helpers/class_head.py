"""A new head for classes, on top of a model that was trained to predict tokens.

The head is one matrix W (C, D). It reads the last hidden state of a text's last token. PEFT has the
same head for `task_type="SEQ_CLS"`, where its name is `score`. Here it is one more leaf of the
trained tree: `score.weight`, alone or next to the leaves of an adapter.

Letters: N texts, T tokens, D model width, C classes.
"""

import numpy as np

from minilora import layers
from minilora.config import InputError
from minilora.layers import value_and_grad
from minilora.lessons.helpers.rollouts import begin, descend
from minilora.model import hidden_states, with_adapters
from minilora.tree import without


def pad(texts):
    """Return (tokens (N, T), position of the last token (N,)) of lists of token ids."""
    if not all(len(text) for text in texts):
        raise InputError("a text is empty, so it has no last token to read: leave the text out")
    last = np.array([len(text) - 1 for text in texts])
    tokens = np.zeros((len(texts), last.max() + 1), np.int64)
    for row, text in zip(tokens, texts):
        row[: len(text)] = text  # on the right: attention is causal, so no text sees its padding
    return tokens, last


def last_states(trained, model, texts):
    """Compute the last hidden state of the last token of each text: (N, D)."""
    tokens, last = pad(texts)
    model = with_adapters(without(trained, "score"), model)
    x = hidden_states(model, tokens, np.zeros_like(tokens))
    return x[np.arange(len(texts)), last]


def class_logits(trained, model, texts):
    """Compute the logits (N, C) with the adapters and the head W (C, D) of `trained`."""
    # logits = h Wᵀ, with the state h of the last token
    return layers.matmul(last_states(trained, model, texts), trained["score"]["weight"])


def class_loss(trained, model, texts, classes):
    """Compute the mean cross-entropy of the classes (N,), in nats per text."""
    head = trained["score"]["weight"]
    for label in classes:
        if label not in range(len(head)):  # NumPy would take −1 as the last class
            raise InputError(f"there is no class {label}: number them from 0 to {len(head) - 1}")
    h = last_states(trained, model, texts)
    every = np.ones((1, len(texts)), np.float32)
    return layers.cross_entropy(h[None], head, classes[None], every)


def fit(trained, model, texts, classes, settings):
    """Train the head, and the adapters if there are any; return (trained, losses)."""
    rng = np.random.default_rng(settings.seed)
    state = begin(trained, settings)
    losses = []
    for _ in range(settings.iters):
        some = rng.integers(len(texts), size=settings.batch_size)
        batch = [texts[i] for i in some], classes[some]
        loss, grads = value_and_grad(class_loss)(state.adapters, model, *batch)
        state = descend(state, grads, settings)
        losses.append(float(loss))
    return state.adapters, losses


def probabilities(logits):
    """Compute the softmax of logits (N, C)."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)

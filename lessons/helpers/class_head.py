"""A new head for classes, on top of a model that was trained to predict tokens.

The head is one matrix W (C, D). It reads the last hidden state of a text's last token. PEFT has the
same head for `task_type="SEQ_CLS"`, where its name is `score`. Here it is one more leaf of the
trained tree: `score.weight`, alone or next to the leaves of an adapter.

Letters: N texts, T tokens, D model width, C classes.
"""

import numpy as np

import minilora
from minilora import layers, model
from minilora.layers import value_and_grad
from minilora.optim import adamw_init, clip, get_lr
from minilora.training import update
from minilora.tree import arrays, without


def pad(texts):
    """Return (tokens (N, T), position of the last token (N,)) of lists of token ids."""
    last = np.array([len(text) - 1 for text in texts])
    tokens = np.zeros((len(texts), last.max() + 1), np.int64)
    for row, text in zip(tokens, texts):
        row[: len(text)] = text  # on the right: attention is causal, so no text sees its padding
    return tokens, last


def last_states(trained, base, texts, config):
    """Compute the last hidden state of the last token of each text: (N, D)."""
    adapters = without(trained, "score")
    tokens, last = pad(texts)
    ops = minilora.operations(adapters, base)
    params = model.parameters(adapters, base, ops)
    x = model.hidden_states(params, tokens, np.zeros_like(tokens), config, ops)
    return x[np.arange(len(texts)), last]


def class_logits(trained, base, texts, config):
    """Compute the logits (N, C) with the adapters and the head W (C, D) of `trained`."""
    # logits = h Wᵀ, with the state h of the last token
    return layers.matmul(last_states(trained, base, texts, config), trained["score"]["weight"])


def class_loss(trained, base, texts, classes, config):
    """Compute the mean cross-entropy of the classes (N,), in nats per text."""
    h, every = last_states(trained, base, texts, config), np.ones((1, len(texts)), np.float32)
    return layers.cross_entropy(h[None], trained["score"]["weight"], classes[None], every)


def fit(trained, base, texts, classes, config, settings):
    """Train the head, and the adapters if there are any; return (trained, losses)."""
    rng, state, losses = np.random.default_rng(settings.seed), adamw_init(arrays(trained)), []
    for step in range(settings.iters):
        some = rng.integers(len(texts), size=settings.batch_size)
        batch = [texts[i] for i in some], classes[some]
        loss, grads = value_and_grad(class_loss)(trained, base, *batch, config)
        grads, _ = clip(grads, settings.max_grad_norm)
        trained, state = update(trained, grads, state, get_lr(step, settings), settings)
        losses.append(float(loss))
    return trained, losses


def probabilities(logits):
    """Compute the softmax of logits (N, C)."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)

"""A small convolutional network with batch normalization, for pictures of 16 × 16.

It applies `layers.linear` to the patches of a picture, so LoRA adapts it as it adapts a language
model. Batch normalization has no state: its running statistics are an argument of `forward`, and
the moments of the batch are a result.

Letters: N pictures, H height, W width, C channels, k side of a patch.
"""

import autograd.numpy as np
import numpy as onp
from autograd.extend import defvjp, primitive

from minilora import TrainConfig, layers
from minilora.layers import value_and_grad
from minilora.lessons.helpers.rollouts import descend, log_softmax, refuse_unused
from minilora.training import start
from minilora.tree import get, named_leaves, overlay, set_leaf, unflatten

LAYERS = ((3, 2, 1, 16), (3, 2, 1, 32), (4, 1, 0, 64), (1, 1, 0, 0))  # k, stride, padding, out
EPS = 1e-5


@primitive
def patches(x, k, stride, padding):
    """Return the k × k patches of x (N, H, W, C), as rows: (N, H', W', k·k·C).

    A convolution is a linear layer applied to them.
    """
    x = onp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return onp.concatenate([x[at] for at in _shifts(x.shape, k, stride)], axis=-1)


def _shifts(shape, k, stride):
    """Return, for each (i, j), the slice of the padded picture with pixel (i, j) of all patches."""
    ends = [side - k + 1 for side in shape[1:3]]
    return [
        onp.s_[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i, j in onp.ndindex(k, k)
    ]


def _patches_vjp(y, x, k, stride, padding):
    def vjp(g):
        # ∂L/∂x: each patch's gradient goes back to where its pixels came from, and adds up
        N, H, W, C = x.shape
        dx = onp.zeros((N, H + 2 * padding, W + 2 * padding, C), x.dtype)
        for n, at in enumerate(_shifts(dx.shape, k, stride)):
            dx[at] += g[..., n * C : (n + 1) * C]
        return dx[:, padding : padding + H, padding : padding + W]

    return vjp


defvjp(patches, _patches_vjp)


def batch_norm(x, moments, weight, bias):
    """Normalize x (…, C) with a mean and a variance (C,), then scale and shift it.

    Source: Ioffe and Szegedy 2015, Alg. 1.
    """
    # y = γ·(x − μ)/√(σ² + ε) + β
    return weight * (x - moments["mean"]) / np.sqrt(moments["var"] + EPS) + bias


def moments_of(x):
    """Return the mean and the variance of each channel, over pictures and pixels."""
    mean = np.mean(x, axis=(0, 1, 2))
    return {"mean": mean, "var": np.mean((x - mean) ** 2, axis=(0, 1, 2))}


def forward(adapters, base, pictures, running=None, rng=None):
    """Return (logits (N, classes), moments of each normalized layer by its number).

    running: the moments to normalize with, a tree like `moments`; None: those of the batch.
    """
    params, moments = overlay(base, adapters), {}
    x = pictures[..., None]  # (N, H, W, C)
    for i, (k, stride, padding, _) in enumerate(LAYERS):
        node = params["model"]["layers"][str(i)]
        x = layers.linear(patches(x, k, stride, padding), node["linear"], rng)
        if "norm" in node:
            moments[str(i)] = moments_of(x)
            used = moments[str(i)] if running is None else running[str(i)]
            x = np.maximum(batch_norm(x, used, **node["norm"]), 0)
    return x[:, 0, 0], moments


def loss(adapters, base, batch, running=None, rng=None):
    """Return the mean cross-entropy in nats; batch: (pictures, labels)."""
    return cross_entropy(forward(adapters, base, batch[0], running, rng)[0], batch[1])


def cross_entropy(logits, labels):
    """Return the mean of −log p(label), in nats."""
    return -np.mean(log_softmax(logits)[onp.arange(len(labels)), labels])


def evaluate(adapters, base, batch, running=None):
    """Return the `loss` in nats, the `accuracy`, and the mean `confidence`.

    The confidence is the probability of the likeliest class.
    """
    logits, _ = forward(adapters, base, batch[0], running)
    hit = logits.argmax(axis=-1) == batch[1]
    sure = onp.exp(log_softmax(logits)).max(axis=-1)
    loss = float(cross_entropy(logits, batch[1]))
    return {"loss": loss, "accuracy": float(hit.mean()), "confidence": float(sure.mean())}


def statistics(adapters, base, pictures):
    """Return the moments of all the pictures together, to normalize others with."""
    return forward(adapters, base, pictures)[1]


# --- training


def network(classes, rng):
    """Return a network with random weights."""
    nodes, channels = {}, 1
    for i, (k, _, _, out) in enumerate(LAYERS):
        out = out or classes
        fan_in = k * k * channels
        weight = rng.standard_normal((out, fan_in)) * (2 / fan_in) ** 0.5  # He et al. 2015, Eq. 10
        linear = {"weight": weight.astype("f4")}
        norm = {"weight": onp.ones(out, "f4"), "bias": onp.zeros(out, "f4")}
        nodes[str(i)] = {"linear": linear, "norm": norm}
        channels = out
    linear["bias"] = nodes[str(i)].pop("norm")["bias"]  # of the last layer, which has no norm
    return {"model": {"layers": nodes}}


def low_rank(base, r, lora_alpha, rng, lora_dropout=0.0):
    """Return (adapters, base) as `get_peft_model` does, for the linear layers of this network."""
    adapters = {}
    for path in (f"model.layers.{i}.linear" for i in range(len(LAYERS))):
        out, fan_in = get(base, path)["weight"].shape
        bound = fan_in**-0.5
        node = {
            "lora_A": rng.uniform(-bound, bound, (r, fan_in)).astype("f4"),
            "lora_B": onp.zeros((out, r), "f4"),
            "lora_scaling": lora_alpha / r,
            "lora_dropout": lora_dropout,
        }
        set_leaf(adapters, path, node)
    return adapters, base


def copies(base, *names):
    """Return a tree of copies of the base's leaves whose paths end in one of the names."""
    return unflatten({path: onp.array(w) for path, w in named_leaves(base) if path.endswith(names)})


def fit(adapters, base, batch, config, running=None, augment=None, on_step=None):
    """Fit `adapters` to (pictures, labels); return (adapters, the loss of each step).

    running: the moments to normalize with; None: those of each batch. augment(pictures, rng)
    returns the pictures that a step is trained on. on_step(step, adapters) is called after each
    step, from 1. Raises InputError for a setting without an effect.
    """
    pictures, labels = batch
    refuse_unused(config)
    state = start(adapters, config)
    history = []
    for step in range(config.iters):
        rng = onp.random.default_rng([config.seed, step])
        some = rng.choice(len(labels), min(config.batch_size, len(labels)), replace=False)
        seen = pictures[some]
        if augment:
            seen = augment(seen, rng)
        drawn = seen, labels[some]
        value, grads = value_and_grad(loss)(state.adapters, base, drawn, running, rng)
        state = descend(state, grads, config)
        history.append(float(value))
        if on_step:
            on_step(step + 1, state.adapters)
    return state.adapters, history


def pretrain(batch, classes, seed=0, iters=400):
    """Train a network from random weights; return (base, running), running: its statistics."""
    base = network(classes, onp.random.default_rng(seed))
    config = TrainConfig(iters=iters, batch_size=64, learning_rate=5e-3, seed=seed)
    base, _ = fit(base, base, batch, config)
    return base, statistics({}, base, batch[0])

"""How sure a fine-tuned model is of its answers, and how right, over the number of training rows.

About four minutes of one core. A run is 200 steps of 16 rows on `micro`, all seven projections at
r = 8, whatever the number of rows.
"""

import numpy as np

import minilora
from minilora.data import tasks
from minilora.evaluation.metrics import calibration_error
from minilora.layers import LayerCache
from minilora.lessons.helpers.common import finetune
from minilora.model import hidden_states, logits, with_adapters

ROWS = (16, 32, 64, 128, 512, 4000)
SEEDS = (0, 1, 2, 3, 4)
COSTS = (0.05, 0.2, 0.5)  # of a person who answers, where a wrong answer costs 1
TEMPERATURES = np.geomspace(0.25, 4, 81)
JOBS = [(n, seed) for seed in SEEDS for n in ROWS]


def answers(adapters, model, rows):
    """Greedy answers to all `rows` at once: (logits (N, T, V) on the way, right or not (N,))."""
    words = minilora.load("micro").tokenizer
    prompts, wanted = (
        np.array([words.encode(row[key]) for row in rows]) for key in ("prompt", "completion")
    )  # all prompts have one length, and all completions
    model = with_adapters(adapters, model)
    caches = [LayerCache() for _ in range(model.config.num_hidden_layers)]
    tokens, found = prompts, []
    for _ in range(wanted.shape[1]):
        x = hidden_states(model, tokens, np.zeros_like(tokens), caches)
        found.append(logits(x[:, -1], model))
        tokens = found[-1].argmax(axis=-1)[:, None]
    z = np.stack(found, axis=1)
    return z, (z.argmax(axis=-1) == wanted).all(axis=1)


def confidence(logits, temperature=1.0):
    """p(answer) = Π softmax(z/τ)[likeliest]: the chain rule over the answer's tokens. (N,)"""
    z = np.float64(logits) / temperature
    z -= z.max(axis=-1, keepdims=True)
    return np.exp(-np.log(np.exp(z).sum(axis=-1)).sum(axis=-1))


def fitted(logits, hit):
    """The temperature with the lowest −Σ log p(what happened) on the answers of other rows."""

    def nll(temperature):
        p = np.clip(confidence(logits, temperature), 1e-9, 1 - 1e-9)
        return -np.log(np.where(hit, p, 1 - p)).mean()

    return float(min(TEMPERATURES, key=nll))


def cost(p, hit, person):
    """Mean cost of: answer where 1 − p is below what a person costs, else ask the person."""
    return float(np.where(1 - p < person, ~hit, person).mean())


def run(job):
    n, seed = job
    return scored(finetune(rows=tasks.questions("train", n, seed), seed=seed), n, seed)


def scored(done, n, seed):
    """The row of a run, from fresh rows: 600 to fit the temperature, 1,000 to judge it."""
    temperature = fitted(*answers(done.adapters, done.model, tasks.questions("valid", 600, 1)))
    logits, hit = answers(done.adapters, done.model, tasks.questions("test", 1000, 1))
    row = {
        "n": n, "seed": seed, "train_loss": np.mean([s["loss"] for s in done.history[-10:]]),
        "loss": done.scores["loss"], "token_ece": done.scores["ece"],
        "accuracy": hit.mean(), "temperature": temperature,
    }  # fmt: skip
    for name, p in (("raw", confidence(logits)), ("scaled", confidence(logits, temperature))):
        row |= {f"confidence_{name}": p.mean(), f"ece_{name}": calibration_error(p, hit)}
        row |= {f"brier_{name}": np.mean((p - hit) ** 2)}
        row |= {f"cost_{name}_{person}": cost(p, hit, person) for person in COSTS}
        row |= {f"promised_{name}_{k}": np.minimum(1 - p, k).mean() for k in COSTS}
    return {key: float(value) for key, value in row.items()}

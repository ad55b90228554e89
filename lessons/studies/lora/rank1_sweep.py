"""Rank-1 adapters at four learning rates, read and switched off one projection at a time.

About three minutes of one core. A run is 200 steps of 16 rows of the questions on `micro`, with all
seven projections at r = 1. Then A·x, one number per projection and token, is replaced.
"""

from types import SimpleNamespace

import numpy as np

import minilora
from minilora import LoraConfig, layers
from minilora.config import ALL_LINEAR
from minilora.kernels import fused
from minilora.lessons.helpers.common import batch_of, finetune, questions
from minilora.lora import adapted_paths
from minilora.tree import get

RATES = (5e-3, 1e-2, 2e-2, 4e-2)
SEEDS = (0, 1, 2, 3, 4)
JOBS = [(rate, seed) for rate in RATES for seed in SEEDS]
LORA = LoraConfig(r=1, lora_alpha=2, target_modules=("all-linear",))
LAYERS = (0, 1, 2)
GROUPS = {"attention": "self_attn", "mlp": "mlp"} | {f"layer_{i}": f"layers.{i}." for i in LAYERS}


def test_batch(n=64):
    """Return the batch of n test rows, which all have the same length."""
    return batch_of(questions("test")[:n])


def loss_and_scalars(adapters, model, batch, replaced):
    """Compute (loss of the answers, {path: A·x (B, T)}) of a rank-1 adapter.

    replaced: {path: an array (B, T), or a number} to use instead of A·x.
    """
    paths = {id(get(adapters, path)["lora_A"]): path for path in adapted_paths(adapters)}
    scalars = {}

    def linear(x, node, rng=None):
        if "lora_A" not in node:  # the head
            return layers.linear(x, node, rng)
        path = paths[id(node["lora_A"])]
        z = x @ node["lora_A"][0]  # (B, T)
        scalars[path] = z = np.broadcast_to(replaced.get(path, z), z.shape)
        # h = W₀x + (α/r)·B·z, with z = A·x   (LoRA, Eq. 3, at r = 1)
        update = node["lora_scaling"] * z[..., None] * node["lora_B"][:, 0]
        return layers.matmul(x, node["weight"]) + update.astype(x.dtype)

    ops = SimpleNamespace(**{**vars(fused), "linear": linear})
    return float(minilora.loss(adapters, model._replace(ops=ops), batch)), scalars


def share_of_place(scalars):
    """Return the share of the variance of z (B, T) that the places explain, the mean over all z."""
    return np.mean([z.mean(axis=0).var() / z.var() for z in scalars.values()])


def run(job):
    """Train and read one adapter; return its row."""
    rate, seed = job
    done = finetune(LORA, seed=seed, learning_rate=rate)
    row = {"rate": rate, "seed": seed, "valid_loss": done.scores["loss"]}
    return row | reading(done.adapters, done.model, seed, test_batch())


def reading(adapters, model, seed, batch):
    """Return the losses of test rows with A·x as it is and replaced, and shares of variance."""

    def loss(replaced):
        return loss_and_scalars(adapters, model, batch, replaced)[0]

    row = {}
    row["loss"], scalars = loss_and_scalars(adapters, model, batch, {})
    row["off"] = loss(dict.fromkeys(scalars, 0.0))
    row["constant"] = loss({path: z.mean() for path, z in scalars.items()})
    row["place"] = loss({path: z.mean(axis=0) for path, z in scalars.items()})
    for name, part in GROUPS.items():
        row[f"off_{name}"] = loss({path: 0.0 for path in scalars if part in path})
    for path in scalars:
        _, _, layer, _, name = path.split(".")
        row[f"off_{name}_{layer}"] = loss({path: 0.0})
    fresh, _ = minilora.get_peft_model(model, LORA, seed)
    _, untrained = loss_and_scalars(fresh, model, batch, {})
    row["share_trained"] = share_of_place(scalars)
    row["share_untrained"] = share_of_place(untrained)
    return row


def each_off(row):
    """Return the losses of a row with each projection switched off: (layers, projections)."""
    return np.array([[row[f"off_{name}_{layer}"] for name in ALL_LINEAR] for layer in LAYERS])

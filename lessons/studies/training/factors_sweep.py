"""AdamW and a spectral step on A and B of `micro`, from starts with A multiplied by c.

About five minutes of one core. The study `steps_without_factors` reads it.
"""

from unittest.mock import patch

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.batching import collate
from minilora.config import ALL_LINEAR
from minilora.layers import lora_delta, value_and_grad
from minilora.lessons.helpers.common import finetune, of, scores_of
from minilora.lessons.studies.methods.best_rates_sweep import FRESH, TRIED
from minilora.lora import adapted_paths
from minilora.methods.muon import orthogonalize
from minilora.optim import OPTIMIZERS
from minilora.tree import arrays, flatten, get, overlay, tree_map, unflatten

CONFIG = LoraConfig(r=2, lora_alpha=4, target_modules=ALL_LINEAR)
ONE_RATE = 2e-2  # of AdamW from each c: the best one with its usual momentum at c = 1
NEVER = 1e9  # a max_grad_norm that nothing reaches
# Test losses of the seeds of FRESH with other rounding: `run` in a process that is started with
# OPENBLAS_CORETYPE=Nehalem, so that OpenBLAS uses its kernels for an older processor.
OTHER_KERNELS = {
    "AdamW, β₁ = 0.9": (0.01957, 0.02618, 0.02842, 0.05699, 0.02855, 0.02123, 0.02875, 0.02456),
    "spectral, tuned": (0.06751, 0.05404, 0.01698, 0.01211, 0.01487, 0.00951, 0.01808, 0.0123),
}


def spectral_init(params):
    """Return the state before the first step: momenta of zero."""
    return {"momentum": tree_map(np.zeros_like, params), "step": 0}


def spectral(params, grads, state, learning_rates, train_config):
    """Take one spectral step of the factors; arguments and results are those of `optim.adamw`.

    It is the rule of LoRA-Muon (Cesista et al. 2026), with the momentum of `methods/muon.py`.
    `adam_beta1` is the momentum.
    """
    mu = train_config.adam_beta1
    momentum = tree_map(lambda m, g: mu * m + g, state["momentum"], grads)
    nesterov = tree_map(lambda m, g: mu * m + g, momentum, grads)
    new = {}
    for path in adapted_paths(params):
        A, B = (get(params, f"{path}.{name}") for name in ("lora_A", "lora_B"))
        M_A, M_B = (get(nesterov, f"{path}.{name}") for name in ("lora_A", "lora_B"))
        # With P = (AAᵀ)^(−½) and Q = (BᵀB)^(−½), and orth(USVᵀ) = UVᵀ:
        # B ← B − η·orth(M_B P)·P        A ← A − η·Q·orth(Q M_A)
        # So the two parts of the change of BA, ΔB·A and B·ΔA, have all singular values near η.
        P, Q = inverse_root(A), inverse_root(B.T)
        rate = learning_rates[f"{path}.lora_A"]
        new[f"{path}.lora_A"] = A - rate * Q @ orthogonalize(Q @ M_A)
        new[f"{path}.lora_B"] = B - rate * orthogonalize(M_B @ P) @ P
    return unflatten(new), {"momentum": momentum, "step": state["step"] + 1}


def inverse_root(X):
    """Return (XXᵀ)^(−½) of X (r, n); directions in which X is zero stay zero."""
    U, s, _ = np.linalg.svd(X, full_matrices=False)
    kept = s > 1e-3 * s[0]
    return (U[:, kept] / s[kept]) @ U[:, kept].T


def scaled(adapters, c):
    """Return the adapters with A → c·A and B → B/c, which leaves BA as it is."""
    new = {}
    for path in adapted_paths(adapters):
        node = get(adapters, path)
        new[f"{path}.lora_A"] = np.float32(c) * node["lora_A"]
        new[f"{path}.lora_B"] = node["lora_B"] / np.float32(c)
    return overlay(adapters, unflatten(new))


def mixed(adapters, M):
    """Return the adapters with A → MA and B → BM⁻¹, which leaves BA as it is."""
    new = {}
    for path in adapted_paths(adapters):
        node = get(adapters, path)
        new[f"{path}.lora_A"] = np.float32(M @ node["lora_A"])
        new[f"{path}.lora_B"] = np.float32(node["lora_B"] @ np.linalg.inv(M))
    return overlay(adapters, unflatten(new))


def sgd(params, grads, state, learning_rates, train_config):
    """Take one step of gradient descent; arguments and results are those of `optim.adamw`."""
    rates = unflatten(learning_rates)
    return tree_map(lambda w, g, rate: w - rate * g, params, grads, rates), state


STEPS = {
    "SGD": (lambda params: {}, sgd), "AdamW": OPTIMIZERS["adamw"], "Muon": OPTIMIZERS["muon"],
    "spectral": (spectral_init, spectral),
}  # fmt: skip


def next_change(adapters, name):
    """Return (the loss, the change of all ΔW as one vector) of the first step of STEPS[name]."""
    model, tokenizer = minilora.load("micro")
    rows = data.load_rows("questions", "train")[:32]
    examples, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))
    batch = collate([[example] for example in examples])
    params = arrays(adapters)
    loss, grads = value_and_grad(minilora.loss)(adapters, model, batch)
    init, step = STEPS[name]
    new, _ = step(params, grads, init(params), dict.fromkeys(flatten(params), 1e-3), TrainConfig())
    new = overlay(adapters, new)
    changes = [lora_delta(get(new, p)) - lora_delta(get(adapters, p)) for p in adapted_paths(new)]
    return float(loss), np.concatenate([change.ravel() for change in changes])


def train(optimizer, momentum, c, rate, seed, **settings):
    """Return the Run of "adamw" or "spectral" from the start c·A, B = 0; momentum: `adam_beta1`."""
    adapters, model = minilora.get_peft_model(minilora.load("micro").model, CONFIG, seed)
    settings = {"batch_size": 8, "learning_rate": rate, "adam_beta1": momentum, **settings}
    if optimizer == "spectral":
        settings |= {"optimizer": "muon", "max_grad_norm": NEVER}
    with patch.dict(OPTIMIZERS, muon=(spectral_init, spectral)):  # TrainConfig knows no other name
        return finetune(start=(scaled(adapters, c), model), seed=seed, **settings)


def run(job):
    """Return the row of a run."""
    optimizer, momentum, c, rate, seed = job
    done = train(*job)
    test = scores_of(done.adapters, done.model, data.load_rows("questions", "test"))
    return {
        "optimizer": optimizer, "momentum": momentum, "c": c, "rate": rate, "seed": seed,
        "valid_loss": round(done.scores["loss"], 5), "loss": round(test["loss"], 5),
        "exact_match": test["exact_match"],
    }  # fmt: skip


def of_case(rows, seeds, optimizer, momentum, rate, c=1.0, column="loss"):
    """Return a column of the runs of a case, in the order of the seeds."""
    case = {"optimizer": optimizer, "momentum": momentum, "c": c, "rate": rate}
    return np.array([of(rows, column, seed=seed, **case)[0] for seed in seeds])


def best(rows, optimizer, c=1.0):
    """Return (momentum, rate) with the lowest mean loss on the split valid, over TRIED's seeds."""
    cases = [job[1:4] for job in JOBS if job[0] == optimizer and job[2] == c and job[4] == TRIED[0]]

    def tried(case):
        momentum, c, rate = case
        return of_case(rows, TRIED, optimizer, momentum, rate, c, "valid_loss").mean()

    momentum, _, rate = min(cases, key=tried)
    return momentum, rate


USUAL = 0.9  # AdamW's β₁
CS = (0.25, 1.0, 4.0)
GRIDS = {
    "adamw": {(m, 1.0): (5e-3, 1e-2, 2e-2, 5e-2) for m in (0.3, 0.6, 0.8, USUAL)},
    "spectral": {(m, 1.0): (1e-2, 2e-2, 5e-2, 1e-1) for m in (0.3, 0.6, 0.8, USUAL)},
}
GRIDS["adamw"] |= {(USUAL, c): (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1) for c in (0.25, 4.0)}
JOBS = [
    (optimizer, *case, rate, seed)
    for seed in TRIED
    for optimizer, grid in GRIDS.items()
    for case, rates in grid.items()
    for rate in rates
]


def more(rows):
    """Return the jobs with other seeds: each optimizer at its best, and AdamW from each c."""
    tuned = [(optimizer, *best(rows, optimizer)) for optimizer in GRIDS]
    jobs = [(optimizer, momentum, 1.0, rate) for optimizer, momentum, rate in tuned]
    jobs += [("adamw", USUAL, c, ONE_RATE) for c in CS]
    return [(*job, seed) for job in dict.fromkeys(jobs) for seed in FRESH]

"""AdamW and a spectral step on A and B of `micro`, from starts with A multiplied by c.

About five minutes of one core. The study `steps_without_factors` reads it.
"""

from unittest.mock import patch

import numpy as np

import minilora
from minilora import LoraConfig, data
from minilora.config import ALL_LINEAR
from minilora.lessons.helpers.common import finetune, of, scores_of
from minilora.lessons.studies.methods.best_rates_sweep import FRESH, TRIED
from minilora.lora import adapted_paths
from minilora.methods.muon import orthogonalize
from minilora.optim import OPTIMIZERS
from minilora.tree import get, overlay, tree_map, unflatten

COLUMNS = ("optimizer", "momentum", "c", "rate", "seed")  # of a job
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
        A, B = factors(params, path)
        M_A, M_B = factors(nesterov, path)
        # With P = (AAᵀ)^(−½) and Q = (BᵀB)^(−½), and orth(USVᵀ) = UVᵀ:
        # B ← B − η·orth(M_B P)·P        A ← A − η·Q·orth(Q M_A)
        # So the two parts of the change of BA, ΔB·A and B·ΔA, have all singular values near η.
        P, Q = inverse_root(A), inverse_root(B.T)
        rate = learning_rates[f"{path}.lora_A"]
        new[f"{path}.lora_A"] = A - rate * Q @ orthogonalize(Q @ M_A)
        new[f"{path}.lora_B"] = B - rate * orthogonalize(M_B @ P) @ P
    return unflatten(new), {"momentum": momentum, "step": state["step"] + 1}


def factors(tree, path):
    """Return the A and the B of a path."""
    node = get(tree, path)
    return node["lora_A"], node["lora_B"]


def inverse_root(X):
    """Return (XXᵀ)^(−½) of X (r, n); directions in which X is zero stay zero."""
    U, s, _ = np.linalg.svd(X, full_matrices=False)
    kept = s > 1e-3 * s[0]
    return (U[:, kept] / s[kept]) @ U[:, kept].T


def mixed(adapters, M):
    """Return the adapters with A → MA and B → BM⁻¹, which leaves BA as it is."""
    new = {}
    for path in adapted_paths(adapters):
        A, B = factors(adapters, path)
        new[f"{path}.lora_A"] = np.float32(M @ A)
        new[f"{path}.lora_B"] = np.float32(B @ np.linalg.inv(M))
    return overlay(adapters, unflatten(new))


def sgd(params, grads, state, learning_rates, train_config):
    """Take one step of gradient descent; arguments and results are those of `optim.adamw`."""
    rates = unflatten(learning_rates)
    return tree_map(lambda w, g, rate: w - rate * g, params, grads, rates), state


STEPS = {
    "SGD": (lambda params: {}, sgd), "AdamW": OPTIMIZERS["adamw"], "Muon": OPTIMIZERS["muon"],
    "spectral": (spectral_init, spectral),
}  # fmt: skip


def train(optimizer, momentum, c, rate, seed, **settings):
    """Return the Run of "adamw" or "spectral" from the start c·A, B = 0; momentum: `adam_beta1`."""
    adapters, model = minilora.get_peft_model(minilora.load("micro").model, CONFIG, seed)
    settings = {"batch_size": 8, "learning_rate": rate, "adam_beta1": momentum, **settings}
    if optimizer == "spectral":
        settings |= {"optimizer": "muon", "max_grad_norm": NEVER}
    with patch.dict(OPTIMIZERS, muon=(spectral_init, spectral)):  # TrainConfig knows no other name
        return finetune(start=(mixed(adapters, c * np.eye(2)), model), seed=seed, **settings)


def run(job):
    """Return the row of a run."""
    done = train(*job)
    test = scores_of(done.adapters, done.model, data.load_rows("questions", "test"))
    return {
        **dict(zip(COLUMNS, job)),
        "valid_loss": round(done.scores["loss"], 5), "loss": round(test["loss"], 5),
        "exact_match": test["exact_match"],
    }  # fmt: skip


def of_case(rows, seeds, case, column="loss"):
    """Return a column of the runs of a case (a job without its seed), in the order of the seeds."""
    where = dict(zip(COLUMNS, case))
    return np.array([of(rows, column, seed=seed, **where)[0] for seed in seeds])


def best(rows, optimizer):
    """Return the case from c = 1 with the lowest mean loss on the split valid, of TRIED's seeds."""
    cases = [job[:4] for job in JOBS if job[0] == optimizer and job[2] == 1]
    return min(cases, key=lambda case: of_case(rows, TRIED, case, "valid_loss").mean())


USUAL = 0.9  # AdamW's β₁
CS = (0.25, 1.0, 4.0)
MOMENTA = (0.3, 0.6, 0.8, USUAL)
GRIDS = {
    "adamw": {(m, 1.0): (5e-3, 1e-2, 2e-2, 5e-2) for m in MOMENTA},
    "spectral": {(m, 1.0): (1e-2, 2e-2, 5e-2, 1e-1) for m in MOMENTA},
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
    jobs = [best(rows, optimizer) for optimizer in GRIDS]
    jobs += [("adamw", USUAL, c, ONE_RATE) for c in CS]
    return [(*job, seed) for job in dict.fromkeys(jobs) for seed in FRESH]

"""One factor of LoRA frozen: A alone or B alone on `micro`, at several rates and two ranks.

About five minutes of one core. The study `a_or_b` reads it. The runs of LoRA itself, with the same
settings, are in the sweep `best_rates`.
"""

import numpy as np

import minilora
from minilora import data
from minilora.lessons.helpers.common import best_rates, finetune, lora_adapters, scores_of
from minilora.lessons.studies.methods.best_rates_sweep import FRESH, TRIED, of_seeds
from minilora.model import with_adapters
from minilora.tree import flatten, num_parameters, unflatten

RATES = {"A": (2e-3, 5e-3, 1e-2, 2e-2, 5e-2), "B": (5e-3, 1e-2, 2e-2, 5e-2, 1e-1)}
RANKS = (2, 4)  # LoRA has r = 2; with r = 4, one factor has about as many parameters
ONE_RATE = (5e-3, 2e-2)  # where A and B are compared at one rate


def name_of(factor, r):
    """Return the name of a method in the CSV, for example "B alone, r = 2"."""
    return f"{factor} alone, r = {r}"


def start(factor, r, seed, scale=1):
    """Return (adapters, model) in which "A" or "B" is trained from zero and the other is frozen.

    The frozen factor is a part of the base, which has no gradient. A frozen A is LoRA's A. A frozen
    B is drawn by the same rule, with r inputs: U(−1/√r, 1/√r). scale: multiplies the frozen factor.
    """
    model = minilora.load("micro").model
    rng, bound = np.random.default_rng(seed), r**-0.5
    trained = {}
    frozen = flatten(lora_adapters(model, a=scale, r=r, alpha=2 * r, seed=seed))
    for path, w in list(frozen.items()):
        if path.endswith("lora_B"):
            frozen[path] = (scale * rng.uniform(-bound, bound, w.shape)).astype(np.float32)
        if path.endswith(f"lora_{factor}"):
            trained[path] = np.zeros_like(frozen.pop(path))
    return unflatten(trained), with_adapters(unflatten(frozen), model)


def train(factor, r, rate, seed, scale=1, **settings):
    """Return the Run of one factor, with the settings of the sweep `best_rates`."""
    begin = start(factor, r, seed, scale)
    return finetune(start=begin, seed=seed, batch_size=8, learning_rate=rate, **settings)


def run(job):
    """Return the row of a run, with the columns of the sweep `best_rates`."""
    factor, r, rate, seed = job
    done = train(factor, r, rate, seed)
    test = scores_of(done.adapters, done.model, data.load_rows("questions", "test"))
    return {
        "method": name_of(factor, r), "rate": rate, "seed": seed,
        "trained": num_parameters(done.adapters), "valid_loss": round(done.scores["loss"], 5),
        "loss": round(test["loss"], 5), "exact_match": test["exact_match"],
    }  # fmt: skip


def valid_losses(rows, method, rates):
    """Return the losses on the split valid, (rates, 2), of the seeds of TRIED."""
    return np.array([of_seeds(rows, TRIED, "valid_loss", method, rate) for rate in rates])


CASES = [(factor, r) for factor in RATES for r in RANKS]
JOBS = [(*case, rate, seed) for seed in TRIED for case in CASES for rate in RATES[case[0]]]


def more(rows):
    """Return the jobs with other seeds: at the best rates, and at the rates of ONE_RATE."""
    pairs = []
    for factor, r in CASES:
        rate, _ = best_rates(RATES[factor], valid_losses(rows, name_of(factor, r), RATES[factor]))
        pairs.append((factor, r, rate))
    pairs += [(factor, RANKS[0], rate) for factor in RATES for rate in ONE_RATE]
    return [(*pair, seed) for pair in dict.fromkeys(pairs) for seed in FRESH]

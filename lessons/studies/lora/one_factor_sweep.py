"""One factor of LoRA frozen: A alone or B alone on `micro`, at several rates and two ranks.

About five minutes of one core. The study `a_or_b` reads it. The runs of LoRA itself, with the same
settings, are in the sweep `best_rates`.
"""

import numpy as np

import minilora
from minilora import LoraConfig, data
from minilora.config import ALL_LINEAR
from minilora.lessons.helpers.common import finetune, scores_of
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
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=ALL_LINEAR)
    adapters, model = minilora.get_peft_model(minilora.load("micro").model, config, seed)
    rng, bound = np.random.default_rng(seed), r**-0.5
    trained = {}
    frozen = {}
    for path, leaf in flatten(adapters).items():
        if path.endswith(f"lora_{factor}"):
            trained[path] = np.zeros_like(leaf)
        elif path.endswith("lora_A"):
            frozen[path] = scale * leaf
        elif path.endswith("lora_B"):
            frozen[path] = scale * rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
        else:
            frozen[path] = leaf  # the settings
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


def fresh(rows, method, rate, column="loss"):
    """Return a column of the runs at a rate, of the seeds of FRESH."""
    return of_seeds(rows, FRESH, column, method, rate)


def valid_losses(rows, method, rates):
    """Return the losses on the split valid, (rates, 2), of the seeds of TRIED."""
    return np.array([of_seeds(rows, TRIED, "valid_loss", method, rate) for rate in rates])


def best_rate(rows, factor, r):
    """Return the rate with the lowest mean loss on the split valid, over the seeds of TRIED."""
    losses = valid_losses(rows, name_of(factor, r), RATES[factor])
    return RATES[factor][losses.mean(axis=1).argmin()]


CASES = [(factor, r) for factor in RATES for r in RANKS]
JOBS = [(*case, rate, seed) for seed in TRIED for case in CASES for rate in RATES[case[0]]]


def more(rows):
    """Return the jobs with other seeds: at the best rates, and at the rates of ONE_RATE."""
    pairs = [(*case, best_rate(rows, *case)) for case in CASES]
    pairs += [(factor, RANKS[0], rate) for factor in RATES for rate in ONE_RATE]
    return [(*pair, seed) for pair in dict.fromkeys(pairs) for seed in FRESH]

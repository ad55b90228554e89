"""A network that reads one typeface learns another: what is trained, at which rate.

The study `rates_per_layer` reads it.
"""

import numpy as np

from lessons.helpers import convnet, pictures
from minilora import TrainConfig
from minilora.tree import num_parameters

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = range(8)


def trained(trains, base, seed):
    """What a job trains: a copy of the named leaves, or low-rank factors."""
    if trains == "lora":
        return convnet.low_rank(base, 4, 8, np.random.default_rng(seed))[0]
    names = {"norm": ("norm.weight", "norm.bias"), "head": ("3.linear.weight", "3.linear.bias")}
    return convnet.copies(base, *names.get(trains, ("weight", "bias")))


def run(job, typeface="italic"):
    """The row of a job: (what is trained, rate, decay from layer to layer, seed); 150 steps."""
    trains, rate, decay, seed = job
    base, _ = pictures.reader(seed)
    adapters = trained(trains, base, seed)
    train, test = (pictures.draw(typeface, n, s) for n, s in ((1040, seed), (1040, 99)))
    config = TrainConfig(
        iters=150, batch_size=32, learning_rate=rate, layer_lr_decay=decay, seed=seed
    )
    adapters, _ = convnet.fit(adapters, base, train, config)
    own = convnet.statistics(adapters, base, train[0])
    old = pictures.draw("sans", 1040, 99)
    score = convnet.evaluate(adapters, base, test, own)
    before = convnet.statistics(adapters, base, old[0])
    return {
        "trains": trains, "rate": rate, "decay": decay, "seed": seed,
        "trained": num_parameters(adapters), "loss": score["loss"], "accuracy": score["accuracy"],
        "old_accuracy": convnet.evaluate(adapters, base, old, before)["accuracy"],
    }  # fmt: skip


# Each at every rate; LoRA and everything also with a decay, at three. Eight seeds where the study
# compares, else three.
kinds = ("lora", "norm", "head", "full")
jobs = [(trains, rate, 1.0) for trains in kinds for rate in RATES]
jobs += [(trains, rate, 0.4) for trains in ("lora", "full") for rate in (3e-3, 1e-2, 3e-2)]
compared = [(trains, rate, 1.0) for trains in ("lora", "full") for rate in RATES[1:5]]
compared += [("full", 3e-2, 0.4)]
JOBS = [(*job, seed) for seed in SEEDS for job in (jobs if seed < 3 else compared)]

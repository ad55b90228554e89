"""A network that reads one typeface learns another: what is trained, at which rate.

The study `rates_per_layer` reads it.
"""

import numpy as np

from minilora import TrainConfig
from minilora.lessons.helpers import convnet, pictures
from minilora.tree import num_parameters

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = range(8)


KINDS = {  # what is trained: leaves whose paths end in one of these; LoRA adds its own
    "lora": (), "norm": ("norm.weight", "norm.bias"),
    "head": ("3.linear.weight", "3.linear.bias"), "full": ("weight", "bias"),
}  # fmt: skip


def run(job, typeface="italic"):
    """Return the row of a job: (what is trained, rate, layer_lr_decay, seed); 150 steps."""
    trains, rate, decay, seed = job
    base, _ = pictures.reader(seed)
    if trains == "lora":
        adapters, _ = convnet.low_rank(base, 4, 8, np.random.default_rng(seed))
    else:
        adapters = convnet.copies(base, *KINDS[trains])
    train, test = (pictures.draw(typeface, 1040, s) for s in (seed, 99))
    sans = pictures.draw("sans", 1040, 99)
    config = TrainConfig(150, 32, learning_rate=rate, layer_lr_decay=decay, seed=seed)
    adapters, _ = convnet.fit(adapters, base, train, config)
    new, old = (
        convnet.evaluate(adapters, base, scored, convnet.statistics(adapters, base, own[0]))
        for scored, own in ((test, train), (sans, sans))
    )
    return {
        "trains": trains, "rate": rate, "decay": decay, "seed": seed,
        "trained": num_parameters(adapters), "loss": new["loss"], "accuracy": new["accuracy"],
        "old_accuracy": old["accuracy"],
    }  # fmt: skip


# Each at every rate; LoRA and everything also with a decay, at three. Eight seeds where the study
# compares, else three.
jobs = [(trains, rate, 1.0) for trains in KINDS for rate in RATES]
jobs += [(trains, rate, 0.4) for trains in ("lora", "full") for rate in (3e-3, 1e-2, 3e-2)]
compared = [(trains, rate, 1.0) for trains in ("lora", "full") for rate in RATES[1:5]]
compared += [("full", 3e-2, 0.4)]
JOBS = [(*job, seed) for seed in SEEDS for job in (jobs if seed < 3 else compared)]

"""Lesson 3: one adapter on one base that is stored in eight ways, twelve seeds."""

import numpy as np

import minilora
from minilora import LoraConfig
from minilora.lessons.helpers.codes import in_few_bits
from minilora.lessons.helpers.common import finetune
from minilora.quant.schemes import SCHEMES
from minilora.tree import flatten, unflatten

FEW = {"3 bits": 3, "2 bits": 2}
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
JOBS = [
    (scheme, seed)
    for schemes in (SCHEMES, FEW, ["shuffled"])
    for seed in range(12)
    for scheme in schemes
]


def base(scheme):
    """Return micro, stored in a scheme, rounded to the values of 3 or 2 bits, or shuffled."""
    model, _ = minilora.load("micro")
    if scheme in FEW:
        return in_few_bits(model, FEW[scheme])
    return shuffled(model) if scheme == "shuffled" else minilora.quantize(model, scheme)


def shuffled(model):
    """Return a model with the numbers of each projection in a random order."""
    rng = np.random.default_rng(0)
    leaves = flatten(model.base)
    for path, w in leaves.items():
        if "_proj" in path:
            leaves[path] = rng.permutation(w.ravel()).reshape(w.shape)
    return model._replace(base=unflatten(leaves))


def run(job):
    """Return the scores on held-out questions after 200 steps on a base."""
    scheme, seed = job
    start = minilora.get_peft_model(base(scheme), LORA, seed)
    scores = finetune(start=start, seed=seed).scores
    return {
        "scheme": scheme, "seed": seed, "loss": scores["loss"], "exact_match": scores["exact_match"]
    }  # fmt: skip

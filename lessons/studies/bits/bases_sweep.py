"""Lesson 3: one adapter on one base that is stored in seven ways, twelve seeds."""

import minilora
from minilora import LoraConfig
from minilora.lessons.helpers.codes import in_few_bits
from minilora.lessons.helpers.common import finetune
from minilora.quant.schemes import SCHEMES

FEW = {"3 bits": 3, "2 bits": 2}
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
JOBS = [(scheme, seed) for schemes in (SCHEMES, FEW) for seed in range(12) for scheme in schemes]


def base(scheme):
    """Return micro, stored in a scheme, or rounded to the values of 3 or 2 bits."""
    model, _ = minilora.load("micro")
    return in_few_bits(model, FEW[scheme]) if scheme in FEW else minilora.quantize(model, scheme)


def run(job):
    """Return the scores on held-out questions after 200 steps on a base."""
    scheme, seed = job
    start = minilora.get_peft_model(base(scheme), LORA, seed)
    scores = finetune(start=start, seed=seed).scores
    return {
        "scheme": scheme, "seed": seed, "loss": scores["loss"], "exact_match": scores["exact_match"]
    }  # fmt: skip

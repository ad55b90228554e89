"""Norms and biases, alone or with LoRA, at several rates on `micro`.

The studies `norms_and_biases` and `rates_per_layer` read it.
"""

import minilora
from lessons.helpers.common import finetune, notes_loss
from minilora import LoraConfig, MethodConfig
from minilora.methods.replaced import also_train
from minilora.tree import num_parameters

ALONE = {
    "lora": LoraConfig(r=2, lora_alpha=4, target_modules=("all-linear",)),
    "norm": MethodConfig("norm"), "bias": MethodConfig("bitfit"),
}  # fmt: skip
COMPARED_DECAYS = ((1e-2, 1.0), (2e-2, 1.0), (2e-2, 0.7), (2e-2, 0.4))  # rate, decay
SCALES = (0.1, 1.0, 10.0)  # of the rate, for what is trained with low-rank factors
SEEDS = range(8)


def run(job, iters=150):
    """The row of a job: (what is trained, rate, scale of the rest, decay between layers, seed).

    `lora`, `norm`, `bias` alone, or `lora+norm`, `lora+bias`: fine-tuned on the questions, then the
    held-out loss and the loss on the base's own text, in nats per token.
    """
    trains, rate, scale, decay, seed = job
    base = minilora.load("micro").base
    first, _, group = trains.partition("+")
    adapters, _ = minilora.get_peft_model(base, ALONE[first], seed)
    adapters = also_train(adapters, base, [group] if group else [])
    done = finetune(
        start=(adapters, base), seed=seed, iters=iters, learning_rate=rate,
        also_train_lr_scale=scale, layer_lr_decay=decay,
    )  # fmt: skip
    return {
        "trains": trains, "rate": rate, "scale": scale, "decay": decay, "seed": seed,
        "trained": num_parameters(done.adapters), "loss": done.scores["loss"],
        "exact_match": done.scores["exact_match"],
        "notes": notes_loss(done.adapters, base, 100),
    }  # fmt: skip


# LoRA at two rates; norms or biases with it at three scales; two decays at two rates. Then what
# the studies compare, with more seeds, and norms and biases alone at two rates.
both = [(f"lora+{group}", 1e-2, scale, 1.0) for group in ("norm", "bias") for scale in SCALES]
decays = [("lora", rate, 1.0, decay) for decay in (1.0, 0.7, 0.4) for rate in (1e-2, 2e-2)]
alone = [(trains, rate, 1.0, 1.0) for trains in ("norm", "bias") for rate in (1e-2, 1e-1)]
compared = [("lora", rate, 1.0, decay) for rate, decay in COMPARED_DECAYS] + both
JOBS = [
    *((*job, seed) for seed in SEEDS[:3] for job in decays + both),
    *((*job, seed) for seed in SEEDS[3:] for job in compared),
    *((*job, seed) for seed in SEEDS for job in alone),
]

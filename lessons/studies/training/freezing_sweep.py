"""Norms and biases, alone or with LoRA, at several rates on `micro`.

The studies `norms_and_biases` and `rates_per_layer` read it.
"""

import minilora
from minilora import LoraConfig, MethodConfig
from minilora.lessons.helpers.common import finetune, notes_loss
from minilora.methods.replaced import also_train
from minilora.tree import num_parameters

ALONE = {
    "lora": LoraConfig(r=2, lora_alpha=4, target_modules=("all-linear",)),
    "norm": MethodConfig("norm"), "bias": MethodConfig("bitfit"),
}  # fmt: skip
SCALES = (0.1, 1.0, 10.0)  # of the rate, for what is trained with low-rank factors
SEEDS = range(8)


def run(job, iters=150):
    """Return the row of a job: (what is trained, rate, scale of the rest, layer_lr_decay, seed).

    `lora`, `norm`, `bias` alone, or `lora+norm`, `lora+bias`: fine-tuned on the questions, then the
    held-out loss and the loss on the base's own text, in nats per token.
    """
    trains, rate, scale, decay, seed = job
    model, _ = minilora.load("micro")
    first, _, group = trains.partition("+")
    adapters, _ = minilora.get_peft_model(model, ALONE[first], seed)
    adapters = also_train(adapters, model.base, [group] if group else [])
    settings = {"also_train_lr_scale": scale, "layer_lr_decay": decay, "iters": iters}
    done = finetune(start=(adapters, model), seed=seed, learning_rate=rate, **settings)
    return {
        "trains": trains, "rate": rate, "scale": scale, "decay": decay, "seed": seed,
        "trained": num_parameters(done.adapters), "loss": done.scores["loss"],
        "exact_match": done.scores["exact_match"],
        "notes": notes_loss(done.adapters, model, 100),
    }  # fmt: skip


# LoRA at two rates and three decays; norms or biases with it at three scales; norms and biases
# alone at two rates. What the studies compare has eight seeds, the rest has three.
both = [(f"lora+{group}", 1e-2, scale, 1.0) for group in ("norm", "bias") for scale in SCALES]
decays = [("lora", rate, 1.0, decay) for decay in (1.0, 0.7, 0.4) for rate in (1e-2, 2e-2)]
alone = [(trains, rate, 1.0, 1.0) for trains in ("norm", "bias") for rate in (1e-2, 1e-1)]
few = (("lora", 1e-2, 1.0, 0.7), ("lora", 1e-2, 1.0, 0.4))
JOBS = [
    (*job, seed) for seed in SEEDS for job in decays + both + alone if seed < 3 or job not in few
]

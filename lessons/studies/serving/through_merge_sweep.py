"""LoRA trained in five ways, each merged into NF4: through the merge, and four that merge later.

    minilora fetch smollm2
About 40 minutes of one core, half of it for SmolLM2. All seven projections at r = 8. `micro` and
`tiny` learn the questions, SmolLM2 learns tool calls. Every model is scored on the rows of two
held-out splits: the first chooses the learning rate, the second is asserted. The rate of each way
to serve is tuned with seed 0, and `more` runs the other seeds at the best rates.
"""

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers import through_merge, toolcalls
from minilora.lessons.helpers.common import finetune, of

SCHEME = "nf4-dq"
SEEDS = (0, 1, 2, 3, 4)
STEPS = {"smollm2": 24, "tiny": 200, "micro": 200}
RATES = {
    "smollm2": (2e-3, 4e-3),
    "tiny": (4e-3, 8e-3, 1.6e-2),
    "micro": (4e-3, 8e-3, 1.6e-2, 3.2e-2),
}
# {training: {column of the sweep: the 4-bit model that it scores}}
WAYS = {
    "nf4": {
        "apart": "NF4(W), adapter apart (QLoRA)",
        "merged": "trained on NF4(W) = Ŵ, then NF4(Ŵ + ΔW)",
        "into_w": "trained on NF4(W), then NF4(W + ΔW)",
    },
    "dense": {"merged": "trained on W, then NF4(W + ΔW)"},
    "loftq": {"merged": "LoftQ: trained on Q, then NF4(Q + ΔW)"},
    "through": {"merged": "trained through NF4(W + ΔW)"},
    "through_nf4": {"merged": "trained through NF4(Ŵ + ΔW)"},
}
TRAININGS = {
    "smollm2": ("nf4", "dense", "through"),
    "tiny": ("nf4", "dense", "loftq", "through"),
    "micro": tuple(WAYS),
}
JOBS = [
    (name, training, rate, SEEDS[0])
    for name in STEPS
    for training in TRAININGS[name]
    for rate in RATES[name]
]


def best_rate(rows, name, training, way):
    """Return the rate at which a way has the lowest loss on the tuning split, with seed 0."""
    tuned = {"model": name, "training": training, "seed": SEEDS[0]}
    return min(RATES[name], key=lambda rate: of(rows, f"tuning_{way}", rate=rate, **tuned))


def more(rows):
    """Return the jobs of the other seeds, at the best rate of each way to serve."""
    jobs = {
        (name, training, best_rate(rows, name, training, way), seed): None
        for name in STEPS
        for seed in SEEDS[1:]
        for training in TRAININGS[name]
        for way in WAYS[training]
    }
    return list(jobs)


def splits(name):
    """Return the rows to train on, to tune the rate on, and to assert on."""
    if name == "smollm2":
        held_out = toolcalls.rows("valid", 24)
        return toolcalls.rows("train", 480), held_out[:8], held_out[8:]
    return [data.load_rows("questions", split) for split in ("train", "valid", "test")]


def trained(name, training, rate, seed, steps=None):
    """Return the result of `finetune` for a training of WAYS."""
    rows, tuning, _ = splits(name)
    model, _ = minilora.load(name, SCHEME if training in ("nf4", "through_nf4") else "none")
    is_loftq = training == "loftq"
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear",
        init_lora_weights="loftq" if is_loftq else True,
    )  # fmt: skip
    adapters, model = minilora.get_peft_model(model, config, seed, SCHEME if is_loftq else None)
    if training.startswith("through"):
        model = through_merge.through(adapters, model, SCHEME)
    return finetune(
        name=name, rows=rows, held_out=tuning, seed=seed, start=(adapters, model),
        learning_rate=rate, batch_size=2 if name == "smollm2" else 16, iters=steps or STEPS[name],
    )  # fmt: skip


def four_bits(adapters, model):
    """Merge an adapter into the dense (or dequantized) base, and quantize the result."""
    return minilora.quantize(minilora.merge(adapters, model), SCHEME)


def run(job):
    """Return the row of a run: the scores of each way to serve the adapter."""
    return scored(trained(*job), *job)


def scored(done, name, training, rate, seed):
    """Return the row of a run that is done; with seed 0, it has the losses for tuning, too."""
    row = {"model": name, "training": training, "rate": rate, "seed": seed}
    dense, tokenizer = minilora.load(name)
    served = {"merged": ({}, four_bits(done.adapters, done.model))}
    if training == "nf4":
        served["apart"] = done.adapters, done.model
        served["into_w"] = {}, four_bits(done.adapters, dense)
    tuning, test = (
        data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))[0]
        for rows in splits(name)[1:]
    )
    for way in WAYS["nf4"]:
        row |= dict.fromkeys((f"tuning_{way}", way, f"exact_{way}"), "")
        if way in served:
            if seed == SEEDS[0]:
                scores = minilora.evaluate(*served[way], tuning, quiet=True)
                row[f"tuning_{way}"] = scores["loss"]
            scores = minilora.evaluate(*served[way], test, quiet=True)
            row |= {way: scores["loss"], f"exact_{way}": scores["exact_match"]}
    return row

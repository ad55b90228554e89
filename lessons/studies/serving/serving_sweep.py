"""Adapters trained on a dense and on an NF4 base, each served in four ways.

    minilora fetch smollm2
About twenty minutes of one core. All seven projections at r = 8. `micro` and `tiny` learn the
questions in 200 steps of 16 rows, and are scored on held-out rows. SmolLM2 learns 16 tool calls of
the study `a_real_model_calls_tools` by heart in 40 steps of 4 rows, and is scored on these. The
4-bit bases are NF4 with double quantization.
"""

import numpy as np

import minilora
from minilora import TrainConfig, data
from minilora.data.tasks import notes
from minilora.lessons.helpers import toolcalls
from minilora.lessons.helpers.common import finetune
from minilora.lessons.helpers.rollouts import log_softmax
from minilora.lessons.studies.serving.merging_sweep import median_size
from minilora.quant.schemes import error_report

SCHEMES = {"dense": "none", "nf4": "nf4-dq"}
SEEDS = {"smollm2": 3, "tiny": 8, "micro": 8}
STEPS = {"smollm2": 40, "tiny": 200, "micro": 200}
SHORT = (6, 25)  # steps of `micro` on the NF4 base, for smaller updates
JOBS = [
    (name, trained_on, STEPS[name], seed)
    for name, seeds in SEEDS.items()
    for seed in range(seeds)
    for trained_on in SCHEMES
] + [("micro", "nf4", steps, seed) for steps in SHORT for seed in range(8)]


def task(name):
    """Return (rows to train on, rows to score, settings of the training run)."""
    if name == "smollm2":
        rows = toolcalls.rows("train")[:16]
        return rows, rows, {"batch_size": 4, "learning_rate": 2e-3}
    settings = {"batch_size": 16, "learning_rate": 4e-3}
    return data.load_rows("questions", "train"), data.load_rows("questions", "valid"), settings


def own_text(name):
    """Return rows of text that the base knows: its notes, or requests in plain English."""
    if name == "smollm2":
        rows = toolcalls.rows("test")[:32]
        return [{"text": row["messages"][0]["content"]} for row in rows]
    return notes(96, seed=1)[0]


def served(adapters, models):
    """Yield (way, adapters, model) of each way to serve: apart, or merged into 4 bits."""
    for way, model in models.items():
        yield way, adapters, model
        merged = minilora.merge(adapters, model)
        yield f"{way}_merged", {}, minilora.quantize(merged, SCHEMES["nf4"])


def drift(models, examples):
    """Return the mean KL divergence of the NF4 base from the dense one, in nats per token."""
    total, tokens = 0.0, 0
    for example in examples:
        ids = np.array([example.tokens[:-1]])
        logits = [np.float64(minilora.forward({}, model, ids)) for model in models]
        log_p, log_q = map(log_softmax, logits)
        # KL(p, q) = Σ p · (log p − log q)
        total += float(np.sum(np.exp(log_p) * (log_p - log_q)))
        tokens += ids.size
    return total / tokens


def weight_error(models):
    """Return the median of ‖Ŵ − W‖/‖W‖ over the projections."""
    report = error_report(models["dense"].base, models["nf4"].base)
    return float(np.median([row.relative_rmse for row in report]))


def run(job):
    """Train one adapter; return the row of its scores in each way."""
    name, trained_on, steps, seed = job
    train_rows, test_rows, settings = task(name)
    dense, tokenizer = minilora.load(name)
    models = {"dense": dense, "nf4": minilora.load(name, SCHEMES["nf4"]).model}
    done = finetune(
        name=name, scheme=SCHEMES[trained_on], rows=train_rows, held_out=test_rows, seed=seed,
        iters=steps, **settings,
    )  # fmt: skip
    texts, _ = data.encode_rows(own_text(name), tokenizer, TrainConfig())
    row = {
        "model": name, "trained_on": trained_on, "steps": steps, "seed": seed,
        "size": median_size(done.adapters, done.model), "weight_error": weight_error(models),
        "drift": drift(models.values(), texts),
    }  # fmt: skip
    examples, _ = data.encode_rows(test_rows, tokenizer, TrainConfig(mask_prompt=True))
    for way, adapters, model in served(done.adapters, models):
        scores = minilora.evaluate(adapters, model, examples, quiet=True)
        row |= {way: scores["loss"], f"exact_{way}": scores["exact_match"]}
    return row

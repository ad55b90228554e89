"""A few examples: rank, dropout, augmentation, and when to stop (the study `little_data`)."""

import numpy as np

import minilora
from lessons.helpers import convnet, pictures, sounds
from lessons.helpers.common import finetune, scores_of
from minilora import LoraConfig, TrainConfig, data

VARIANTS = (  # r, lora_dropout, augmented
    (8, 0.0, False), (1, 0.0, False), (32, 0.0, False), (8, 0.3, False), (8, 0.0, True),
    (8, 0.3, True),
)  # fmt: skip
SEEDS = (0, 1, 2, 3)
EVERY = 25  # steps


def task(kind, seed):
    """(base, train, valid, test, augment): five examples a class of what the base never met."""
    if kind == "pictures":
        n, draw, base = len(pictures.LETTERS), pictures.draw, pictures.reader(seed)[0]
        splits = [draw("italic", m * n, s) for m, s in ((5, seed), (20, 98), (40, 99))]
        return base, *splits, pictures.shifted
    n, play, base = len(sounds.GESTURES), sounds.play, sounds.listener(seed)[0]
    splits = [play("reed", m * n, s) for m, s in ((5, seed), (50, 98), (100, 99))]
    return base, *splits, sounds.masked


def run(job, iters=200):
    """The row of a job (kind, r, dropout, augmented, seed): the scores on test rows of the last
    step, and of the step that was best on held-out rows."""
    kind, r, dropout, augmented, seed = job
    scores = (questions if kind == "questions" else small)(kind, r, dropout, augmented, seed, iters)
    best = min(scores, key=lambda score: score["valid"])
    return {
        "kind": kind, "r": r, "dropout": dropout, "augmented": int(augmented), "seed": seed,
        **scores[-1], **{f"best_{name}": value for name, value in best.items()},
    }  # fmt: skip


def small(kind, r, dropout, augmented, seed, iters):
    """The scores after every EVERY steps, of pictures or sounds."""
    base, train, valid, test, augment = task(kind, seed)
    rng = np.random.default_rng(seed)
    adapters, _ = convnet.low_rank(base, r, 2 * r, rng, lora_dropout=dropout)
    config = TrainConfig(iters=iters, batch_size=32, learning_rate=1e-2, seed=seed)
    scores = []

    def on_step(step, adapters):
        if step % EVERY == 0:
            own = convnet.statistics(adapters, base, train[0])
            loss = [convnet.evaluate(adapters, base, b, own) for b in (train, valid, test)]
            train_loss, valid_loss, test_loss = (score["loss"] for score in loss)
            scores.append({"step": step, "train": train_loss, "valid": valid_loss,
                           "test": test_loss, "right": loss[2]["accuracy"]})  # fmt: skip

    augment = augment if augmented else None
    convnet.fit(adapters, base, train, config, augment=augment, on_step=on_step)
    return scores


def questions(kind, r, dropout, augmented, seed, iters):
    """The same of `micro` with 64 questions; `right` is exact match."""
    base = minilora.load("micro").base
    config = LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=dropout, target_modules=("all-linear",))
    train = data.load_rows("questions", "train")[64 * seed : 64 * (seed + 1)]
    held_out = data.load_rows("questions", "valid")
    scores = []

    def on_step(_, adapters, state):
        if state["step"] % EVERY == 0:
            splits = (train, held_out[:60], held_out[60:])
            found = [scores_of(adapters, base, rows) for rows in splits]
            train_loss, valid_loss, test_loss = (score["loss"] for score in found)
            scores.append({"step": state["step"], "train": train_loss, "valid": valid_loss,
                           "test": test_loss, "right": found[2]["exact_match"]})  # fmt: skip

    finetune(config, rows=train, seed=seed, on_step=on_step, iters=iters, learning_rate=1e-2)
    return scores


OTHERS = [(kind, *variant) for kind in ("pictures", "sounds") for variant in VARIANTS]
# the questions have no augmentation, and the lessons read three seeds of theirs
ASKED = [("questions", *variant) for variant in VARIANTS if not variant[2] and variant[0] < 32]
JOBS = [(*case, seed) for seed in SEEDS for case in OTHERS + ASKED * (seed < 3)]

"""A few examples: rank, dropout, augmentation, and when to stop (the study `little_data`)."""

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers import convnet, pictures, sounds
from minilora.lessons.helpers.common import finetune, scores_of

PLAIN = "plain, r = 8"
VARIANTS = {  # r, lora_dropout, augmented
    PLAIN: (8, 0.0, 0), "r = 1": (1, 0.0, 0), "r = 32": (32, 0.0, 0), "dropout 0.3": (8, 0.3, 0),
    "augmented": (8, 0.0, 1), "augmented, dropout 0.3": (8, 0.3, 1),
}  # fmt: skip
FOR_QUESTIONS = (PLAIN, "r = 1", "dropout 0.3")
SETTINGS = ("kind", "r", "dropout", "augmented", "seed")
SEEDS = (0, 1, 2, 3)
EVERY = 25  # steps
KINDS = {  # base, new examples, their classes, valid and test rows per class, augmentation
    "pictures": (pictures.reader, pictures.draw, "italic", 26, (20, 40), pictures.shifted),
    "sounds": (sounds.listener, sounds.play, "reed", 8, (50, 100), sounds.masked),
}


def run(job, iters=200):
    """Return the row of a job, its SETTINGS.

    It has the scores of the last step, and those of the step that was best on held-out rows.
    """
    scores = (questions if job[0] == "questions" else small)(*job, iters)
    row, best = dict(zip(SETTINGS, job)), min(scores, key=lambda score: score["valid"])
    for start, found in (("", scores[-1]), ("best_", best)):
        row |= {start + name: found[name] for name in ("step", "train", "valid", "test", "right")}
    return row


def score(step, train, valid, test):
    """Return a row of `scores`: the losses, and of the test rows what is right and how sure."""
    right = test["accuracy" if "accuracy" in test else "exact_match"]
    losses = {"train": train["loss"], "valid": valid["loss"], "test": test["loss"]}
    return {"step": step, **losses, "right": right, "sure": test.get("confidence")}


def small(kind, r, dropout, augmented, seed, iters):
    """Train LoRA on pictures or sounds, five per class; return the scores after every 25 steps."""
    trained, make, style, classes, sizes, augment = KINDS[kind]
    base, _ = trained(seed)
    splits = [make(style, n * classes, s) for n, s in zip((5, *sizes), (seed, 98, 99))]
    rng = np.random.default_rng(seed)
    adapters, _ = convnet.low_rank(base, r, 2 * r, rng, lora_dropout=dropout)
    config = TrainConfig(iters=iters, batch_size=32, learning_rate=1e-2, seed=seed)
    augment = augment if augmented else None
    scores = []

    def on_step(step, adapters):
        if step % EVERY == 0:
            own = convnet.statistics(adapters, base, splits[0][0])
            found = (convnet.evaluate(adapters, base, split, own) for split in splits)
            scores.append(score(step, *found))

    convnet.fit(adapters, base, splits[0], config, augment=augment, on_step=on_step)
    return scores


def questions(kind, r, dropout, augmented, seed, iters):
    """Return the same scores of `micro` with 64 questions; `right` is exact match."""
    model = minilora.load("micro").model
    config = LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=dropout, target_modules=("all-linear",))
    train = data.load_rows("questions", "train")[64 * seed : 64 * (seed + 1)]
    held_out = data.load_rows("questions", "valid")
    scores = []

    def on_step(state, _):
        if state.step % EVERY == 0:
            splits = (train, held_out[:60], held_out[60:])
            found = (scores_of(state.adapters, model, rows) for rows in splits)
            scores.append(score(state.step, *found))

    finetune(config, rows=train, seed=seed, on_step=on_step, iters=iters, learning_rate=1e-2)
    return scores


OTHERS = [(kind, *variant) for kind in KINDS for variant in VARIANTS.values()]
ASKED = [("questions", *VARIANTS[name]) for name in FOR_QUESTIONS]  # three seeds
JOBS = [(*case, seed) for seed in SEEDS for case in (OTHERS + ASKED if seed < 3 else OTHERS)]

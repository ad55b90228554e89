"""measure-seeds: how far apart are five runs that differ in the seed alone?

Train `micro` five times, with the seeds 100 to 104, and hand in the five held-out losses in nats
per token. Do not round them. A run takes six to ten seconds:

    import minilora
    from minilora import LoraConfig, TrainConfig, data

    def held_out_loss(seed):
        model, tokenizer = minilora.load("micro")
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
        settings = TrainConfig(
            iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True, seed=seed
        )
        rows, held_out = (
            data.encode_rows(data.load_rows("questions", split), tokenizer, settings)[0]
            for split in ("train", "valid")
        )
        adapters, model = minilora.get_peft_model(model, lora, seed)
        adapters, _ = minilora.train(adapters, model, rows, settings, quiet=True)
        return minilora.evaluate(adapters, model, held_out, quiet=True)["loss"]

The function of the exercise only returns your numbers. The check compares them with twelve other
seeds, the rows of `none` in the sweep bases_sweep.csv: their mean must be where the mean of five
further seeds is, and their spread must be neither near zero nor several times larger.

Write into REASON the mean and the standard deviation of your numbers. Somebody shows one run with a
loss of 0.008 and says that its recipe is better than this one. What do you answer, and how would
you find out?
"""

import csv
import math
from pathlib import Path

import numpy as np

SWEEP = Path(__file__).parents[1] / "studies" / "bits" / "bases_sweep.csv"
RIGHT = "five runs of this spread"


def compare(mine, theirs, t):
    """Return a word for five numbers, compared with those of a sweep by their logarithms.

    t: of Student, for the distance of the mean of five further seeds from that of the sweep.
    """
    mine = np.asarray(mine, float)
    if mine.shape != (5,) or not (mine > 0).all():
        return "not five positive numbers"
    if len(set(mine)) < 5:
        return "equal numbers"
    if np.isclose(mine[:, None], theirs, rtol=1e-6).any():
        return "numbers of the sweep"
    x, y = np.log(mine), np.log(theirs)
    deviation = np.std(y, ddof=1)
    if abs(x.mean() - y.mean()) > t * deviation * math.sqrt(1 / 5 + 1 / len(y)):
        return "a higher mean" if x.mean() > y.mean() else "a lower mean"
    spread = np.std(x, ddof=1) / deviation  # of five normal numbers, in 99 of 100 cases 0.2 to 2
    return "a smaller spread" if spread < 1 / 6 else "a larger spread" if spread > 4 else RIGHT


def observe(answer):
    """Return a word for this kind of answer."""
    with open(SWEEP, encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    stored = [float(row["loss"]) for row in rows if row["scheme"] == "none"]
    return compare(answer, stored, 4.4)  # 999 of 1000, 11 degrees of freedom


def property_five_runs(function):
    """the five numbers are where those of five further seeds are"""
    found = observe(function())
    assert found == RIGHT, found


def losses():
    """Return the five measured held-out losses, a list."""
    return [0.0097855, 0.0076714, 0.0075715, 0.0124357, 0.0083126]

'''measure-seeds: how far apart are five runs that differ in the seed alone?

Train `micro` five times, with the seeds 100 to 104, and hand in the five held-out losses in nats
per token. Do not round them. A run takes about ten seconds:

    import minilora
    from minilora import LoraConfig, TrainConfig, data

    def held_out_loss(seed):
        config, base, tokenizer = minilora.load("micro")
        settings = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True, seed=seed)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
        rows, held_out = (data.encode_rows(data.load_rows("questions", split), tokenizer, settings)[0]
                          for split in ("train", "valid"))
        adapters, base = minilora.get_peft_model(base, lora, seed)
        adapters, _ = minilora.train(adapters, base, rows, config, settings, quiet=True)
        return minilora.evaluate(adapters, base, held_out, config, quiet=True)["loss"]

The function of the exercise only returns your numbers. The check compares them with twelve other
seeds, the rows of `none` in the sweep bases_sweep.csv: their mean must be where the mean of five
further seeds is, and their spread must be neither zero nor several times larger. Write into REASON
the mean and the standard deviation of your numbers. Somebody shows one run with a loss of 0.008 and
says that it is a better recipe. What do you answer, and how would you find out?
'''

import csv
import math
from pathlib import Path

import numpy as np

SWEEP = Path(__file__).parents[1] / "studies" / "bits" / "bases_sweep.csv"
RIGHT = "five runs of this spread"


def stored():
    """Return the losses of the twelve seeds of the sweep."""
    with open(SWEEP, encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [float(row["loss"]) for row in rows if row["scheme"] == "none"]


def observe(answer):
    """Return a word for this kind of answer. Losses are compared by their logarithms."""
    mine, theirs = np.asarray(answer, float), stored()
    if mine.shape != (5,) or not (mine > 0).all():
        return "not five positive numbers"
    if len(set(mine)) < 5:
        return "equal numbers"
    if np.isclose(mine[:, None], theirs, rtol=1e-6).any():
        return "numbers of the sweep"
    x, y = np.log(mine), np.log(theirs)
    # 4.4: Student's t for 999 of 1000, 11 degrees of freedom
    distance = 4.4 * np.std(y, ddof=1) * math.sqrt(1 / 5 + 1 / len(y))
    if abs(x.mean() - y.mean()) > distance:
        return "a higher mean" if x.mean() > y.mean() else "a lower mean"
    spread = np.std(x, ddof=1) / np.std(y, ddof=1)
    return "a smaller spread" if spread < 1 / 6 else "a larger spread" if spread > 3 else RIGHT


def property_five_runs(function):
    """the five numbers are where five further seeds of the sweep are"""
    assert observe(function()) == RIGHT, observe(function())


def losses():
    """Return the five measured held-out losses, a list."""
    return [0.0101, 0.0102, 0.0103, 0.0104, 0.0105]

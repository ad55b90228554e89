"""Helpers of the lessons: the quick switch, one fine-tuning run, tables, figures, sweeps.

An experiment that takes too long for a lesson is a *sweep*: a module NAME_sweep.py next to its
study, with a CSV of the same name. `python -m minilora.lessons.helpers.sweep NAME` writes the CSV.
Its first line is this command, followed by one row per run.
"""

import csv
import math
import os
import tempfile
import tracemalloc
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from autograd import make_vjp

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.data.tasks import FIRST_NAMES, notes
from minilora.data.tokenizer import ByteTokenizer
from minilora.evaluation import plot
from minilora.evaluation.memory import nbytes
from minilora.layers import value_and_grad
from minilora.optim import adamw_init
from minilora.tree import arrays, named_leaves, overlay

QUICK = bool(os.environ.get("MINILORA_QUICK"))
LESSONS = Path(__file__).parents[1]
FIGURES = Path(os.environ.get("MINILORA_FIGURES", LESSONS.parent / "figures"))
if QUICK or not FIGURES.is_dir():  # a wheel has no figures
    FIGURES = Path(tempfile.gettempdir())
STUDIES = LESSONS / "studies"


def short(full, quick):
    """Return `full`, or `quick` if MINILORA_QUICK is set."""
    return quick if QUICK else full


def figure(name, xlabel, ylabel, title, **options):
    """Open a `plot.figure` in FIGURES: the temporary folder in a quick run, and from a wheel.

    The book sets MINILORA_FIGURES to its own folder: another processor or number of threads adds in
    another order, training magnifies the last bits, and a line of a figure moves by a pixel.
    """
    return plot.figure(FIGURES / f"{name}.png", xlabel, ylabel, title, **options)


def curve_of_seeds(axes, x, results, label, line):
    """Draw the mean of the seeds over x in style `line`, and their range; results: (x, seeds)."""
    results, style = np.asarray(results), plot.LINES[line]
    axes.plot(x, results.mean(axis=1), marker="osD^"[line], markersize=4, label=label, **style)
    low, high = results.min(axis=1), results.max(axis=1)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def show_losses(curves, x, xlabel, title):
    """Show held-out losses over x: means and ranges; curves: {label: losses, (x, seeds)}."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for line, (label, losses) in enumerate(curves.items()):
        curve_of_seeds(axes, x, losses, label, line)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, title=title)
    axes.set_xticks(x, [f"{tick:g}" for tick in x])
    axes.minorticks_off()
    axes.set_ylabel("held-out loss, in nats per token")
    axes.legend(frameon=False)
    plt.show()


@cache
def questions(split="train", mask_prompt=True, max_seq_length=256):
    """Return the examples of a split of the questions; see `TrainConfig` for the two settings."""
    settings = TrainConfig(mask_prompt=mask_prompt, max_seq_length=max_seq_length)
    return data.encode_rows(data.load_rows("questions", split), ByteTokenizer(), settings)[0]


def batch_of(examples):
    """Return the batch (a dict of arrays) whose rows are these examples."""
    return data.collate([[example] for example in examples])


def gradients_of(adapters, model, batch, loss=minilora.loss):
    """Return {path: ∂L/∂(the matrix at this path)} of all matrices of the adapters."""
    return dict(named_leaves(value_and_grad(loss)(adapters, model, batch)[1]))


def bytes_of_step(adapters, model, batch):
    """Return {part: bytes} of a step: its weights, gradients, Adam's averages and activations."""

    def loss(traced):
        return minilora.loss(overlay(adapters, traced), model, batch)

    trained = arrays(adapters)
    make_vjp(loss)(trained)  # the first call also compiles the fast kernels
    tracemalloc.start()  # count the bytes that Python and NumPy allocate, until they are freed
    backward, value = make_vjp(loss)(trained)
    activations, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "weights": nbytes(overlay(model.base, adapters)),
        "gradients": nbytes(backward(np.ones_like(value))),
        "Adam": nbytes(adamw_init(trained)),
        "activations": activations,
    }


def lora_adapters(model, a=1, b=0, r=8, alpha=16, seed=0):
    """Return LoRA for all projections; a and b: 1 for a random A or B, and 0 for zeros.

    The random numbers are uniform in ±1/√(number of columns), for B as for A.
    """
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=("all-linear",))
    rng = np.random.default_rng(seed)
    adapters, _ = minilora.get_peft_model(model, config, rng)  # its B is zero
    for path, w in named_leaves(arrays(adapters)):
        if path.endswith("lora_A"):
            w *= a
        else:
            w += b * rng.uniform(-1, 1, w.shape) / r**0.5
    return adapters


class Run(NamedTuple):
    """The result of a fine-tuning run: the adapter, its model, its steps, its scores."""

    adapters: dict
    model: minilora.Model
    history: list
    scores: dict  # of `minilora.evaluate`, on held-out rows


def finetune(
    config=None, name="micro", scheme="none", rows=None, held_out=None, seed=0, start=None,
    on_step=None, **settings
):  # fmt: skip
    """Fine-tune an embedded base on the questions, and score it on held-out ones.

    config: LoraConfig or MethodConfig (default: LoRA, all projections, r = 8, alpha = 16). start:
    (adapters, model) to train instead of new adapters of `config`. rows, held_out: lists of data
    rows (default: the questions' splits train and valid). on_step: called after each step as
    on_step(state, records); the run ends if it returns true. settings: fields of TrainConfig, over
    200 steps of 16 rows at 4e-3; with `steps_per_eval`, the history has held-out scores as well.
    """
    config = config or LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
    model, tokenizer = minilora.load(name, scheme)
    adapters, model = start or minilora.get_peft_model(model, config, seed)
    defaults = {"iters": 200, "batch_size": 16, "learning_rate": 4e-3, "mask_prompt": True}
    # more batches than there are: each evaluation scores all rows
    defaults |= {"val_batches": 1_000_000, "seed": seed}
    train_config = TrainConfig(**{**defaults, **settings})

    def examples_of(given, split):
        if given is None:
            return questions(split, train_config.mask_prompt, train_config.max_seq_length)
        return data.encode_rows(given, tokenizer, train_config)[0]

    examples, valid = examples_of(rows, "train"), examples_of(held_out, "valid")
    watched = valid if "steps_per_eval" in settings else ()
    state = minilora.start(adapters, train_config)
    history = []
    for state, records in minilora.run(
        state, model, examples, train_config, watched, quiet=not watched
    ):
        history += records
        if on_step and on_step(state, records):
            break
    scores = minilora.evaluate(state.kept, model, valid, quiet=True)
    return Run(state.kept, model, history, scores)


def scores_of(adapters, model, rows):
    """Return the scores of an embedded model on data rows, of their answers only."""
    examples, _ = data.encode_rows(rows, ByteTokenizer(), TrainConfig(mask_prompt=True))
    return minilora.evaluate(adapters, model, examples, quiet=True)


def notes_loss(adapters, model, n=256):
    """Return the loss on n held-out notes, the language of the base, in nats per token."""
    return scores_of(adapters, model, notes(n, seed=1)[0])["loss"]


def held_out_notes(tokenizer, settings, n=256):
    """Return (examples, their entropy): notes of another seed, in nats per target token."""
    rows, nats = notes(n, seed=1)
    examples, _ = data.encode_rows(rows, tokenizer, settings)
    targets = sum(len(e.tokens) - 1 for e in examples)
    # The first byte is no target. It is the initial that tells the first name: log 24 nats.
    return examples, float(nats.sum() - n * math.log(len(FIRST_NAMES))) / targets


def transformers_logits(folder, ids):
    """Return {"transformers": its logits with the model of a folder}; {} if it is not installed."""
    if not (find_spec("torch") and find_spec("transformers")):
        return {}
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {"transformers": model(torch.tensor(ids)).logits.detach().numpy()}


def table(header, rows):
    """Print rows of cells in columns, numbers to the right; cells are strings or whole numbers."""
    rows = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip())


def csv_of(name):
    """Return the path of the CSV of a sweep, NAME_sweep.csv next to its study."""
    return next(STUDIES.glob(f"*/{name}_sweep.csv"))


def read_sweep(name):
    """Read the rows of the sweep NAME as dicts, numbers as floats."""
    with open(csv_of(name), newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [{key: number(value) for key, value in row.items()} for row in rows]


def number(text):
    """Return the text as a float if it is one, or unchanged."""
    try:
        return float(text)
    except ValueError:
        return text


def of(rows, column, /, **where):
    """Return a column of the rows of a sweep whose other columns equal `where`: one per seed."""
    found = [row[column] for row in rows if all(row[key] == value for key, value in where.items())]
    assert found, where
    return found


def best_rates(rates, losses):
    """Return the best rate of a grid, and that of a parabola through it and its two neighbours.

    losses: (rates, seeds). Rates and losses are in logarithms, the losses averaged over the seeds.
    """
    x, y = np.log(rates), np.log(losses).mean(axis=1)
    i = y.argmin()
    assert 0 < i < len(y) - 1, "the best rate must lie between two rates that were tried"
    a, b, _ = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    return rates[i], math.exp(-b / (2 * a))  # the parabola is lowest at −b/(2a)


def spread(values, digits=2):
    """Return the text "mean (least to most)"."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def deviation(values, digits=3):
    """Return the text "mean ± standard deviation"."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


# ------------------------------------------------------------------------- what the seeds show

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not shown either way"


class Interval(NamedTuple):
    """A mean, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def interval(differences, level=0.95):
    """Return the mean of paired differences and its t-interval.

    differences: one number per seed. The interval is mean ± t·s/√n (Student 1908), where s is the
    standard deviation of the n differences.
    """
    mean, n = np.mean(differences), len(differences)
    half = student(level, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)
    return Interval(float(mean), float(mean - half), float(mean + half))


@cache
def student(level, degrees):
    """Return the t for which a Student variable lies between −t and t with probability `level`."""
    # with t = √ν·tan θ, the density of θ is proportional to cos θ to the power ν − 1
    angles = np.linspace(0, math.pi / 2, 100_001)
    mass = np.cumsum(np.cos(angles) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(angles[np.searchsorted(mass, level * mass[-1])])


def verdict(differences, above=0.0, below=math.inf, level=0.95):
    """Return what paired differences say about the claim "their mean is between above and below".

    HOLDS: the whole interval is between. FAILS: the whole interval is outside. OPEN: neither. The
    claim "no difference" cannot be shown; "a difference of less than x" can, from −x to x.
    """
    _, low, high = interval(differences, level)
    if low > above and high < below:
        return HOLDS
    return FAILS if high < above or low > below else OPEN


def claim(sentence, differences, above=0.0, below=math.inf, times=False, digits=3):
    """Print a claim, the interval of its paired differences and the verdict; return the verdict.

    times: the differences are logarithms of ratios, and the ratios are printed.
    """
    found = verdict(differences, above, below)
    mean, low, high = (math.exp(x) if times else x for x in interval(differences))
    unit = " times" if times else ""
    print(f"{sentence}: {mean:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f}),", end=" ")
    print(f"{len(differences)} seeds: {found}")
    return found


def rank_correlation(x, y):
    """Return Spearman's correlation, that of the ranks, of values without ties."""
    return float(np.corrcoef(*(np.argsort(np.argsort(z)) for z in (x, y)))[0, 1])


def reach(seeds, share):
    """Return how far from the mean of some seeds this share of further seeds is: t·s·√(1 + 1/n)."""
    n = len(seeds)
    return student(share, n - 1) * np.std(seeds, ddof=1) * math.sqrt(1 + 1 / n)


def further_seeds(seeds, share):
    """Return (least, most): where this share of further runs is, given the results of some seeds.

    The results are positive, and their logarithms are taken as normal.
    """
    x = np.log(seeds)
    half = reach(x, share)
    with np.errstate(over="ignore"):  # two seeds that are far apart exclude no number
        return np.exp(x.mean() - half), np.exp(x.mean() + half)


def belongs(again, seeds, other=()):
    """Return whether a run that is done again agrees with the runs of its case in a sweep.

    The same machine repeats a run. Another processor or number of threads adds in another order,
    and training magnifies the last bits: there, the run counts like one more seed. So `again` must
    be where 99 of 100 further seeds are. It must also be nearer to the mean of its own case than
    to that of `other`, the runs from which the lesson tells it apart.
    """
    distance = abs(again - np.mean(seeds))
    nearer = len(other) == 0 or distance < abs(again - np.mean(other))
    return bool(distance <= reach(seeds, 0.99) and nearer)


def agrees(again, seeds, other=()):
    """Return whether the logarithms of positive results agree, as `belongs` says."""
    return belongs(np.log(again), np.log(seeds), np.log(other))

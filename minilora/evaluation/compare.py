"""The whole family on one base and one task: what each method costs, learns and forgets.

    minilora compare

Methods that have a size (a rank, a width, a number of virtual tokens) get the one whose count of
parameters is nearest to the budget; the others are as large as they are. LoftQ is left out: it
mends what quantization breaks, and the base is dense here, so that full fine-tuning can take part.

A run is `run_one(job)`, a function of a row of plain values, so that a list of jobs can be mapped
over any `concurrent.futures` executor: processes here, a cluster's elsewhere.
"""

import io
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..config import ALL_LINEAR, LoraConfig, MethodConfig, TrainConfig, require
from ..data.rows import held_out_notes, load_rows, prepare
from ..formats.checkpoint import WEIGHTS, save_adapter
from ..formats.pretrained import load
from ..kernels import threads
from ..methods import compose, starts
from ..methods.methods import METHODS
from ..optim import adamw_init
from ..train import train
from ..tree import count, nbytes
from .metrics import evaluate
from .plot import comparison

BUDGET = 5472  # micro's seven projections at r = 2
THREAD_COUNTS = (
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)  # fmt: skip
NUMBERS = ("trained", "adapter_bytes", "optimizer_bytes", "step_ms", "loss", "exact_match",
           "notes_before", "notes_after")  # fmt: skip


class Entry(NamedTuple):
    """A row of the table: a method, its learning rate, and the field that is its size if any."""

    method: str
    rate: float
    size: str = ""
    start: str | None = None  # of A and B
    loraplus_lr_ratio: float = 1.0


# The rates come from a sweep of one seed: the lowest loss on the split `valid` after 200 steps at
# the budget, over 1, 2 and 5 times powers of ten until the next ones on both sides were worse
# (`Job.rate`, `Job.split`). Virtual tokens hardly care: prompt is within 0.06 from 5e-3 to 1.
TABLE = {
    "lora": Entry("lora", 1e-2, "r"),
    "lora+": Entry("lora", 1e-2, "r", loraplus_lr_ratio=4),
    "pissa": Entry("lora", 1e-2, "r", start="pissa"),
    "dora": Entry("dora", 2e-2, "r"),
    "bottleneck": Entry("bottleneck", 5e-2, "bottleneck_size"),
    "prefix": Entry("prefix", 5e-1, "num_virtual_tokens"),
    "prompt": Entry("prompt", 2e-2, "num_virtual_tokens"),
    "p-tuning": Entry("p-tuning", 1e-1),
    "ia3": Entry("ia3", 5e-1),
    "bitfit": Entry("bitfit", 1e-1),
    "norm": Entry("norm", 1e-1),
    "head": Entry("head", 2e-1),
    "full": Entry("full", 5e-3),
}


class Job(NamedTuple):
    """One run of one method. `rate` None is the table's."""

    method: str
    seed: int = 0
    iters: int = 200
    budget: int = BUDGET
    model: str = "micro"
    rate: float | None = None
    split: str = "test"


def run_one(job):
    """The row of a job: plain numbers by name.

    `trained` parameters, `adapter_bytes` in its file, `optimizer_bytes` of Adam's two moments,
    `step_ms` (median), `loss` (nats a target token) and `exact_match` on the split, and the loss on
    the base's own text, `notes_before` and `notes_after`. A job gives the same row each time, but
    for the time.
    """
    entry, (config, base, words) = TABLE[job.method], load(job.model)
    settings = TrainConfig(
        iters=job.iters, batch_size=16, learning_rate=job.rate or entry.rate, mask_prompt=True,
        seed=job.seed, loraplus_lr_ratio=entry.loraplus_lr_ratio,
    )  # fmt: skip
    method = sized(entry, base, job.budget)
    adapters, frozen = start(entry, base, method, job.seed)
    examples, held_out = (
        prepare(load_rows("questions", split), words, settings)[0] for split in ("train", job.split)
    )
    notes, _ = held_out_notes(words, settings)
    with redirect_stderr(io.StringIO()):  # a progress bar a process would be too many
        adapters, history = train(adapters, frozen, examples, config, settings)
    score = evaluate(adapters, frozen, held_out, config)
    return {
        "method": job.method,
        "seed": job.seed,
        "trained": count(adapters),
        "adapter_bytes": file_bytes(adapters, frozen, method, job.model),
        "optimizer_bytes": nbytes(adamw_init(adapters)),
        "step_ms": 1e3 * float(np.median([row["seconds"] for row in history])),
        "loss": score["loss"],
        "exact_match": score["exact_match"],
        "notes_before": evaluate({}, base, notes, config)["loss"],
        "notes_after": evaluate(adapters, frozen, notes, config)["loss"],
    }


def config_of(entry, size):
    """The LoraConfig or MethodConfig of a table's row; `size` counts only if the method has one."""
    if entry.size == "r":
        return LoraConfig(
            r=size, lora_alpha=2 * size, target_modules=ALL_LINEAR,
            use_dora=entry.method == "dora", init_lora_weights=entry.start or True,
        )  # fmt: skip
    return MethodConfig(entry.method, **({entry.size: size} if entry.size else {}))


def start(entry, base, config, seed=0):
    """(adapters, frozen) of a table's row at step 0."""
    init = starts.init if entry.start else METHODS[entry.method]
    return init(base, config, np.random.default_rng(seed))


def sized(entry, base, budget):
    """The config whose count of trained parameters is nearest to the budget.

    The count grows by the same number with every unit of size, so two of them give the rest.
    """
    one, two = (count(start(entry, base, config_of(entry, size))[0]) for size in (1, 2))
    size = 1 + round((budget - one) / (two - one)) if entry.size else 1
    return config_of(entry, max(1, size))


def file_bytes(adapters, frozen, config, model):
    """Bytes of the adapter's tensors in their file, its header included."""
    with TemporaryDirectory() as folder:
        save_adapter(folder, adapters, frozen, config, model)
        return (Path(folder) / WEIGHTS).stat().st_size


def jobs(methods, seeds, iters, budget=BUDGET):
    """A job for every method and seed. InputError for a method that the table does not have."""
    for method in methods:
        require(method in TABLE, f"--methods {method} is not one of {', '.join(TABLE)}")
    require(seeds >= 1, f"--seeds must be a whole number from 1, got {seeds}")
    require(budget >= 1, f"--budget must be a whole number from 1, got {budget}")
    TrainConfig(iters=iters)  # or its error
    return [Job(method, seed, iters, budget) for method in methods for seed in range(seeds)]


def compare(jobs, executor=None):
    """The rows of the jobs, in their order; `executor` as in `mapped`."""
    return mapped(run_one, jobs, executor)


def mapped(function, jobs, executor=None):
    """[function(job) for each job], in parallel, with a bar.

    executor: any `concurrent.futures.Executor` whose workers can import `function`, such as
    `dask.distributed.Client(…).get_executor()` or `mpi4py.futures.MPIPoolExecutor()`. Default: a
    process for each core, with one thread each, so that step times can be compared.
    """
    if executor is not None:
        return list(tqdm(executor.map(function, jobs), total=len(jobs), unit="run", disable=None))
    processes = ProcessPoolExecutor(threads.THREADS, get_context("spawn"))
    with one_thread(), processes:
        return mapped(function, jobs, processes)


@contextmanager
def one_thread():
    """Processes that start meanwhile read in their environment that they have one thread."""
    before = {name: os.environ[name] for name in THREAD_COUNTS if name in os.environ}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
    try:
        yield
    finally:
        for name in THREAD_COUNTS:
            del os.environ[name]
        os.environ.update(before)


# --- what came out


def by_method(rows):
    """{method: {name: (mean, standard deviation, least, most) over the seeds}}."""
    seeds: dict = {}
    for row in rows:
        seeds.setdefault(row["method"], []).append(row)

    def spread(values):
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return float(np.mean(values)), deviation, min(values), max(values)

    return {
        method: {name: spread([row[name] for row in some]) for name in NUMBERS}
        for method, some in seeds.items()
    }


def markdown(rows):
    """The table, a line a method: means over the seeds, ± their standard deviation."""
    bare = np.mean([row["notes_before"] for row in rows])
    head = (
        "method", "trained parameters", "adapter, bytes", "optimizer, bytes", "step, ms",
        "held-out loss", "exact match, %", f"own text, {bare:.4f} before",
    )  # fmt: skip
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method, row in by_method(rows).items():
        sizes = (f"{row[name][0]:,.0f}" for name in NUMBERS[:3])
        exact = (100 * value for value in row["exact_match"])
        lines.append(
            [method, *sizes, f"{row['step_ms'][0]:.1f}", pair(row["loss"], 4), pair([*exact], 1),
             pair(row["notes_after"], 3)]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def pair(spread, digits):
    """0.0086 ± 0.0004."""
    return f"{spread[0]:.{digits}f} ± {spread[1]:.{digits}f}"


def draw(path, rows):
    """The figure: held-out loss over trained parameters (see `plot.comparison`)."""
    comparison(
        path,
        [
            (f"{method}, {100 * row['exact_match'][0]:.0f} %", row["trained"][0],
             row["loss"][0], row["loss"][2:], bool(TABLE[method].size))
            for method, row in by_method(rows).items()
        ],
    )  # fmt: skip


# --- several adapters together


def interference(pairs, tasks, config):
    """How far adapters disturb each other: each one's task, bare, with it alone, and with all.

    tasks: for each pair its held-out examples. Returns a dict for each, with `bare`, `alone` and
    `together`, each the scores of `evaluate`. Updates that met in no direction would leave
    `together` where `alone` is; the difference of the two losses, in nats, says how much they do.
    """
    base = compose.common_base(pairs)
    everything, summed, _ = compose.combine(pairs, [1.0] * len(pairs))

    def scores(pair, examples):
        ways = {"bare": ({}, base), "alone": pair, "together": (everything, summed)}
        return {way: evaluate(a, frozen, examples, config) for way, (a, frozen) in ways.items()}

    return [scores(pair, examples) for pair, examples in zip(pairs, tasks)]

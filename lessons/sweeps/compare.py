"""The whole family on one base and one task: what each method costs, learns and forgets.

    python lessons/sweeps/compare.py --out figures/compare.png

A method that has a size (a rank, a width, a number of virtual tokens) gets the size whose count of
parameters is nearest to the budget. LoftQ is left out: it reduces the error of quantization, and
the base is dense here, so that full fine-tuning can take part.
"""

import argparse
import io
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import held_out_notes

from minilora import train
from minilora.cli import report_error
from minilora.cli.arguments import Parser
from minilora.config import ALL_LINEAR, InputError, LoraConfig, TrainConfig
from minilora.data.rows import encode_rows, load_rows
from minilora.evaluation.memory import nbytes
from minilora.evaluation.metrics import evaluate
from minilora.evaluation.plot import LINES, figure
from minilora.formats.checkpoint import WEIGHTS, save_adapter
from minilora.formats.pretrained import load
from minilora.kernels import num_threads
from minilora.methods.method import MethodConfig
from minilora.methods.registry import get_peft_model
from minilora.optim import adamw_init
from minilora.tree import arrays, num_parameters

BUDGET = 5472  # micro's seven projections at r = 2


class Entry(NamedTuple):
    """A row of the table: a method, its learning rate, and the field that is its size if any."""

    method: str
    rate: float
    size: str = ""
    start: str | None = None  # of A and B
    loraplus_lr_ratio: float = 1.0


# The rates come from a sweep of one seed: each has the lowest loss on the split `valid` after 200
# steps at the budget, among 1, 2 and 5 times powers of ten.
TABLE = {
    "lora": Entry("lora", 1e-2, "r"), "lora+": Entry("lora", 1e-2, "r", loraplus_lr_ratio=4),
    "pissa": Entry("lora", 1e-2, "r", start="pissa"), "dora": Entry("dora", 2e-2, "r"),
    "vera": Entry("vera", 1e-1, "vera_r"),
    "bottleneck": Entry("bottleneck", 5e-2, "bottleneck_size"),
    "prefix": Entry("prefix", 5e-1, "num_virtual_tokens"),
    "prompt": Entry("prompt", 2e-2, "num_virtual_tokens"),
    "p-tuning": Entry("p-tuning", 1e-1), "ia3": Entry("ia3", 5e-1),
    "bitfit": Entry("bitfit", 1e-1), "norm": Entry("norm", 1e-1),
    "head": Entry("head", 2e-1), "full": Entry("full", 5e-3),
}  # fmt: skip
WITHOUT_RUNS: tuple[str, ...] = ()  # methods that no sweep compares yet


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
    """Run a job; return its row of plain numbers, which follow from the job but for `step_ms`."""
    entry, (config, base, words) = TABLE[job.method], load(job.model)
    settings = TrainConfig(
        iters=job.iters, batch_size=16, learning_rate=job.rate or entry.rate, mask_prompt=True,
        seed=job.seed, loraplus_lr_ratio=entry.loraplus_lr_ratio,
    )  # fmt: skip
    method = sized(entry, base, job.budget)
    examples, held_out = (
        encode_rows(load_rows("questions", split), words, settings)[0]
        for split in ("train", job.split)
    )
    notes, _ = held_out_notes(words, settings)
    notes_before = evaluate({}, base, notes, config)["loss"]
    adapters, base = get_peft_model(base, method, job.seed)  # PiSSA returns another base
    with redirect_stderr(io.StringIO()):  # without the progress bar of each process
        adapters, history = train(adapters, base, examples, config, settings)
    score = evaluate(adapters, base, held_out, config)
    return {
        "method": job.method,
        "seed": job.seed,
        "trained": num_parameters(adapters),  # parameters
        "adapter_bytes": file_bytes(adapters, base, method, job.model),
        "optimizer_bytes": nbytes(adamw_init(arrays(adapters))),
        "step_ms": 1e3 * float(np.median([row["seconds"] for row in history])),
        "loss": score["loss"],  # nats per target token of the split
        "exact_match": score["exact_match"],
        # the losses on the base's own text
        "notes_before": notes_before,
        "notes_after": evaluate(adapters, base, notes, config)["loss"],
    }


def config_of(entry, size):
    """Return the LoraConfig or MethodConfig of an entry, of that size if the method has one."""
    if entry.size == "r":
        return LoraConfig(
            r=size, lora_alpha=2 * size, target_modules=ALL_LINEAR,
            use_dora=entry.method == "dora", init_lora_weights=entry.start or True,
        )  # fmt: skip
    return MethodConfig(entry.method, **({entry.size: size} if entry.size else {}))


def sized(entry, base, budget):
    """Return the config whose count of trained parameters, linear in size, is nearest to budget."""
    if not entry.size:
        return config_of(entry, 1)
    one, two = (
        num_parameters(get_peft_model(base, config_of(entry, size)).adapters) for size in (1, 2)
    )
    return config_of(entry, max(1, 1 + round((budget - one) / (two - one))))


def file_bytes(adapters, base, config, model):
    """Return the size of the adapter's file of tensors in bytes."""
    with TemporaryDirectory() as folder:
        save_adapter(folder, adapters, base, config, model)
        return (Path(folder) / WEIGHTS).stat().st_size


def jobs(methods, seeds, iters, budget=BUDGET):
    """Return a job for every method and seed; raise InputError for a method not in the table."""
    for method in methods:
        if method not in TABLE:
            raise InputError(f"--methods {method} is not one of {', '.join(TABLE)}")
    if seeds < 1:
        raise InputError(f"--seeds must be a whole number from 1, got {seeds}")
    if budget < 1:
        raise InputError(f"--budget must be a whole number from 1, got {budget}")
    TrainConfig(iters=iters)  # or its error
    return [Job(method, seed, iters, budget) for method in methods for seed in range(seeds)]


def compare(jobs, executor=None):
    """Return the rows of the jobs, in their order; `executor` as in `mapped`."""
    return mapped(run_one, jobs, executor)


def mapped(function, jobs, executor=None):
    """Return [function(job), …] of the jobs run in parallel, with a progress bar.

    executor: any `concurrent.futures.Executor` whose workers can import `function`. Default: one
    process per core, with one thread each, so that step times can be compared.
    """
    if executor is None:
        spawn = get_context("spawn")
        with ProcessPoolExecutor(num_threads(), spawn, initializer=one_thread) as processes:
            return mapped(function, jobs, processes)
    return list(tqdm(executor.map(function, jobs), total=len(jobs), unit="run", disable=None))


def one_thread():
    """Have this process compute on one thread, a worker of `mapped`."""
    from minilora.kernels import threads  # also without numba

    threads.THREADS = 1
    threadpool_limits(1)


def by_method(rows):
    """Return {method: {name: (mean, standard deviation, least, most) over the seeds}}."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == method]
        names = some[0].keys() - {"method", "seed"}
        found[method] = {name: spread([row[name] for row in some]) for name in names}
    return found


def spread(values):
    """Return (mean, standard deviation, least, most)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), deviation, min(values), max(values)


def markdown(rows):
    """Return the table, one line per method: means over the seeds, ± their standard deviation."""
    bare = np.mean([row["notes_before"] for row in rows])
    lines = [
        "| method | trained parameters | adapter, bytes | optimizer, bytes | step, ms "
        f"| held-out loss | exact match, % | own text, {bare:.4f} before |",
        "| --- |" + " ---: |" * 7,
    ]
    for method, row in by_method(rows).items():
        sizes = (row[name][0] for name in ("trained", "adapter_bytes", "optimizer_bytes"))
        cells = " | ".join(f"{size:,.0f}" for size in sizes)
        loss, exact, after = row["loss"], row["exact_match"], row["notes_after"]
        lines.append(
            f"| {method} | {cells} | {row['step_ms'][0]:.1f} | {loss[0]:.4f} ± {loss[1]:.4f} "
            f"| {100 * exact[0]:.1f} ± {100 * exact[1]:.1f} | {after[0]:.3f} ± {after[1]:.3f} |"
        )
    return "\n".join(lines)


def draw(path, rows):
    """Draw held-out loss over trained parameters, filled where the budget set the size."""
    title = "held-out loss, exact match beside it; filled: one budget set the size"
    ylabel, color = "held-out loss (nats per target token)", LINES[0]["color"]
    found = sorted(by_method(rows).items(), key=lambda item: item[1]["loss"])
    with figure(path, "trained parameters", ylabel, title, 7.6, 4.8) as axes:
        axes.set(xscale="log", yscale="log")
        axes.margins(x=0.25)
        for i, (method, row) in enumerate(found):
            x, (y, _, least, most) = row["trained"][0], row["loss"]
            fill = color if TABLE[method].size else "white"
            axes.plot([x, x], [least, most], color=color, linewidth=1)
            axes.plot(x, y, marker="o", color=color, markerfacecolor=fill)
            # labels to the right and to the left in turn, so that two close points keep apart
            side, offset = ("left", (6, -3)) if i % 2 else ("right", (-6, -3))
            label = f"{method}, {100 * row['exact_match'][0]:.0f} %"
            axes.annotate(label, (x, y), offset, textcoords="offset points", fontsize=8, ha=side)


def main(argv=None):
    """Print the table and draw the figure; return the exit status: 0, or 2 for an error."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", help="rows of the table; default: all of them")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method")
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--budget", type=int, default=BUDGET, help="parameters, if a size is free")
    parser.add_argument("--out", type=Path, default="compare.png", help="the figure")
    try:
        args = parser.parse_args(argv)
        folder, out = args.out.parent, args.out
        if not (out.suffix == ".png" and os.access(folder, os.W_OK) and not out.is_dir()):
            raise InputError(
                f"--out {out} cannot be written: give a .png file in a folder of yours"
            )
        rows = compare(jobs(args.methods or TABLE, args.seeds, args.iters, args.budget))
        print(markdown(rows))
        draw(out, rows)
    except (InputError, OSError) as error:
        return report_error(error)
    print(f"drawn in {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

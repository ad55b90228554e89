"""The whole family on one base and one task: the size, the rate and a run of each method.

`siblings_sweep.py` is the sweep of these runs. A method that has a size (a rank, a width, a number
of virtual tokens) gets the size whose count of parameters is nearest to the budget. LoftQ is left
out: it reduces the error of quantization, and the base is dense here, so that full fine-tuning can
take part.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import minilora
from minilora import LoraConfig, MethodConfig, data
from minilora.config import ALL_LINEAR
from minilora.formats.checkpoint import WEIGHTS, save_adapter
from minilora.lessons.helpers.common import finetune, notes_loss
from minilora.tree import num_parameters

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
    """One run of one method."""

    method: str
    seed: int = 0
    iters: int = 200
    budget: int = BUDGET


def run(job):
    """Return the row of a job: its parameters, its scores, the losses on the base's own text."""
    entry = TABLE[job.method]
    model, _ = minilora.load("micro")
    done = finetune(
        sized(entry, model, job.budget), held_out=data.load_rows("questions", "test"),
        seed=job.seed, iters=job.iters, learning_rate=entry.rate,
        loraplus_lr_ratio=entry.loraplus_lr_ratio,
    )  # fmt: skip
    return {
        "method": job.method,
        "seed": job.seed,
        "trained": num_parameters(done.adapters),
        "loss": round(done.scores["loss"], 5),  # nats per target token
        "exact_match": round(done.scores["exact_match"], 5),
        "notes_before": round(notes_loss({}, model), 5),
        "notes_after": round(notes_loss(done.adapters, done.model), 5),
    }


def config_of(entry, size):
    """Return the LoraConfig or MethodConfig of an entry, of that size if the method has one."""
    if entry.size == "r":
        return LoraConfig(
            r=size, lora_alpha=2 * size, target_modules=ALL_LINEAR,
            use_dora=entry.method == "dora", init_lora_weights=entry.start or True,
        )  # fmt: skip
    return MethodConfig(entry.method, **({entry.size: size} if entry.size else {}))


def sized(entry, model, budget):
    """Return the config whose count of trained parameters, linear in size, is nearest to budget."""
    if not entry.size:
        return config_of(entry, 1)
    one, two = (
        num_parameters(minilora.get_peft_model(model, config_of(entry, size)).adapters)
        for size in (1, 2)
    )
    return config_of(entry, max(1, 1 + round((budget - one) / (two - one))))


def file_bytes(adapters, model, config):
    """Return the size of the adapter's file of tensors in bytes."""
    with TemporaryDirectory() as folder:
        save_adapter(folder, adapters, model, config)
        return (Path(folder) / WEIGHTS).stat().st_size

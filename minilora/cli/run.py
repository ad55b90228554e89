"""Run `minilora train`.

A run that has ended is one file, checkpoint.safetensors: the adapter, the state of the optimizer,
the settings and the records of all steps. All other files are derived from it after each
checkpoint, and again when the run is resumed. Each file is written under a temporary name and
renamed, so a kill at any moment leaves the complete old or the complete new one.

The exception is metrics.jsonl, so that a save in a long run costs as much as in a short one. The
checkpoint of a run that goes on has only the records since the checkpoint before, the size of
metrics.jsonl before them, and a digest of all records. Only after the rename of the checkpoint,
metrics.jsonl is cut to this size and these records are appended. So a run that was killed needs
this file, too. The first save of a process, and its last one, write all records as a whole.
"""

import hashlib
import io
import json
import math
import os
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from .. import layers, train
from ..config import POSITIVE, InputError, TrainConfig, check_setting
from ..data.packing import pack_examples
from ..data.rows import split_row
from ..evaluation import memory
from ..evaluation.callbacks import evaluation_row, kept_step
from ..evaluation.metrics import evaluate
from ..evaluation.plot import curve, points
from ..formats.checkpoint import save_adapter, save_state
from ..formats.files import append, replace_text
from ..generation import generate
from ..methods.registry import operations
from . import run_folder
from .arguments import CHECKPOINT, SETTINGS, as_toml
from .examples import read_split, warn_of_common_rows
from .loading import load_for_training, unused_settings


def fine_tune(args):
    """Run `minilora train`; with --quiet, print only warnings, errors and the last line."""
    with redirect_stdout(io.StringIO()) if args.quiet else nullcontext():
        train_and_save(args)
    if not args.dry_run:
        folder = args.adapter_path
        print(f"written to {folder}: try `minilora evaluate --adapter-path {folder}`")


def train_and_save(args):
    """Train, and write the folder of the run. All is checked before a file is written."""
    folder = Path(args.adapter_path)
    train_config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    run_folder.check_folder(folder, args)
    loaded = load_for_training(args)
    loaded = loaded._replace(tokenizer=replace(loaded.tokenizer, chat_date=args.chat_date))
    train_split = read_split(args.data, "train", loaded, args.columns, train_config)
    valid_split = read_split(args.data, "valid", loaded, args.columns, train_config)
    examples = train_split.examples
    valid = valid_split.examples
    unused = unused_settings(args, loaded, train_config, examples, valid)
    if args.epochs is not None:
        args.iters = steps_of_epochs(args.epochs, examples, train_config)
        train_config = replace(train_config, iters=args.iters)
    check_memory(loaded, examples, train_config)
    print(train_split.summary(" to train on"))
    print(valid_split.summary(" held out"))
    warn_of_common_rows(valid_split.rows, train_split.rows, "held-out rows", "the rows to train on")
    print(f"{args.iters} steps of {args.batch_size * args.grad_accumulation_steps} sequences")
    metadata = run_folder.metadata(args, unused)
    if args.resume:
        run_folder.check_same_run(folder, metadata)
    if args.dry_run:
        return
    scored = valid[: train_config.val_batches * train_config.batch_size]
    ops = operations(loaded.adapters, loaded.base, layers if args.plain else None)

    def held_out_scores(step, adapters):
        scores = evaluate(adapters, loaded.base, scored, loaded.model_config, ops, args.quiet)
        return evaluation_row(step, scores)

    def show(when, adapters, scores):
        part = f", on {len(scored)} of {len(valid)} held-out rows" if scored != valid else ""
        print(
            f"{when}: held-out loss {scores['eval_loss']:.4f} nats per token, "
            f"exact match {100 * scores['eval_exact_match']:.1f} %{part}"
        )
        if not args.quiet:
            print_sample(adapters, loaded, valid_split.rows[0], ops)

    os.environ["MPLBACKEND"] = "agg"  # the only backend that `curve` needs
    # an interrupt during the import of matplotlib would break every later import of it
    import matplotlib.figure  # noqa: F401

    with run_folder.lock(folder):
        writer = RunWriter(folder, args, loaded, metadata)
        adapters = loaded.adapters
        state = None
        if args.resume:
            adapters, state, history = run_folder.resume(folder, metadata, adapters)
            writer.history += history
            writer.latest = adapters, state
            writer.save()  # all files, with the settings of now
        elif scored:
            scores = held_out_scores(0, adapters)
            writer.history.append(scores)  # the first point of the curve
            show("before", adapters, scores)
        model = adapters, loaded.base, examples, loaded.model_config
        try:
            kept = train(*model, train_config, scored, state, writer.on_step, ops, args.quiet)[0]
        except KeyboardInterrupt:
            way = f"continue with `minilora train --resume --adapter-path {folder}`"
            if writer.latest is None:
                way = "start the same command again"
            raise KeyboardInterrupt(f"interrupted: {way}") from None
        finally:
            writer.end()
        state = writer.latest[1]
        _, losses = points(writer.history, "loss")
        print(f"training loss: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last")
        scores = None
        if scored:
            step = kept_step(state)
            evaluations = {row["step"]: row for row in writer.history if "eval_loss" in row}
            scores = evaluations.get(step) or held_out_scores(step, kept)
            show("after", kept, scores)
        card = run_folder.model_card(args, loaded.adapter_config, state, scores, len(scored))
        replace_text(folder / run_folder.CARD, card)


def steps_of_epochs(epochs, examples, train_config):
    """Return ⌈E·n/(batch·accumulation)⌉, for E epochs of n sequences (rows or packed rows)."""
    check_setting("epochs", epochs, POSITIVE)
    if train_config.packing:
        examples = pack_examples(examples, train_config.max_seq_length)
    per_step = train_config.batch_size * train_config.grad_accumulation_steps
    # 1.1 epochs of 10 rows are 11 rows; in floating point, they would be a little more
    return math.ceil(Fraction(str(epochs)) * len(examples) / per_step)


def check_memory(loaded, examples, train_config):
    """Print the size of a step; raise InputError if this machine has less memory."""
    longest = max(len(example.tokens) for example in examples)
    if train_config.packing:
        longest = train_config.max_seq_length
    needed = print_size(loaded, train_config.batch_size * (longest - 1))
    there = memory.physical_memory()
    if needed >= there:
        raise InputError(
            f"a step needs {needed / 1e9:,.0f} GB, but this machine has {there / 1e9:,.0f} GB: "
            "lower `batch_size` or `max_seq_length`"
        )


def print_size(loaded, tokens):
    """Print the trained parameters and the memory of a step; return its bytes."""
    memory.print_trainable_parameters(loaded.adapters, loaded.base)
    parts = memory.memory_estimate(loaded.adapters, loaded.base, loaded.model_config, tokens)
    print(f"a step over {tokens} tokens:\n{memory.format_estimate(parts)}")
    return sum(parts.values())


@dataclass
class RunWriter:
    """Write a checkpoint every few steps, and then the files that are derived from it.

    A run that ends before its first step changes nothing in the folder.
    """

    folder: Path
    args: Any
    loaded: Any
    metadata: dict
    history: list = field(default_factory=list)  # the records of all steps and evaluations
    saved: int = 0  # the number of records in metrics.jsonl
    size: int = 0  # its bytes
    digest: Any = field(default_factory=hashlib.sha256)  # of these
    latest: Any = None  # (adapters, state) of the last step

    def on_step(self, records, adapters, state):
        """Record a step; `train` calls this after each step."""
        records[0]["peak_rss_mb"] = memory.peak_rss_mb()
        self.history += records
        self.latest = adapters, state
        if state["step"] % self.args.save_every == 0:
            self.save()

    def save(self):
        """Write a checkpoint, and the files that are derived from it."""
        folder = self.folder
        args = self.args
        adapters, state = self.latest
        new = "".join(json.dumps(row) + "\n" for row in self.history[self.saved :])  # in ASCII
        self.digest.update(new.encode())
        facts = {"metrics_size": self.size, "metrics_sha256": self.digest.hexdigest()}
        save_state(folder / CHECKPOINT, adapters, state, self.metadata | facts, new)
        if self.size:
            append(folder / run_folder.METRICS, self.size, new)
        else:
            replace_text(folder / run_folder.METRICS, new)
        (folder / run_folder.CARD).unlink(missing_ok=True)  # the end of the run writes it
        loaded = self.loaded
        best = state.get("best", adapters)
        save_adapter(
            folder, best, loaded.base, loaded.adapter_config, args.model, args.adapter_dtype
        )
        title = f"{Path(args.model).name} on {Path(args.data).name}"
        kept = kept_step(state) if "best" in state else None
        curve(folder / run_folder.CURVE, self.history, title, kept)
        # the last file: see `loading.read_run`
        replace_text(folder / SETTINGS, as_toml(self.metadata["settings"]))
        self.size += len(new)
        self.saved = len(self.history)

    def end(self):
        """Save with the records of the whole run, if it has made a step."""
        if self.latest is not None:
            self.saved = 0
            self.size = 0
            self.digest = hashlib.sha256()
            self.save()


def print_sample(adapters, loaded, row, ops):
    """Print the prompt of a row, the model's answer and the right answer; nothing for a text."""
    tokenizer = loaded.tokenizer
    prompt, answer = split_row(row, tokenizer)
    if prompt:
        ids = tokenizer.encode(prompt)
        said = generate(adapters, loaded.base, ids, loaded.model_config, ops, max_tokens=48)
        right = tokenizer.decode(tokenizer.encode(answer))
        asked = row["messages"][-2]["content"] if len(row.get("messages", ())) > 1 else prompt
        print(f"  asked: {asked.strip()!r}")
        print(f"  says:  {tokenizer.decode(list(said)).strip()!r}")
        print(f"  right: {right.strip()!r}")

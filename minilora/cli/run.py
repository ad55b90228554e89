"""Run `minilora train`, and write settings, metrics, checkpoints, adapter and curve.

Every file except metrics.jsonl is written under a temporary name and renamed. So a kill at any
moment leaves the complete old or the complete new file. The first file is the first checkpoint.
"""

import math
import os
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from .. import layers
from ..batching import pack_examples
from ..config import POSITIVE, InputError, TrainConfig, check_number, require
from ..data.rows import split_row
from ..evaluation import memory
from ..evaluation.metrics import evaluate
from ..evaluation.plot import curve
from ..evaluation.trainer import train
from ..formats.checkpoint import save_adapter, save_state
from ..formats.files import append, replace_text
from ..generation import generate
from ..kernels import num_threads
from ..methods.operations import check_packing, operations
from . import run_folder
from .arguments import CHECKPOINT, SETTINGS
from .examples import columns_of, compared, exact_match_of, read_split, warn_of_common_rows
from .loading import load_for_training


def fine_tune(args):
    """Run `minilora train`. All arguments and files are checked before a file is written."""
    folder = Path(args.adapter_path)
    train_config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    run_folder.check_folder(folder, args)
    loaded = load_for_training(args)
    tokenizer = replace(loaded.tokenizer, chat_date=args.chat_date)
    check_packing(loaded.adapters, train_config)
    loaded = loaded._replace(tokenizer=tokenizer)
    data = loaded, columns_of(args.columns), train_config
    train_split = read_split(args.data, "train", *data)
    valid_split = read_split(args.data, "valid", *data)
    examples, valid, held_out = train_split.examples, valid_split.examples, valid_split.rows
    if args.epochs is not None:
        args.iters, args.epochs = steps_of_epochs(args.epochs, examples, train_config), None
        train_config = replace(train_config, iters=args.iters)
    memory.print_trainable_parameters(loaded.adapters, loaded.base)
    check_memory(loaded, examples, train_config)
    if Path(args.data).is_file():
        whole = len(train_split.rows) + len(held_out)
        how = "every tenth row is held out" if held_out else "fewer than ten, so none is held out"
        print(f"{args.data}: {whole} rows, {len(train_split.rows)} for training; {how}")
    print(train_split.summary(" to train on"))
    print(valid_split.summary(" held out"))
    warn_of_common_rows(held_out, train_split.rows, "held-out rows", "the rows to train on")
    print(f"{args.iters} steps of {args.batch_size * args.grad_accumulation_steps} sequences")
    if args.dry_run:
        return
    metadata = {**run_folder.metadata(args), "threads": num_threads()}
    with run_folder.lock(folder):
        adapters, state = loaded.adapters, None
        if args.resume:
            adapters, state = run_folder.resume(folder, metadata, adapters)
        ops = operations(adapters, loaded.base, layers if args.plain else None)
        shown = loaded.base, loaded.model_config, tokenizer, held_out, valid, ops
        print_scores("before", adapters, *shown)
        writer = RunWriter(folder, args, loaded, metadata)
        best = run(writer, adapters, state, examples, valid, train_config, ops)
        writer.save_adapter(best)
        writer.draw()
        losses = [row["loss"] for row in run_folder.read_metrics(folder) if "loss" in row]
        print(f"training loss: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last")
        scores = print_scores("after", best, *shown)
        card = run_folder.model_card(args, loaded.adapter_config, scores)
        replace_text(folder / "README.md", card)
    print(f"written to {folder}: try `minilora evaluate --adapter-path {folder}`")


def steps_of_epochs(epochs, examples, train_config):
    """Return ⌈E·n/(batch·accumulation)⌉, for E epochs of n sequences (rows or packed rows)."""
    check_number("--epochs", epochs, POSITIVE)
    packed = pack_examples(examples, train_config.max_seq_length) if train_config.packing else None
    per_step = train_config.batch_size * train_config.grad_accumulation_steps
    # 1.1 epochs of 10 rows are 11 rows; in floating point, they would be a little more
    return math.ceil(Fraction(str(epochs)) * len(packed or examples) / per_step)


def check_memory(loaded, examples, train_config):
    """Print the memory that a step needs; raise InputError if this machine has less."""
    tokens = train_config.batch_size * max(len(e.tokens) - 1 for e in examples)
    parts = memory.memory_estimate(loaded.adapters, loaded.base, loaded.model_config, tokens)
    print(f"a step over {tokens} tokens:\n{memory.format_estimate(parts)}")
    needed, there = sum(parts.values()), physical_memory()
    much = f"a step needs {needed / 1e9:,.0f} GB, but this machine has {there / 1e9:,.0f} GB"
    require(needed < there, f"{much}: lower --batch-size or --max-seq-length")


def run(writer, adapters, state, examples, valid, train_config, ops):
    """Train, and save the last steps also after an error; return the best adapters."""
    loaded, valid = writer.loaded, valid[: train_config.val_batches * train_config.batch_size]
    model = adapters, loaded.base, examples, loaded.model_config
    if valid and state is None:  # the first point of the curve
        score = evaluate(adapters, loaded.base, valid, loaded.model_config, ops)
        names = {"eval_loss": "loss", "eval_exact_match": "exact_match"}
        writer.rows.append({"step": 0} | {key: score[name] for key, name in names.items()})
    try:
        return train(*model, train_config, valid, state, writer.on_step, ops)[0]
    except KeyboardInterrupt as error:
        writer.save()
        raise type(error)(f"interrupted: {writer.how_to_continue()}") from None
    finally:
        writer.save()


def physical_memory():
    """Return this machine's memory in bytes; infinity if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


class RunWriter:
    """Write the metrics, a checkpoint and the adapter of a run every few steps.

    A run that ends before its first checkpoint changes nothing in the folder.
    """

    def __init__(self, folder, args, loaded, metadata):
        self.folder, self.args, self.loaded, self.metadata = folder, args, loaded, metadata
        self.new, self.can_resume = not args.resume, args.resume
        self.metrics = folder / run_folder.METRICS
        self.size = 0 if self.new else self.metrics.stat().st_size
        self.latest: Any = None
        self.rows: list = []

    def on_step(self, rows, adapters, state):
        """Record a step; `train` calls this after each step."""
        rows[0]["peak_rss_mb"] = memory.peak_rss_mb()
        self.rows += rows
        self.latest = adapters, state
        evaluated = len(rows) > 1
        if state["step"] % self.args.save_every == 0 or (self.new and evaluated):
            self.save()
        if evaluated:
            self.draw()

    def draw(self):
        """Write the figure of all steps until now."""
        history = run_folder.read_metrics(self.folder) + self.rows
        curve(self.folder / "curve.png", history, f"{self.args.model} on {self.args.data}")

    def save(self):
        """Write the new metrics, then a checkpoint, then the adapter.

        The first checkpoint replaces an older run. It also holds the first rows of metrics.jsonl.
        """
        if not (self.rows and self.latest):
            return
        (adapters, state), text = self.latest, run_folder.as_json_lines(self.rows)
        first = {"rows": self.rows} if self.new else {}
        try:
            if not self.new:
                append(self.metrics, self.size, text)
            save_state(self.folder / CHECKPOINT, adapters, state, self.metadata | first)
            self.can_resume = True
            if self.new:
                run_folder.begin_run(self.folder, text)
            self.save_adapter(state.get("best", adapters))
        except InputError as error:
            raise InputError(f"{error}; then {self.how_to_continue()}") from error
        self.size, self.rows, self.new = self.size + len(text), [], False

    def save_adapter(self, adapters):
        """Write the adapter, then the settings."""
        model = adapters, self.loaded.base, self.loaded.adapter_config
        save_adapter(self.folder, *model, self.args.model, self.args.adapter_dtype)
        replace_text(self.folder / SETTINGS, run_folder.as_toml(self.metadata["settings"]))

    def how_to_continue(self):
        """Return the sentence that tells the user how to continue an interrupted run."""
        if not self.can_resume:
            return "start the same command again"
        return f"continue with `minilora train --resume --adapter-path {self.folder}`"


def print_scores(when, adapters, base, model_config, tokenizer, rows, examples, ops):
    """Print held-out scores and an example; return the scores, or None without held-out rows."""
    if not rows:
        return None
    score = evaluate(adapters, base, examples, model_config, ops)
    loss, exact = score["loss"], 100 * score["exact_match"]
    line = f"{when}: held-out loss {loss:.4f} nats per token, exact match {exact:.1f} %"
    print(line if compared(rows) == "answers" else f"{line} of {exact_match_of(rows)}")
    row = rows[0]
    prompt, answer = split_row(row, tokenizer)
    if not prompt:  # a text row: continue its first third
        prompt, answer = answer[: len(answer) // 3], answer[len(answer) // 3 :]
    ids = tokenizer.encode(prompt)
    if ids:  # a text of two letters gives no prompt
        said = generate(adapters, base, ids, model_config, ops, max_tokens=48)
        asked = row["messages"][-2]["content"] if len(row.get("messages", ())) > 1 else prompt
        right = tokenizer.decode(tokenizer.encode(answer))
        print(f"  asked: {asked.strip()!r}")
        print(f"  says:  {tokenizer.decode(list(said)).strip()!r}")
        print(f"  right: {right.strip()!r}")
    return score

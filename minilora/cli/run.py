"""Run `minilora train`, and write settings, metrics, checkpoints, adapter and curve.

Every file except metrics.jsonl is written under a temporary name and renamed. So a kill at any
moment leaves the complete old or the complete new file. The first file is the first checkpoint.
"""

import io
import math
import os
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from .. import layers, train
from ..config import POSITIVE, InputError, TrainConfig, check_setting
from ..data.packing import pack_examples
from ..data.rows import split_row
from ..evaluation import memory
from ..evaluation.callbacks import check_held_out, evaluation_row, kept_step
from ..evaluation.metrics import evaluate
from ..evaluation.plot import curve
from ..formats.checkpoint import save_adapter, save_state
from ..formats.files import append, replace_text
from ..generation import generate
from ..kernels import num_threads
from ..methods.prompt import ENCODER, PROMPT, virtual_tokens
from ..methods.registry import check_packing, operations
from . import run_folder
from .arguments import CHECKPOINT, SETTINGS
from .examples import columns_of, compared, exact_match_of, read_splits, warn_of_common_rows
from .loading import load_for_training, refuse_unused, unused_settings


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
    tokenizer = replace(loaded.tokenizer, chat_date=args.chat_date)
    check_packing(loaded.adapters, train_config)
    loaded = loaded._replace(tokenizer=tokenizer)
    columns = columns_of(args.columns)
    train_split, valid_split = read_splits(
        args.data, ["train", "valid"], loaded, columns, train_config
    )
    examples, valid, held_out = train_split.examples, valid_split.examples, valid_split.rows
    check_held_out(valid, train_config)
    unused = unused_settings(args, loaded, train_config, examples, valid)
    refuse_unused(args.given, unused)
    if args.epochs is not None:
        args.iters = steps_of_epochs(args.epochs, examples, train_config)
        args.epochs = None
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
    metadata = {**run_folder.metadata(args, unused), "threads": num_threads()}
    if args.resume:
        run_folder.check_same_run(folder, metadata)
    scored = valid[: train_config.val_batches * train_config.batch_size]
    if args.dry_run:
        return
    with run_folder.lock(folder):
        adapters = loaded.adapters
        state = None
        if args.resume:
            adapters, state = run_folder.resume(folder, metadata, adapters)
        ops = operations(adapters, loaded.base, layers if args.plain else None)
        writer = RunWriter(folder, args, loaded, metadata)

        def held_out_scores(step, adapters):
            rows = scored, loaded.model_config
            return evaluation_row(step, evaluate(adapters, loaded.base, *rows, ops, args.quiet))

        def show(when, adapters, scores):
            print_scores(when, scores, len(scored), len(valid), held_out)
            if not args.quiet:
                sample = tokenizer, held_out[0], ops
                print_sample(adapters, loaded.base, loaded.model_config, *sample)

        if state:
            writer.latest = adapters, state
            writer.keep_checkpoint()  # a kill can have prevented it
        elif scored:
            scores = held_out_scores(0, adapters)
            writer.rows.append(scores)  # the first point of the curve
            show("before", adapters, scores)
        kept = run(writer, adapters, state, examples, scored, train_config, ops)
        writer.save_adapter(folder, kept)
        writer.draw()
        state = writer.latest[1]
        history = run_folder.read_metrics(folder)
        losses = [row["loss"] for row in history if "loss" in row]
        print(f"training loss: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last")
        scores = None
        step = kept_step(state)
        if scored:
            found = [row for row in history if row["step"] == step and "eval_loss" in row]
            scores = found[-1] if found else held_out_scores(step, kept)
            show("after", kept, scores)
        card = run_folder.model_card(args, loaded.adapter_config, state, scores, len(scored))
        replace_text(folder / "README.md", card)


def steps_of_epochs(epochs, examples, train_config):
    """Return ⌈E·n/(batch·accumulation)⌉, for E epochs of n sequences (rows or packed rows)."""
    check_setting("epochs", epochs, POSITIVE)
    packed = pack_examples(examples, train_config.max_seq_length) if train_config.packing else None
    per_step = train_config.batch_size * train_config.grad_accumulation_steps
    # 1.1 epochs of 10 rows are 11 rows; in floating point, they would be a little more
    return math.ceil(Fraction(str(epochs)) * len(packed or examples) / per_step)


def check_memory(loaded, examples, train_config):
    """Print the memory that a step needs; raise InputError if this machine has less."""
    longest = max(len(example.tokens) - 1 for example in examples)
    if train_config.packing:
        packed = pack_examples(examples, train_config.max_seq_length)
        longest = max(sum(len(example.tokens) - 1 for example in row) for row in packed)
    node = loaded.adapters.get("model", {})
    if PROMPT in node or ENCODER in node:
        longest += len(virtual_tokens(node))
    tokens = train_config.batch_size * longest
    parts = memory.memory_estimate(loaded.adapters, loaded.base, loaded.model_config, tokens)
    print(f"a step over {tokens} tokens:\n{memory.format_estimate(parts)}")
    needed = sum(parts.values())
    there = physical_memory()
    if needed >= there:
        much = f"a step needs {needed / 1e9:,.0f} GB, but this machine has {there / 1e9:,.0f} GB"
        raise InputError(f"{much}: lower --batch-size or --max-seq-length")


def run(writer, adapters, state, examples, valid, train_config, ops):
    """Train, and save the last steps also after an error; return the adapters to keep."""
    loaded, quiet = writer.loaded, writer.args.quiet
    model = adapters, loaded.base, examples, loaded.model_config
    try:
        return train(*model, train_config, valid, state, writer.on_step, ops, quiet)[0]
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
        self.new = not args.resume
        self.can_resume = args.resume
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
        base, data = (Path(self.metadata["settings"][name]).name for name in ("model", "data"))
        state = self.latest[1]
        kept = kept_step(state) if "best" in state else None
        curve(self.folder / "curve.png", history, f"{base} on {data}", kept)

    def save(self):
        """Write the new metrics, a checkpoint, the adapter of this step if asked, then the adapter.

        The first checkpoint replaces an older run. It also holds the first rows of metrics.jsonl.
        """
        if not (self.rows and self.latest):
            return
        adapters, state = self.latest
        text = run_folder.as_json_lines(self.rows)
        first = {"rows": self.rows} if self.new else {}
        try:
            if not self.new:
                append(self.metrics, self.size, text)
            save_state(self.folder / CHECKPOINT, adapters, state, self.metadata | first)
            self.can_resume = True
            if self.new:
                run_folder.begin_run(self.folder, text)
            self.keep_checkpoint()
            self.save_adapter(self.folder, state.get("best", adapters))
        except InputError as error:
            raise InputError(f"{error}; then {self.how_to_continue()}") from error
        self.size = self.size + len(text)
        self.rows = []
        self.new = False

    def keep_checkpoint(self):
        """With --keep-checkpoints, write the adapter of a --save-every step into its own folder."""
        adapters, state = self.latest
        step = state["step"]
        if self.args.keep_checkpoints and step % self.args.save_every == 0:
            self.save_adapter(self.folder / f"checkpoint-{step}", adapters)

    def save_adapter(self, folder, adapters):
        """Write the adapter, then the settings."""
        model = adapters, self.loaded.base, self.loaded.adapter_config
        save_adapter(folder, *model, self.args.model, self.args.adapter_dtype)
        replace_text(folder / SETTINGS, run_folder.as_toml(self.metadata["settings"]))

    def how_to_continue(self):
        """Return the sentence that tells the user how to continue an interrupted run."""
        if not self.can_resume:
            return "start the same command again"
        return f"continue with `minilora train --resume --adapter-path {self.folder}`"


def print_scores(when, scores, scored, held_out, rows):
    """Print a dict of an evaluation, which counted `scored` of `held_out` rows."""
    loss = scores["eval_loss"]
    exact = 100 * scores["eval_exact_match"]
    of = "" if compared(rows) == "answers" else f" of {exact_match_of(rows)}"
    part = "" if scored == held_out else f", on {scored} of {held_out} held-out rows"
    print(f"{when}: held-out loss {loss:.4f} nats per token, exact match {exact:.1f} %{of}{part}")


def print_sample(adapters, base, model_config, tokenizer, row, ops):
    """Print the prompt of a row, the model's answer and the right answer."""
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

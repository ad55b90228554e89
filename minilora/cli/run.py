"""A training run and its folder: settings, metrics, checkpoints, adapter, curve.

Every file but metrics.jsonl is written under a temporary name and renamed, so a kill at any moment
leaves the old or the new file, whole. The first of them is the first checkpoint.
"""

import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .. import layers
from ..config import InputError, TrainConfig, require
from ..data.rows import encode_rows, load_rows, split_row
from ..evaluation.memory import (
    format_estimate,
    memory_estimate,
    peak_rss_mb,
    print_trainable_parameters,
)
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
from .loading import load_for_training


def fine_tune(args):
    """`minilora train`: everything is checked before the first file is written."""
    folder = Path(args.adapter_path)
    train_config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    run_folder.check_folder(folder, args)
    loaded = load_for_training(args)
    tokenizer = replace(loaded.tokenizer, chat_date=args.chat_date)
    check_packing(loaded.adapters, train_config)
    rows, held_out = load_rows(args.data, "train"), load_rows(args.data, "valid")
    examples, cut = encode_rows(rows, tokenizer, train_config)
    valid = encode_rows(held_out, tokenizer, train_config)[0] if held_out else []
    print_trainable_parameters(loaded.adapters, loaded.base)
    check_memory(loaded, examples, train_config)
    if Path(args.data).is_file():
        whole = len(rows) + len(held_out)
        how = "every tenth held out" if held_out else "none held out: fewer than ten"
        print(f"{args.data}: {whole} rows: {len(rows)} for training, {how}")
    print(f"{len(examples)} rows to train on, {len(valid)} held out, {cut} cut to --max-seq-length")
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
        curve(folder / "curve.png", run_folder.read_metrics(folder), f"{args.model} on {args.data}")
        scores = print_scores("after", best, *shown)
        card = run_folder.model_card(args, loaded.adapter_config, scores)
        replace_text(folder / "README.md", card)
    print(f"written to {folder}: try `minilora evaluate --adapter-path {folder}`")


def check_memory(loaded, examples, train_config):
    """Print the memory that a step needs; raise InputError if this machine has less."""
    tokens = train_config.batch_size * max(len(e.tokens) - 1 for e in examples)
    parts = memory_estimate(loaded.adapters, loaded.base, loaded.model_config, tokens)
    print(f"a step over {tokens} tokens:\n{format_estimate(parts)}")
    needed, there = sum(parts.values()), physical_memory()
    much = f"needs {needed / 1e9:,.0f} GB, this machine has {there / 1e9:,.0f}"
    way = "lower --batch-size or --max-seq-length"
    require(needed < there, f"a step over {tokens} tokens {much}: {way}")


def run(writer, adapters, state, examples, valid, train_config, ops):
    """Train, and save what is not saved yet however that ends; return the best adapters."""
    loaded, valid = writer.loaded, valid[: train_config.val_batches * train_config.batch_size]
    try:
        best, _ = train(
            adapters, loaded.base, examples, loaded.model_config, train_config, valid, state,
            writer.on_step, ops,
        )  # fmt: skip
        return best
    except KeyboardInterrupt as error:
        writer.save()
        raise type(error)(f"interrupted: {writer.how_to_continue()}") from None
    finally:
        writer.save()


def physical_memory():
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


class RunWriter:
    """Writes down a run as it goes: every few steps its metrics, a checkpoint and the adapter.

    Nothing is written before the first of these, so a run that ends before leaves the folder, and
    an older run in it, as it was.
    """

    def __init__(self, folder, args, loaded, metadata):
        self.folder, self.args, self.loaded, self.metadata = folder, args, loaded, metadata
        self.new, self.can_resume = not args.resume, args.resume
        self.metrics = folder / run_folder.METRICS
        self.size = 0 if self.new else self.metrics.stat().st_size
        self.latest: Any = None
        self.rows: list = []

    def on_step(self, rows, adapters, state):
        """Note a step; `train` calls this after each one."""
        rows[0]["peak_rss_mb"] = peak_rss_mb()
        self.rows += rows
        self.latest = adapters, state
        if state["step"] % self.args.save_every == 0:
            self.save()

    def save(self):
        """Write what is not written yet: metrics, then the checkpoint, then the adapter.

        The first checkpoint replaces an older run, and holds its rows: metrics.jsonl comes later.
        """
        if not self.rows:
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
        """Write the adapter, and then the settings if they are not there."""
        name, dtype = self.args.model, self.args.adapter_dtype
        base, adapter_config = self.loaded.base, self.loaded.adapter_config
        save_adapter(self.folder, adapters, base, adapter_config, name, dtype)
        if not (path := self.folder / SETTINGS).exists():
            replace_text(path, run_folder.as_toml(self.metadata["settings"]))

    def how_to_continue(self):
        """What to tell a user whose run was interrupted."""
        if not self.can_resume:
            return "start the same command again"
        return f"go on with `minilora train --resume --adapter-path {self.folder}`"


def print_scores(when, adapters, base, model_config, tokenizer, rows, examples, ops):
    """Print held-out scores, and one answer with the right one; return the scores if there are."""
    if not rows:
        return None
    score = evaluate(adapters, base, examples, model_config, ops)
    loss, exact = score["loss"], 100 * score["exact_match"]
    print(f"{when}: held-out loss {loss:.4f} nats per token, exact match {exact:.1f} %")
    row = rows[0]
    prompt, answer = split_row(row, tokenizer)
    if not prompt:  # a text row: continue its first third
        prompt, answer = answer[: len(answer) // 3], answer[len(answer) // 3 :]
    ids = tokenizer.encode(prompt)
    if ids:  # nothing can be asked with a text of two letters
        said = generate(adapters, base, ids, model_config, ops, max_tokens=48)
        asked = row["messages"][-2]["content"] if len(row.get("messages", ())) > 1 else prompt
        right = tokenizer.decode(tokenizer.encode(answer))
        print(f"  asked: {asked.strip()!r}")
        print(f"  says:  {tokenizer.decode(list(said)).strip()!r}")
        print(f"  right: {right.strip()!r}")
    return score

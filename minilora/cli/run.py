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
from ..evaluation.memory import format_estimate, memory_estimate, peak_rss_mb, summary
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
    config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    run_folder.check_folder(folder, args)
    model, base, tokenizer, adapters, adapter_config, _ = load_for_training(args)
    tokenizer = replace(tokenizer, chat_date=args.chat_date)
    check_packing(adapters, config)
    rows = load_rows(args.data, "train")
    examples, cut = encode_rows(rows, tokenizer, config)
    held_out = load_rows(args.data, "valid")
    valid = encode_rows(held_out, tokenizer, config)[0] if held_out else []
    print(summary(adapters, base))
    tokens = config.batch_size * max(len(e.tokens) - 1 for e in examples)
    parts = memory_estimate(adapters, base, model, tokens)
    print(f"a step over {tokens} tokens:\n{format_estimate(parts)}")
    needed, there = sum(parts.values()), physical_memory()
    much = f"needs {needed / 1e9:,.0f} GB, this machine has {there / 1e9:,.0f}"
    way = "lower --batch-size or --max-seq-length"
    require(needed < there, f"a step over {tokens} tokens {much}: {way}")
    if Path(args.data).is_file():
        whole = len(rows) + len(held_out)
        how = "every tenth held out" if held_out else "none held out: fewer than ten"
        print(f"{args.data}: {whole} rows: {len(rows)} for training, {how}")
    print(f"{len(examples)} rows to train on, {len(valid)} held out, {cut} cut to --max-seq-length")
    if args.dry_run:
        return
    facts = {**run_folder.facts(args), "threads": num_threads()}
    ops = operations(adapters, base, layers if args.plain else None)
    with run_folder.lock(folder):
        state = None
        if args.resume:
            adapters, state = run_folder.resume(folder, facts, adapters)
        shown = base, model, tokenizer, held_out, valid, ops
        show("before", adapters, *shown)

        log = Log(folder, args, base, adapter_config, facts, new=not args.resume)
        some = valid[: config.val_batches * config.batch_size]
        try:
            best, _ = train(adapters, base, examples, model, config, some, state, log.on_step, ops)
        except KeyboardInterrupt as error:
            log.save()
            raise type(error)(f"interrupted: {log.how_to_continue()}") from None
        finally:
            log.save()
        if log.latest is None:
            best = (state or {}).get("best", adapters)
        log.save_adapter(best)
        rows = run_folder.read_metrics(folder)
        curve(folder / "curve.png", rows, f"{args.model} on {args.data}")
        scores = show("after", best, *shown)
        replace_text(folder / "README.md", run_folder.model_card(args, adapter_config, scores))
    print(f"written to {folder}: try `minilora evaluate --adapter-path {folder}`")


def physical_memory():
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


class Log:
    """Writes down a run as it goes: every few steps its metrics, a checkpoint and the adapter.

    Nothing is written before the first of these, so a run that ends before leaves the folder, and
    an older run in it, as it was.
    """

    def __init__(self, folder, args, base, adapter_config, facts, new):
        self.folder, self.args, self.base = folder, args, base
        self.adapter_config, self.facts, self.new = adapter_config, facts, new
        self.metrics, self.can_resume = folder / run_folder.METRICS, not new
        self.size = 0 if new else self.metrics.stat().st_size
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
            save_state(self.folder / CHECKPOINT, adapters, state, self.facts | first)
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
        save_adapter(self.folder, adapters, self.base, self.adapter_config, name, dtype)
        if not (path := self.folder / SETTINGS).exists():
            replace_text(path, run_folder.as_toml(self.facts["settings"]))

    def how_to_continue(self):
        """What to tell a user whose run was interrupted."""
        if not self.can_resume:
            return "start the same command again"
        return f"go on with `minilora train --resume --adapter-path {self.folder}`"


def show(when, adapters, base, model, tokenizer, rows, examples, ops):
    """Print held-out scores, and one answer with the right one; return the scores if there are."""
    if not rows:
        return None
    score = evaluate(adapters, base, examples, model, ops)
    loss, exact = score["loss"], 100 * score["exact_match"]
    print(f"{when}: held-out loss {loss:.4f} nats per token, exact match {exact:.1f} %")
    row = rows[0]
    prompt, answer = split_row(row, tokenizer)
    if not prompt:  # a text row: continue its first third
        prompt, answer = answer[: len(answer) // 3], answer[len(answer) // 3 :]
    ids = tokenizer.encode(prompt)
    if ids:  # nothing can be asked with a text of two letters
        said = generate(adapters, base, ids, model, ops, max_tokens=48)
        asked = row["messages"][-2]["content"] if len(row.get("messages", ())) > 1 else prompt
        right = tokenizer.decode(tokenizer.encode(answer))
        print(f"  asked: {asked.strip()!r}")
        print(f"  says:  {tokenizer.decode(list(said)).strip()!r}")
        print(f"  right: {right.strip()!r}")
    return score

"""Run `minilora train`.

A run that has ended is one file, checkpoint.safetensors: the adapter, the state of the optimizer,
the settings and the records of all steps. All other files are derived from it after each
checkpoint, the curve at most once a minute and at the end, and the model card at the end. Each file
is written under a temporary name and renamed, so a kill at any moment leaves the complete old or
the complete new one.

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
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from .. import layers
from ..config import POSITIVE, InputError, TrainConfig, check_setting
from ..data.encoding import is_chat, split_row
from ..data.packing import pack_examples
from ..data.rows import messages_of
from ..evaluation import loop, memory
from ..evaluation.metrics import evaluate
from ..evaluation.plot import curve, points
from ..formats.checkpoint import CHECKPOINT, SETTINGS, save_state, write_adapter
from ..formats.files import append, replace_text
from ..generation import generate
from ..layers import virtual_tokens
from ..training import start
from ..tree import arrays, named_leaves
from . import processes, run_folder
from .arguments import settings_file
from .examples import SplitData, read_split, warn_of_common_rows, warn_of_trained_rows
from .loading import LoadedModel, base_line, load_for_training, unused_settings
from .stored_paths import quote


def fine_tune(args):
    """Run `minilora train`; with --quiet, print only warnings, errors and the last line."""
    from threadpoolctl import threadpool_limits  # here: it sets an environment variable

    folder = Path(args.adapter_path)
    first = processes.rank() == 0
    args.quiet |= not first
    # the bits of a product can depend on the number of threads of BLAS
    threads = 1 if args.shards or processes.size() else None
    is_hidden = args.quiet and not (first and args.dry_run)
    hidden = redirect_stdout(io.StringIO()) if is_hidden else nullcontext()
    # the warnings are those of all processes
    silent = nullcontext() if first else redirect_stderr(io.StringIO())
    with hidden, silent, threadpool_limits(threads, "blas"):
        job = prepare(args, folder)
        if args.dry_run:
            return
        os.environ["MPLBACKEND"] = "agg"  # the only backend that `curve` needs
        # an interrupt during the import of matplotlib would break every later import of it
        import matplotlib.figure  # noqa: F401

        with run_folder.lock(folder) if first else nullcontext():
            if first:  # another run may have ended in this folder since the first check
                run_folder.check_folder(folder, args)
                if args.resume:
                    run_folder.check_same_run(folder, job.metadata)
            state, history = run(job)
            if first:
                report(job, state, history)
    if first:
        print(f"written to {folder}: try `minilora evaluate --adapter-path {quote(folder)}`")


class Job(NamedTuple):
    """A run of `minilora train` before its first step."""

    args: Any
    folder: Path
    train_config: TrainConfig
    loaded: LoadedModel
    examples: list
    valid: SplitData  # all held-out rows
    scored: list  # the held-out examples that are evaluated
    metadata: dict  # see `run_folder.metadata`


def prepare(args, folder):
    """Load all that a run needs, check it, and print its size; write nothing."""
    train_config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    run_folder.check_folder(folder, args)
    loaded = load_for_training(args)
    loaded = loaded._replace(tokenizer=replace(loaded.tokenizer, chat_date=args.chat_date))
    if args.plain:
        loaded = loaded._replace(model=loaded.model._replace(ops=layers))
    train_split = read_split(args.data, "train", loaded, args.columns, train_config)
    valid_split = read_split(args.data, "valid", loaded, args.columns, train_config)
    examples = train_split.examples
    valid = valid_split.examples
    unused = unused_settings(args, loaded, train_config, examples, valid)
    set_shards(args, train_config, unused)
    loop.check_packing(loaded.adapters, train_config)
    loop.check_held_out(valid, train_config)
    if args.epochs is not None:
        args.iters = steps_of_epochs(args.epochs, examples, train_config)
        train_config = replace(train_config, iters=args.iters)
    print(base_line(loaded.model))
    comm = processes.communicator()
    if args.shards and "shards" not in unused:
        ops = processes.split(loaded.model.ops, args.shards, comm)
        loaded = loaded._replace(model=loaded.model._replace(ops=ops))
    check_memory(loaded, examples, train_config)
    print(train_split.summary(" to train on"))
    print(valid_split.summary(" held out"))
    warn_of_common_rows(valid_split.rows, train_split.rows, "held-out rows", "the rows to train on")
    warn_of_trained_rows(valid_split.rows, "held-out rows", loaded)
    print_length(examples, train_config)
    metadata = run_folder.metadata(args, loaded.model.source, unused)
    if args.resume:
        run_folder.check_same_run(folder, metadata)
    if args.config and not args.resume:  # a resumed run is compared above
        run_folder.warn_of_changes(args.config, metadata)
    if comm:
        settings = json.dumps(metadata).encode()
        processes.check_same(comm, "other settings or files", settings, "give all the same")
    scored = loop.scored_part(valid, train_config)
    return Job(args, folder, train_config, loaded, examples, valid_split, scored, metadata)


def set_shards(args, train_config, unused):
    """Set the number of shards of a run of mpiexec; raise InputError if it is too small."""
    started = processes.size()
    if started and args.resume and args.shards is None:
        raise InputError(
            f"the run in {args.adapter_path} has no --shards, so its bits are those of one "
            "process: resume it without mpiexec"
        )
    if started and args.shards is None:
        args.shards = processes.SHARDS
    shards = 1 if "shards" in unused else min(args.shards or 1, train_config.batch_size)
    if started > shards:
        raise InputError(
            f"a micro-batch has {shards} shards for {started} processes: "
            "start fewer processes, or raise `shards` and `batch_size`"
        )


def run(job):
    """Train, and write a checkpoint every few steps; return (the last state, the history)."""
    args = job.args
    writer = RunWriter(job)
    state = start(job.loaded.adapters, job.train_config)
    if args.resume:
        state, writer.history = run_folder.resume(job.folder, job.metadata, state.adapters)
        state = with_last_evaluation(job, state, writer.history)
        writer.save(state)  # all files, with the current settings
    elif job.scored:
        scores = held_out_scores(job, 0, state.adapters)
        writer.history.append(scores)  # the first point of the curve
        show(job, "before", state.adapters, scores)
    check_same_state(state)
    steps = loop.run(
        state, job.loaded.model, job.examples, job.train_config, job.scored, args.quiet
    )
    ends = True
    try:
        for state, records in steps:
            # the first statement, so that no Ctrl-C comes between the state and its records
            writer.history += records
            if state.step % args.save_every == 0 and state.step < args.iters:
                check_same_state(state)
                writer.save(state)
        check_same_state(state)
    except KeyboardInterrupt:
        # if one of several processes has ended, mpiexec leaves the others no time to save
        ends = processes.communicator() is None
        way = f"continue with `minilora train --resume --adapter-path {quote(job.folder)}`"
        if (state.step if ends else writer.saved) == 0:
            way = "start the same command again"
        raise KeyboardInterrupt(f"interrupted: {way}") from None
    finally:
        steps.close()  # ends the progress bar
        if ends and state.step > 0:
            writer.end(state)
    return state, writer.history


def with_last_evaluation(job, state, history):
    """Return the state of a resumed run; one that ends where it was interrupted is evaluated.

    The record of this evaluation is added to `history`.
    """
    evaluated = any(row["step"] == state.step for row in history if "eval_loss" in row)
    if evaluated or not job.scored or state.step < job.train_config.iters:
        return state
    scores = held_out_scores(job, state.step, state.adapters)
    history.append(scores)
    return state._replace(best=loop.better(state, scores["eval_loss"], job.train_config))


def check_same_state(state):
    """Raise InputError unless all processes are at the same step with the same adapters."""
    comm = processes.communicator()
    if comm:
        leaves = [w.tobytes() for _, w in named_leaves(arrays(state.adapters))]
        way = "use one folder, and machines with the same processor and libraries"
        data = b"".join([str(state.step).encode(), *leaves])
        processes.check_same(comm, "another adapter", data, way)


def report(job, state, history):
    """Print the losses of a run, and write its model card."""
    _, losses = points(history, "loss")
    print(f"training loss: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last")
    scores = None
    if job.scored:
        evaluations = {row["step"]: row for row in history if "eval_loss" in row}
        scores = evaluations[state.kept_step]
        show(job, "after", state.kept, scores)
    lengths = job.metadata.get("lengths", ())
    card = run_folder.model_card(job.args, job.loaded, state, scores, len(job.scored), lengths)
    replace_text(job.folder / run_folder.CARD, card)


def held_out_scores(job, step, adapters):
    """Return the record of an evaluation on the held-out examples."""
    scores = evaluate(adapters, job.loaded.model, job.scored, job.args.quiet)
    return loop.evaluation_row(step, scores)


def show(job, when, adapters, scores):
    """Print the scores of an evaluation, and the answer to the first held-out row."""
    rows = len(job.valid.examples)
    part = f", on {len(job.scored)} of {rows} held-out rows" if len(job.scored) < rows else ""
    print(
        f"{when}: held-out loss {scores['eval_loss']:.4f} nats per token, "
        f"exact match {loop.percent(scores['eval_exact_match'])}{part}"
    )
    if not job.args.quiet:
        print_sample(adapters, job.loaded, job.valid.rows[0])


def steps_of_epochs(epochs, examples, train_config):
    """Return ⌈E·n/(batch·accumulation)⌉, for E epochs of n sequences (rows or packed rows)."""
    check_setting("epochs", epochs, POSITIVE)
    sequences, per_step = numbers_of_sequences(examples, train_config)
    # 1.1 epochs of 10 rows are 11 rows; in floating point, they would be a little more
    return math.ceil(Fraction(str(epochs)) * sequences / per_step)


def numbers_of_sequences(examples, train_config):
    """Return the number of sequences (rows or packed rows) of an epoch, and of a step."""
    if train_config.packing:
        examples = pack_examples(examples, train_config.max_seq_length)
    return len(examples), train_config.batch_size * train_config.grad_accumulation_steps


def print_length(examples, train_config):
    """Print rows, sequences, steps and epochs."""
    sequences, per_step = numbers_of_sequences(examples, train_config)
    steps = train_config.iters
    packed = "packed " if train_config.packing else ""
    epochs = steps * per_step / sequences
    text = f"{epochs:,.1f}" if epochs >= 0.1 else f"{epochs:.1g}"
    print(
        f"{len(examples)} rows in {sequences} {packed}sequences, {steps} steps of {per_step} "
        f"sequences: {text} epochs"
    )


def check_memory(loaded, examples, train_config):
    """Print the size of a step; raise InputError if this machine has less memory."""
    longest = max(len(example.tokens) for example in examples)
    if train_config.packing:
        longest = train_config.max_seq_length
    prompt = virtual_tokens(loaded.adapters.get("model", {}))
    if prompt is not None:
        longest += len(prompt)
    needed = print_size(loaded, train_config.batch_size * (longest - 1), train_config)
    there = memory.physical_memory()
    if needed >= there:
        raise InputError(
            f"a step needs {needed / 1e9:,.0f} GB, but this machine has {there / 1e9:,.0f} GB: "
            "lower `batch_size` or `max_seq_length`, or set `gradient_checkpointing`"
        )


def print_size(loaded, tokens, train_config):
    """Print the trained parameters and the memory of a step; return its bytes."""
    memory.print_trainable_parameters(loaded.adapters, loaded.model)
    parts = memory.estimate_with(train_config, loaded.adapters, loaded.model, tokens)
    is_prefix = getattr(loaded.adapter_config, "method", "") == "prefix"
    without = ", without the scores of prefix tuning" if is_prefix else ""
    print(f"a step over {tokens} tokens{without}:\n{memory.format_estimate(parts)}")
    return sum(parts.values())


@dataclass
class RunWriter:
    """Write a checkpoint every few steps, and then the files that are derived from it.

    A run that ends before its first step changes nothing in the folder.
    """

    job: Job
    history: list = field(default_factory=list)  # the records of all steps and evaluations
    saved: int = 0  # the number of records in metrics.jsonl
    size: int = 0  # of metrics.jsonl, in bytes
    digest: Any = field(default_factory=hashlib.sha256)  # of its bytes
    drawn: float = field(default_factory=time.monotonic)  # when the curve was drawn last

    def save(self, state):
        """Write a checkpoint, and the files that are derived from it; process 0 alone does it."""
        if processes.rank() > 0:
            return
        folder = self.job.folder
        args = self.job.args
        loaded = self.job.loaded
        metadata = self.job.metadata
        new = "".join(json.dumps(row) + "\n" for row in self.history[self.saved :])  # in ASCII
        self.digest.update(new.encode())
        facts = {"metrics_size": self.size, "metrics_sha256": self.digest.hexdigest()}
        save_state(folder / CHECKPOINT, state, metadata | facts, new)
        if self.size:
            append(folder / run_folder.METRICS, self.size, new)
        else:
            replace_text(folder / run_folder.METRICS, new)
        (folder / run_folder.CARD).unlink(missing_ok=True)  # the end of the run writes it
        write_adapter(folder, state.kept, loaded.model, loaded.adapter_config, args.adapter_dtype)
        if time.monotonic() - self.drawn > 60:  # seconds: a drawing takes as long as a few steps
            names = [Path(metadata["settings"][name]).name for name in ("model", "data")]
            curve(folder / run_folder.CURVE, self.history, " on ".join(names), state.best.step)
            self.drawn = time.monotonic()
        elif not self.size:  # it may be that of an earlier run
            (folder / run_folder.CURVE).unlink(missing_ok=True)
        # the last file: see `loading.read_run`
        replace_text(folder / SETTINGS, settings_file(metadata))
        self.size += len(new)
        self.saved = len(self.history)

    def end(self, state):
        """Save with the records of the whole run, and draw the curve."""
        self.saved = 0
        self.size = 0
        self.digest = hashlib.sha256()
        self.drawn = -math.inf
        self.save(state)


SAMPLE = 48  # tokens of a printed answer


def print_sample(adapters, loaded, row):
    """Print the prompt of a row, the model's answer and the right answer; nothing for a text."""
    tokenizer = loaded.tokenizer
    prompt, answer = split_row(row, tokenizer)
    if prompt:
        ids = tokenizer.encode(prompt, add_special_tokens=not is_chat(row, tokenizer))
        # one more tells whether the answer goes on
        whole = list(generate(adapters, loaded.model, ids, max_tokens=SAMPLE + 1))
        said = whole[:SAMPLE]
        right = tokenizer.decode(tokenizer.encode(answer))
        messages = [{}, {}, *(messages_of(row) if is_chat(row, tokenizer) else ())]
        asked = messages[-2].get("content") or prompt  # a call of a tool has no content
        print(f"  asked: {asked.strip()!r}")
        cut = f", cut after {SAMPLE} tokens" if len(whole) > SAMPLE else ""
        print(f"  says:  {tokenizer.decode(said).strip()!r}{cut}")
        print(f"  right: {right.strip()!r}")

"""A training run and its folder: settings, metrics, checkpoints, adapter, curve.

Whatever is written is written beside its place and renamed, so that a kill at any moment leaves
the old or the new file whole. `metrics.jsonl` grows a line at a time and is cut back to the
checkpoint on resuming.
"""

import json
from dataclasses import fields
from pathlib import Path

from ..config import TrainConfig, flag, require
from ..data.rows import load_rows, prepare, split_row
from ..evaluation.memory import ledger, peak_rss_mb, summary, table
from ..evaluation.metrics import evaluate
from ..evaluation.plot import curve
from ..formats.checkpoint import load_state, save_adapter, save_state
from ..formats.files import replacing
from ..generate import generate
from ..train import check, train
from .checklist import Rows, questions
from .opening import starting

FILES = (
    "adapter_config.json", "adapter_model.safetensors", "checkpoint.safetensors", "curve.png",
    "metrics.jsonl", "train_config.toml",
)  # fmt: skip
NOT_SETTINGS = ("command", "config", "resume", "overwrite", "dry_run")


def fine_tune(args):
    """`minilora train`: everything is checked before the first file is written."""
    folder, config = Path(args.adapter_path), TrainConfig(**_picked(args, TrainConfig))
    claim(folder, args)
    model, base, tokenizer, adapters, adapter_config = starting(args)
    check(adapters, config)
    rows = load_rows(args.data, "train")
    examples, cut = prepare(rows, tokenizer, config)
    held_out = load_rows(args.data, "valid")
    valid = prepare(held_out, tokenizer, config)[0] if held_out else []
    print(summary(adapters, base))
    tokens = config.batch_size * max(len(e.tokens) - 1 for e in examples)
    print(f"a step over {tokens} tokens:\n{table(ledger(adapters, base, model, tokens))}")
    print(f"{len(examples)} rows to train on, {len(valid)} held out, {cut} cut to --max-seq-length")
    if args.dry_run:
        facts = Rows(len(examples), len(valid), cut, any("text" not in row for row in rows))
        asked = questions(
            adapter_config, config, args.quantize, model, facts, args.also_train, args.block_size
        )
        print("\n".join(f"question: {line}" for line in asked) or "no setting is questioned")
        return
    adapters, state = begin(folder, args, adapters)
    show = Showing(base, model, tokenizer, held_out, valid)
    show("before", adapters)

    log = Log(folder, args, base, adapter_config)
    some = valid[: config.val_batches * config.batch_size]
    try:
        best, _ = train(adapters, base, examples, model, config, some, state, log.on_step)
    finally:
        log.save()
    if log.latest is None:
        best = (state or {}).get("best", adapters)
    save_adapter(folder, best, base, adapter_config, args.model, config.adapter_dtype)
    history = read_metrics(folder)
    curve(folder / "curve.png", history, f"{args.model} on {args.data}")
    show("after", best)
    print(f"written to {folder}: try `minilora evaluate --adapter-path {folder}`")


def _picked(args, kind):
    return {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}


def claim(folder, args):
    """Raise InputError if the run may not be written to `folder`; nothing is changed."""
    require(
        args.save_every >= 1, f"--save-every must be a whole number from 1, got {args.save_every}"
    )
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file: name another folder")
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if args.resume:
        require(
            "checkpoint.safetensors" in there,
            f"{folder} has no checkpoint to --resume from: start anew with --overwrite",
        )
        return
    foreign = [name for name in there if name.removesuffix(".tmp") not in FILES]  # or a kill's
    require(
        not foreign,
        f"{folder} holds {', '.join(foreign[:3])}, which is no run's: name another --adapter-path",
    )
    require(
        not there or args.overwrite or args.dry_run,
        f"{folder} holds a run: --resume it, --overwrite it, or name another --adapter-path",
    )


def begin(folder, args, adapters):
    """(adapters, state) to go on from; a new run's folder is cleared and its settings written."""
    checkpoint, settings = folder / "checkpoint.safetensors", settings_of(args)
    if not args.resume:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            for left in (folder / name, folder / f"{name}.tmp"):
                left.unlink(missing_ok=True)
        with replacing(folder / "train_config.toml") as (temporary,):
            temporary.write_text(as_toml(settings), encoding="utf-8")
        return adapters, None
    saved, state, earlier = load_state(checkpoint)
    for name, value in settings.items():
        require(
            name == "adapter_path" or earlier.get(name) == value,
            f"{flag(name)} is {value} but was {earlier.get(name)} when {folder} was started: "
            "a run is resumed with its own settings",
        )
    rows = [row for row in read_metrics(folder) if row["step"] <= state["step"]]
    with replacing(folder / "metrics.jsonl") as (temporary,):
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return saved, state


def settings_of(args):
    """Every resolved setting of a run, by its flag's name; None (not given) left out."""
    return {k: v for k, v in vars(args).items() if k not in NOT_SETTINGS and v is not None}


class Log:
    """Writes down a run as it goes: a metrics row a step, a checkpoint every few."""

    def __init__(self, folder, args, base, adapter_config):
        self.folder, self.args, self.base = folder, args, base
        self.adapter_config = adapter_config
        self.latest, self.saved_step = None, None

    def on_step(self, rows, adapters, state):
        """Called by `train` after every step."""
        rows[0]["peak_rss_mb"] = peak_rss_mb()
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.latest = adapters, state
        if state["step"] % self.args.save_every == 0:
            self.save()

    def save(self):
        """The checkpoint and the adapter of the latest step, if not saved already."""
        if self.latest is None or self.latest[1]["step"] == self.saved_step:
            return
        adapters, state = self.latest
        save_state(self.folder / "checkpoint.safetensors", adapters, state, settings_of(self.args))
        save_adapter(
            self.folder, state.get("best", adapters), self.base, self.adapter_config,
            self.args.model, self.args.adapter_dtype,
        )  # fmt: skip
        self.saved_step = state["step"]


class Showing:
    """Prints what the model can do: held-out scores, and one answer beside the right one."""

    def __init__(self, base, model, tokenizer, rows, examples):
        self.base, self.model, self.tokenizer = base, model, tokenizer
        self.rows, self.examples = rows, examples

    def __call__(self, when, adapters):
        if not self.rows:
            return
        score = evaluate(adapters, self.base, self.examples, self.model)
        print(
            f"{when}: held-out loss {score['loss']:.4f} nats a token, "
            f"exact match {100 * score['exact_match']:.1f} %"
        )
        row = self.rows[0]
        prompt, answer = split_row(row, self.tokenizer)
        if not prompt:  # a text row: continue its first third
            prompt, answer = answer[: len(answer) // 3], answer[len(answer) // 3 :]
        ids = self.tokenizer.encode(prompt)
        said = generate(adapters, self.base, ids, self.model, max_tokens=48)
        asked = row["messages"][-2]["content"] if len(row.get("messages", ())) > 1 else prompt
        right = self.tokenizer.decode(self.tokenizer.encode(answer))
        print(f"  asked: {asked.strip()!r}")
        print(f"  says:  {self.tokenizer.decode(list(said)).strip()!r}")
        print(f"  right: {right.strip()!r}")


def read_metrics(folder):
    """The rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path, rows = Path(folder) / "metrics.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def as_toml(settings):
    """Settings as TOML: strings, numbers, booleans and lists of them."""
    return "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in settings.items())

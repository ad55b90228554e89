"""The folder of a training run: whose it is, what is in it, how a run goes on, its model card."""

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from ..config import InputError, LoraConfig, check, flag, require
from ..data.rows import read_jsonl
from ..data.tasks import BUILTIN
from ..formats import fetch
from ..formats.checkpoint import load_state
from ..formats.files import replacing
from ..formats.pretrained import EMBEDDED
from .opening import warn

LOCK, VERSION = ".lock", 1  # of the checkpoint's facts
FILES = (
    "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint.safetensors",
    "curve.png", "metrics.jsonl", "train_config.toml", LOCK,
)  # fmt: skip
NOT_SETTINGS = ("command", "config", "resume", "overwrite", "dry_run")


def claim(folder, args):
    """Raise InputError if the run may not be written to `folder`; nothing is changed."""
    check("--save-every", args.save_every, "be a whole number from 1")
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file: name another folder")
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    there = [name for name in there if name != LOCK]  # `lock` looks at that
    if args.resume:
        none = f"{folder} has no checkpoint to --resume from: start anew with --overwrite"
        require("checkpoint.safetensors" in there, none)
        return
    foreign = ", ".join([name for name in there if not _ours(name)][:3])
    way = "name another --adapter-path"
    require(not foreign, f"{folder} holds {foreign}, which is no run's: {way}")
    free = not there or args.overwrite or args.dry_run
    require(free, f"{folder} holds a run: --resume it, --overwrite it, or {way}")


def _ours(name):
    """Whether a run writes a file of that name, or a kill left it half-written."""
    whole, _, number = name.removesuffix(".tmp").rpartition(".")
    return name in FILES or (name.endswith(".tmp") and (whole in FILES and number.isdecimal()))


def resume(folder, facts):
    """Return (adapters, state) of the run's checkpoint, once it is sure that nothing has changed.

    facts: settings, digests and threads of now. Rows of metrics.jsonl after the checkpoint go.
    """
    adapters, state, then = load_state(folder / "checkpoint.safetensors")
    for name, value in facts["settings"].items():
        before = then["settings"].get(name)
        changed = f"{flag(name)} is {value} but was {before} when {folder} was started"
        same = name == "adapter_path" or before == value
        require(same, f"{changed}: a run is resumed with its own settings")
    for name, value in facts["digests"].items():
        other = (
            f"{flag(name)} {facts['settings'][name]} are not those that {folder} was started with"
        )
        way = "restore them, or start anew with --overwrite"
        require(then["digests"].get(name) == value, f"the files of {other}: {way}")
    now, before = facts["threads"], then.get("threads")
    if now != before:
        warn(f"resuming on {now} threads what was started on {before}: last bits can differ")
    rows = [row for row in read_metrics(folder) if row["step"] <= state["step"]]
    replace_text(folder / "metrics.jsonl", lines(rows))
    return adapters, state


def digests(args):
    """{setting: SHA-256} of the files that --data and --model name."""
    return {name: digest(files_of(name, getattr(args, name))) for name in ("data", "model")}


def settings_of(args):
    """Every resolved setting of a run, by its flag's name; None (not given) left out."""
    return {k: v for k, v in vars(args).items() if k not in NOT_SETTINGS and v is not None}


@contextmanager
def lock(folder):
    """Hold the run's folder, so that no other process writes to it; make it if it is not there.

    The system lets go of the lock when the process ends, however that is. A folder that is empty
    at the end is removed. Where a system has no such locks, none is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        with open(path, "a+") as file:
            try:
                with suppress(ImportError):  # only POSIX has such locks
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = f"process {path.read_text(errors='replace')}: wait for it to end, or name"
                raise InputError(f"{folder} is in use by {who} another --adapter-path") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            for left in folder.glob("*.tmp"):  # half-written when a run was killed
                if _ours(left.name):
                    left.unlink()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            folder.rmdir()  # only if nothing was written


def files_of(setting, name):
    """The files that --data or --model names; none for built-in data."""
    path = Path(name)
    if setting == "model" and name in fetch.MODELS:
        return [fetch.cached(name)]
    if setting == "model" and (EMBEDDED / name).is_dir():
        path = EMBEDDED / name
    if setting == "data" and name in BUILTIN:
        return []
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def digest(files):
    """The SHA-256 of the files' contents, one after the other."""
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def model_card(args, config, scores):
    """The text of the folder's README.md: what was trained on what, its scores, how to load it."""
    stored = f"{args.quantize}, blocks of {args.block_size}"
    if args.quantize in ("none", "int8"):
        stored = args.quantize
    # PiSSA and LoftQ change the base: there `quantize` does not write the one of this adapter
    plain_start = isinstance(config, LoraConfig) and config.init_lora_weights is True
    its_own = plain_start and args.quantize != "none"
    peft = f"""
In PEFT, on exactly this base:

    # minilora quantize --model {args.model} --quantize {args.quantize} \\
    #     --block-size {args.block_size} --out base
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    model = peft.PeftModel.from_pretrained(base, ".")
"""
    return f"""# An adapter for {args.model}

Trained by minilora with `{args.method}`. Every setting is in `train_config.toml`.

- Base: {args.model}, stored as {stored}. On another base, or on this one stored otherwise, the
  adapter can lose all that it learned.
- Data: {args.data}, {args.iters} steps.
- Held-out rows: {", ".join(f"{k} {v:.4f}" for k, v in (scores or {"none": 0}).items())}

    minilora evaluate --adapter-path .
    minilora generate --adapter-path . --prompt "…"
    minilora merge --adapter-path . --out merged    # base and adapter in one, for transformers
{peft if its_own else ""}"""


def read_metrics(folder):
    """The rows of a run's metrics.jsonl; InputError names the line that is none."""
    path = Path(folder) / "metrics.jsonl"
    return read_jsonl(path, _check_metrics) if path.exists() else []


def _check_metrics(row, where):
    """Raise InputError unless `row` is a step's or an evaluation's: numbers that can be drawn."""
    sound = isinstance(row, dict) and type(row.get("step")) is int
    sound = sound and ("eval_loss" in row) == ("eval_exact_match" in row)
    for name, value in row.items() if sound else ():
        number = type(value) is float or (type(value) is int and abs(value) < 2**63)
        sound = sound and (number or name == "peak_rss_mb")
    require(sound, f"{where}: no row of metrics: restore the file, or delete it")


def replace_text(path, text):
    """Write a text file whole or not at all."""
    with replacing(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8")


def lines(rows):
    """Rows as JSON, one per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_toml(settings):
    """Settings as TOML: strings, numbers, booleans and lists of them."""
    return "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in settings.items())

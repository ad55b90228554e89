"""The folder of a training run: whose it is, what is in it, how a run goes on, its model card."""

import hashlib
import json
import math
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from ..config import InputError, LoraConfig, flag, require
from ..data.rows import read_jsonl
from ..data.tasks import BUILTIN
from ..formats import fetch
from ..formats.checkpoint import CONFIG, WEIGHTS, load_state, read_metadata
from ..formats.files import replace_text, write_errors
from ..formats.pretrained import EMBEDDED
from .arguments import CHECKPOINT, FORMAT_VERSION, SETTINGS
from .loading import warn

LOCK, METRICS = ".lock", "metrics.jsonl"
OTHERS = ("README.md", "curve.png")
FILES = (*OTHERS, CONFIG, WEIGHTS, CHECKPOINT, METRICS, SETTINGS, LOCK)
NOT_SETTINGS = ("command", "config", "resume", "overwrite", "dry_run")


def check_folder(folder, args):
    """Raise InputError if the run may not be written to `folder`; nothing is changed."""
    free = folder.is_dir() or not os.path.lexists(folder)
    require(free, f"{folder} is no folder: name another --adapter-path")
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    there = [name for name in there if name != LOCK and not _half_written(name)]  # see `lock`
    if args.resume:
        way = "start anew with --overwrite"
        require(CHECKPOINT in there, f"{folder} has no checkpoint to --resume from: {way}")
        return
    foreign, way = [name for name in there if name not in FILES], "name another --adapter-path"
    require(not foreign, f"{folder} holds {', '.join(foreign[:3])}, which is no run's: {way}")
    free = not there or args.overwrite or args.dry_run
    require(free, f"{folder} holds a run: --resume it, --overwrite it, or {way}")


def _half_written(name):
    """Whether a killed run may have left a file of that name."""
    whole, _, number = name.removesuffix(".tmp").rpartition(".")
    return name.endswith(".tmp") and whole in FILES and number.isdecimal()


def resume(folder, metadata, start):
    """Return (adapters, state) of the run's checkpoint, once it is sure that nothing has changed.

    metadata: settings, digests and threads of now; start: the adapters before the first step. Rows
    of metrics.jsonl after the checkpoint are removed.
    """
    checkpoint, metrics = folder / CHECKPOINT, folder / METRICS
    settings, then = metadata["settings"], read_metadata(checkpoint)[1]
    way = "restore them, or start anew with --overwrite"
    for name, value in settings.items():
        before = then["settings"].get(name)
        changed = f"{flag(name)} is {value} but was {before} when {folder} was started"
        same = name == "adapter_path" or before == value
        require(same, f"{changed}: a run is resumed with its own settings")
    for name, value in metadata["digests"].items():
        changed = f"the files of {flag(name)} {settings[name]} are not those that {folder} was"
        require(then["digests"].get(name) == value, f"{changed} started with: {way}")
    adapters, state, _ = load_state(checkpoint, start)
    step, last = state["step"], settings["iters"]
    require(step <= last, f"{checkpoint} is at step {step} of {last}: start anew with --overwrite")
    now, before = metadata["threads"], then["threads"]
    if before != now:
        warn(f"resuming on {now} threads what was started on {before}: last bits can differ")
    first = as_json_lines(then.get("rows", []))
    if first and not (metrics.exists() and metrics.read_bytes().startswith(first.encode())):
        begin_run(folder, first)  # which a kill prevented
    rows = read_metrics(folder, step)
    if not rows or rows[-1]["step"] < step:
        warn(f"{metrics} ends before the checkpoint's step {step}: the curve will lack steps")
    replace_text(metrics, as_json_lines(rows))
    return adapters, state


def begin_run(folder, text):
    """Remove what an older run left, but for its adapter, and write the first metrics."""
    with write_errors(folder):
        for name in (SETTINGS, *OTHERS):
            (folder / name).unlink(missing_ok=True)
    replace_text(folder / METRICS, text)


def metadata(args):
    """What must be the same when a run is resumed: its settings, the files that it reads."""
    settings = {k: v for k, v in vars(args).items() if k not in NOT_SETTINGS and v is not None}
    for name, value in settings.items():
        whole = str(value).encode(errors="ignore").decode() == str(value)
        require(whole, f"{flag(name)} {value} is not UTF-8: give it another name")
    files = {name: digest(data_files(name, getattr(args, name))) for name in ("data", "model")}
    return {"version": FORMAT_VERSION, "settings": settings, "digests": files}


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
                way = "wait for it to end, or name another --adapter-path"
                used = f"{folder} is in use by process {path.read_text(errors='replace')}"
                raise InputError(f"{used}: {way}") from None
            with write_errors(path):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                for left in folder.glob("*.tmp"):  # half-written when a run was killed
                    if _half_written(left.name):
                        left.unlink()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
    finally:
        with suppress(OSError):
            folder.rmdir()  # only if nothing was written


def data_files(setting, name):
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
    blocks = "" if args.quantize in ("none", "int8") else f", blocks of {args.block_size}"
    stored = args.quantize + blocks
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


def read_metrics(folder, last=math.inf):
    """The rows of metrics.jsonl up to step `last`; behind it, a kill may have left anything.

    Raises InputError naming the line that is none.
    """
    path, rows = Path(folder) / METRICS, list[dict]()
    try:
        for row in read_jsonl(path, _check_metrics) if path.exists() else ():
            if row["step"] > last:
                break
            rows.append(row)
    except InputError:
        if not rows or rows[-1]["step"] != last:
            raise
    return rows


def _check_metrics(row, where):
    """Raise InputError unless `row` is a step's or an evaluation's: numbers that can be drawn."""
    sound = isinstance(row, dict) and type(row.get("step")) is int
    kinds = {"loss"}, {"eval_loss", "eval_exact_match"}
    sound = sound and set.union(*kinds) & row.keys() in kinds
    for name, value in row.items() if sound else ():
        number = type(value) is float or (type(value) is int and abs(value) < 2**63)
        sound = sound and (number or name == "peak_rss_mb")
    require(sound, f"{where}: no row of a run: restore the file or delete the line")


def as_json_lines(rows):
    """Rows as JSON, one per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_toml(settings):
    """Settings as TOML: strings, numbers, booleans and lists of them."""
    settings = {"format_version": FORMAT_VERSION, **settings}
    text = "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in settings.items())
    return text.replace("\x7f", "\\u007f")  # which TOML forbids and JSON does not

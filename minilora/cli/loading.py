"""Load a base and an adapter, for a new run or from the folder of an earlier run."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .. import kernels
from ..config import INITIALIZERS, InputError, LoraConfig, first_match
from ..data.rows import warn, warn_once
from ..formats import hf_tokenizer
from ..formats.checkpoint import (
    CHECKPOINT,
    SETTINGS,
    WEIGHTS,
    changes_base,
    load_adapter,
    needs_dense_base,
    read_metadata,
    read_source,
    trains_all,
)
from ..formats.files import errors_in, read_text
from ..formats.hf_folder import RUNS
from ..formats.pretrained import load
from ..methods.method import SIZES, MethodConfig
from ..methods.muon import split_matrices
from ..methods.registry import METHODS, get_peft_model, method_name
from ..methods.replaced import also_train
from ..model import Model, Source
from ..quant.schemes import WITHOUT_BLOCKS, with_compute_dtype
from ..training import MAX_PARALLEL_PARAMETERS, learning_rates
from ..tree import arrays, flatten, named_leaves, num_parameters
from .arguments import DIGEST, as_parsed, flag, number, settings_file, toml_settings
from .stored_paths import quote


class LoadedModel(NamedTuple):
    """A model and its adapter."""

    model: Model
    tokenizer: object
    adapters: dict = {}  # noqa: RUF012
    adapter_config: LoraConfig | MethodConfig | None = None  # None: no adapter
    run: tuple = ({}, {})  # of the adapter, or of the one that was merged; see `read_run`


def base_line(model):
    """Return the line of a report that names the base, its storage, and how it is multiplied."""
    line = f"base: {model.source.name}, stored as {model.source.scheme}"
    if model.source.compute_dtype == "bfloat16":
        line += ", products in bfloat16"
        if model.ops is not kernels.ops or not kernels.HAS_BFLOAT16:
            line += " without its instruction, which takes longer than float32"
    return line


def read_run(folder):
    """Return (settings, {setting: SHA-256 of its files when the run began}) of the run in `folder`.

    Both are empty if no run wrote the adapter in it. Raises InputError if a kill has left the
    adapter of an older run next to the checkpoint.
    """
    path = Path(folder) / SETTINGS
    checkpoint = path.with_name(CHECKPOINT)
    text = read_text(path) if path.exists() else ""
    # the settings are the last file that a run writes after its checkpoint
    if checkpoint.exists() and text != settings_file(read_metadata(checkpoint)[1]):
        raise InputError(
            f"{path} is not that of {CHECKPOINT}: "
            f"write it again with `minilora train --resume --adapter-path {quote(folder)}`"
        )
    if text and path.with_name(WEIGHTS).exists() and read_source(folder) is None:
        warn_once(f"another program has written the adapter in {folder}: its run is unknown")
        return {}, {}
    return toml_settings(path) if text else {}, dict(re.findall(DIGEST, text))


def merged_runs(model):
    """Return the runs whose adapters were merged into a model, the last one at the end.

    Each is as `read_run` returns it.
    """
    with errors_in(f"{RUNS} in the config.json of {model.source.name}"):
        stored = model.config.other_fields.get(RUNS, [])
        return [(as_parsed(settings, "settings"), {**digests}) for settings, digests in stored]


def load_for_training(args):
    """Return the LoadedModel of a run, with a new adapter or the one of --init-adapter."""
    if args.init_adapter:
        run = read_run(args.init_adapter)  # first: see `commands.load_model`
        base = args.model, args.quantize, args.block_size, args.compute_dtype
        if not args.resume:  # else, the settings of the run have them already
            base = base_of(args.init_adapter, args)
            args.model, args.quantize, args.block_size, args.compute_dtype = base
        loaded = load_with_adapter(args.init_adapter, base)._replace(run=run)
        args.method = method_name(loaded.adapter_config)
        if args.method == "p-tuning":
            raise InputError(
                f"{args.init_adapter} has the prompt of P-tuning without the network that computes "
                "it: train a new adapter"
            )
    else:
        loaded = new_adapter(args, make_adapter_config(args))
    if args.also_train and not isinstance(loaded.adapter_config, LoraConfig):
        raise InputError(f"--also-train needs --method lora or dora, not --method {args.method}")
    if "bias" in args.also_train and (
        args.method == "dora" or loaded.adapter_config.init_lora_weights == "pissa"
    ):
        what = "PEFT's files of DoRA and PiSSA cannot hold --also-train bias"
        raise InputError(f"{what}: choose norm or head")
    adapters = loaded.adapters
    for group in args.also_train:
        more = also_train(adapters, loaded.model.base, [group])
        if flatten(more).keys() == flatten(adapters).keys():
            what = f"--also-train {group} has no effect: the adapter trains it already"
            raise InputError(f"{what}: leave it out, or give it once")
        adapters = more
    return loaded._replace(adapters=adapters)


def base_of(folder, args):
    """Return (name, scheme, block size, compute_dtype): of the flags, else of the adapter's source.

    Raises InputError if neither names the base, and for a flag that the adapter does not allow:
    another storage of a base that it replaces, or other products than those of its frozen weights.
    """
    source = read_source(folder) or Source()
    found = {"model": source.name, "quantize": source.scheme, "compute_dtype": source.compute_dtype}
    for name in found:
        if flag(name) in args.given:
            found[name] = getattr(args, name)
    # without its source, nothing is known of these weights
    if changes_base(folder) and source.name and found["compute_dtype"] != source.compute_dtype:
        what = f"the frozen weights of the adapter in {folder} are those of {source.compute_dtype}"
        raise InputError(f"{what} products: leave --compute-dtype out")
    stored = None if found["quantize"] in WITHOUT_BLOCKS else source.block_size
    if not found["model"]:
        raise InputError(
            f"{folder} does not say on which base its adapter was trained: "
            "give --model and --quantize"
        )
    if trains_all(folder) and (found["quantize"] != "none" or args.block_size):
        what = "--quantize and --block-size have no effect"
        raise InputError(
            f"{what}: {folder} has the dense weights of the whole base: leave them out"
        )
    return found["model"], found["quantize"], args.block_size or stored, found["compute_dtype"]


OF_LORA = (
    "lora_r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "use_rslora", "init_lora_weights",
)  # fmt: skip


RATES = {  # settings of the learning rates: why some adapters have none of these rates
    "also_train_lr_scale": "without --also-train",
    "layer_lr_decay": "if all trained parameters are in one layer",
    "loraplus_lr_ratio": "on a method without the factors A and B",
}


def unused_settings(args, loaded, train_config, examples, valid):
    """Return {setting: why it has no effect}; raise InputError if the user gave its flag."""
    own = OF_LORA if args.method in ("lora", "dora") else (METHODS[args.method].size,)
    unused = {s: f"with --method {args.method}" for s in (*OF_LORA, *SIZES) if s not in own}
    if args.init_adapter:
        why = f"with --init-adapter: the adapter in {args.init_adapter} has its own"
        unused = dict.fromkeys(("method", *OF_LORA, *SIZES), why)
    if args.method == "full":
        unused["compute_dtype"] = "with --method full, which has no frozen weights"
    trained = arrays(loaded.adapters)
    for name, why in RATES.items():
        rates = [
            learning_rates(1.0, replace(train_config, **{name: value}), trained)
            for value in (1.0, 2.0)
        ]
        if rates[0] == rates[1]:
            unused[name] = why
    matrices, others = split_matrices(trained)
    if "--optimizer" in args.given and train_config.optimizer == "muon" and not matrices:
        raise InputError("--optimizer muon has no effect without matrices to train: leave it out")
    if train_config.optimizer == "muon" and not others:
        unused |= dict.fromkeys(
            ("adam_beta1", "adam_beta2", "adam_eps"),
            "with --optimizer muon and only matrices to train",
        )
    adapted = {path.rpartition(".")[0] for path, _ in named_leaves(trained) if "lora_A" in path}
    for name, of_modules in (("lora_r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        pattern = getattr(loaded.adapter_config, of_modules, {})
        if adapted and all(first_match(pattern, path, None) for path in adapted):
            unused[name] = f"with {flag(of_modules)}, which sets that of each adapted module"
    if all(path.startswith(("lm_head.", "model.norm.")) for path, _ in named_leaves(trained)):
        unused["gradient_checkpointing"] = "if no layer is trained"
    if train_config.batch_size == 1:
        unused["shards"] = "with --batch-size 1"
    if num_parameters(trained) > MAX_PARALLEL_PARAMETERS:
        unused["shards"] = f"with more than {MAX_PARALLEL_PARAMETERS:,} trained parameters"
    if not valid:
        unused |= dict.fromkeys(("steps_per_eval", "val_batches"), "without held-out rows")
    if all(all(example.answer) for example in [*examples, *valid]):
        unused["mask_prompt"] = "on rows without a prompt"
    if args.early_stopping_patience:
        unused["keep_best"] = "with --early-stopping-patience, which keeps the best adapter"
    templates = f"{loaded.tokenizer.chat_template} {getattr(loaded.tokenizer, 'for_tools', None)}"
    if "strftime_now" not in templates:
        unused["chat_date"] = "without a chat template that shows the date"
    for name, why in unused.items():
        if flag(name) in args.given:
            raise InputError(f"{flag(name)} has no effect {why}: leave it out")
    return unused


def make_adapter_config(args):
    """Return the LoraConfig or MethodConfig that the flags describe."""
    if args.method not in ("lora", "dora"):
        return MethodConfig(args.method, **{name: getattr(args, name) for name in SIZES})
    return LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout,
        target_modules=names_or_regex(args.target_modules), use_rslora=args.use_rslora,
        exclude_modules=names_or_regex(args.exclude_modules or []) or None,
        rank_pattern=pattern("rank_pattern", args.rank_pattern, int),
        alpha_pattern=pattern("alpha_pattern", args.alpha_pattern, number),
        layers_to_transform=args.layers_to_transform,
        use_dora=args.method == "dora", init_lora_weights=args.init_lora_weights or True,
    )  # fmt: skip


def names_or_regex(values):
    """Return the values, or the only one, a string, if no module can have it as its name."""
    return values[0] if len(values) == 1 and re.search(r"[^\w.-]", values[0]) else values


def pattern(setting, values, as_number):
    """Return {regex: number} of the values "REGEX=NUMBER" of a flag; None: not given."""
    found = {}
    for value in values or ():
        regex, _, text = value.rpartition("=")
        try:
            found[regex] = as_number(text)
        except ValueError as error:
            kind = "WHOLE NUMBER" if as_number is int else "NUMBER"
            raise InputError(f"{flag(setting)}: must be REGEX={kind}, got {value}") from error
    if "" in found or len(found) < len(values or ()):
        raise InputError(f"{flag(setting)}: an expression is empty or there twice")
    return found


def new_adapter(args, adapter_config):
    """Return a LoadedModel with a new adapter on the base that --model and --quantize name."""
    starts_dense = getattr(adapter_config, "init_lora_weights", True) in INITIALIZERS
    stored = args.quantize, args.block_size
    scheme, block_size = ("none", None) if starts_dense else stored
    dense = starts_dense or args.method == "full"
    dtype = "float32" if dense else args.compute_dtype
    model, tokenizer = load(args.model, scheme, block_size, not dense, dtype)
    later = stored if starts_dense else ()
    adapters, model = get_peft_model(model, adapter_config, args.seed, *later)
    model = with_compute_dtype(model, args.compute_dtype)
    return LoadedModel(model, tokenizer, adapters, adapter_config)


def load_with_adapter(folder, base, load=load):
    """Return the LoadedModel of the adapter in `folder`, on a base as `base_of` returns it.

    Warns if it is not the base that the adapter was trained on; see `load_adapter`. Warns of
    another tokenizer in the folder, which is not used.
    """
    name, scheme, block_size, compute_dtype = base
    dense = needs_dense_base(folder)
    first = ("none", None, False) if dense else (scheme, block_size, True, compute_dtype)
    model, tokenizer = load(name, *first)
    if has_other_tokenizer(Path(folder), tokenizer):
        warn(
            f"{folder} has another tokenizer or chat template than {name}, whose own is used: "
            "to use that of the adapter, copy its files into a copy of the base"
        )
    stored = (scheme, block_size) if changes_base(folder) else ()
    adapters, model, adapter_config = load_adapter(folder, model, *stored)
    if dense:  # PiSSA and LoftQ start from float32
        model = with_compute_dtype(model, compute_dtype)
    return LoadedModel(model, tokenizer, adapters, adapter_config)


def has_other_tokenizer(folder, tokenizer):
    """Tell whether a program has written another tokenizer, or template, next to an adapter."""
    if not any((folder / name).exists() for name in hf_tokenizer.FILES):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            own = hf_tokenizer.from_folder(folder, tokenizer.eos_token_id)
    except InputError:
        return True
    return tokens_and_templates(own) != tokens_and_templates(tokenizer)


def tokens_and_templates(tokenizer):
    """Return all that decides on the tokens of a row."""
    if not hasattr(tokenizer, "backend"):  # of bytes
        return None
    templates = tokenizer.chat_template, tokenizer.for_tools
    printed = {name: text for name, text in tokenizer.special.items() if name in str(templates)}
    return tokenizer.backend.to_str(), tokenizer.eos_token_id, *templates, printed

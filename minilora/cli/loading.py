"""Load a base and an adapter, for a new run or from the folder of an earlier run."""

import sys
from pathlib import Path
from typing import NamedTuple

from ..config import INITIALIZERS, LoraConfig, ModelConfig, require
from ..formats.checkpoint import (
    load_adapter,
    needs_dense_base,
    read_metadata,
    trains_all_weights,
)
from ..formats.pretrained import load
from ..methods.registry import MethodConfig, also_train, get_peft_model
from .arguments import CHECKPOINT, SETTINGS, checkpoint_settings, toml_settings
from .stored_paths import digest, find


class LoadedModel(NamedTuple):
    """A base and its adapter, with their configurations."""

    model_config: ModelConfig
    base: dict
    tokenizer: object
    adapters: dict = {}  # noqa: RUF012
    adapter_config: LoraConfig | MethodConfig | None = None  # None: no adapter
    settings: dict = {}  # noqa: RUF012  settings of the run that trained the adapter


def warn(text):
    """Print a warning as one line on standard error."""
    print(f"warning: {text}", file=sys.stderr)


def run_settings(folder):
    """Return the settings of the run in `folder`, or {} if there are none."""
    path = Path(folder) / SETTINGS
    if not path.exists():
        return {}
    return find(toml_settings(path, written=True), folder, run_digests(folder))


def run_digests(folder):
    """Return {setting: SHA-256 of its files when the run began}; {} without a checkpoint."""
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        return {}
    metadata = read_metadata(path)[1]
    checkpoint_settings(metadata, path)  # raises InputError if the metadata are damaged
    return metadata["digests"]


def warn_of_another_base(folder, settings, name, scheme, block_size):
    """Warn if the base `name`, stored in `scheme`, is not the one that the adapter was trained on.

    An adapter also corrects the errors of the storage.
    """
    risk = "an adapter can lose all that it learned on another base (lesson 13b)"
    trained_on = settings.get("quantize", scheme), settings.get("block_size", block_size)
    before, now = (
        kind if kind in ("none", "int8") else f"{kind}, block size {size}"
        for kind, size in (trained_on, (scheme, block_size))
    )
    if before != now:
        warn(f"{folder} was trained on a base stored as {before}, not {now}: {risk}")
    expected = run_digests(folder).get("model")
    if expected is not None and digest("model", name) != expected:
        warn(f"the files of {name} are not those of the base that {folder} was trained on: {risk}")


def load_for_training(args):
    """Return the LoadedModel of a run, with a new adapter or the one of --init-adapter."""
    if args.init_adapter:
        folder, how = args.init_adapter, (args.quantize, args.block_size)
        warn_of_another_base(folder, run_settings(folder), args.model, *how)
        loaded = load_with_adapter(folder, args.model, *how)
        found = method_name(loaded.adapter_config)
        require(found == args.method, f"{folder} has the method {found}: give --method {found}")
    else:
        loaded = new_adapter(args, make_adapter_config(args))
    possible = isinstance(loaded.adapter_config, LoraConfig) or not args.also_train
    require(possible, f"--also-train needs --method lora or dora, not --method {args.method}")
    possible = "bias" not in args.also_train or args.method != "dora"
    require(possible, "PEFT's files of DoRA cannot hold --also-train bias: choose norm or head")
    return loaded._replace(adapters=also_train(loaded.adapters, loaded.base, args.also_train))


def make_adapter_config(args):
    """Return the LoraConfig or MethodConfig that the flags describe."""
    if args.method not in ("lora", "dora"):
        why = f"--init-lora-weights needs --method lora or dora, not --method {args.method}"
        require(args.init_lora_weights is None, why)
        return MethodConfig(args.method, args.num_virtual_tokens, args.bottleneck_size)
    layers = args.layers_to_transform
    return LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout,
        target_modules=tuple(args.target_modules), use_rslora=args.use_rslora,
        layers_to_transform=None if layers is None else tuple(layers),
        use_dora=args.method == "dora", init_lora_weights=args.init_lora_weights or True,
    )  # fmt: skip


def method_name(adapter_config):
    """Return the name in METHODS of a LoraConfig or MethodConfig."""
    if isinstance(adapter_config, MethodConfig):
        return adapter_config.method
    return "dora" if adapter_config.use_dora else "lora"


def new_adapter(args, adapter_config):
    """Return a LoadedModel with a new adapter on the base that --model and --quantize name."""
    dense = getattr(adapter_config, "init_lora_weights", True) in INITIALIZERS
    scheme, low_precision = "none" if dense else args.quantize, args.method != "full"
    config, base, tokenizer = load(args.model, scheme, args.block_size, low_precision and not dense)
    how = args.quantize, args.block_size
    adapters, base = get_peft_model(base, adapter_config, args.seed, *how)
    return LoadedModel(config, base, tokenizer, adapters, adapter_config)


def load_with_adapter(folder, name, scheme, block_size, load=load):
    """Return the LoadedModel of the adapter in `folder`, on the base `name` stored in `scheme`."""
    dense, low_precision = needs_dense_base(folder), not trains_all_weights(folder)
    config, base, tokenizer = load(name, "none" if dense else scheme, block_size, low_precision)
    how = (scheme, block_size) if dense else ()
    adapters, base, adapter_config = load_adapter(folder, base, *how)
    return LoadedModel(config, base, tokenizer, adapters, adapter_config)

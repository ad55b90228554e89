"""Open a base and an adapter: for a new run, or from the folder of an earlier one."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import INITIALIZERS, LoraConfig, ModelConfig, require
from ..formats.checkpoint import load_adapter, needs_dense_base, trains_all_weights
from ..formats.pretrained import load
from ..methods import initializers
from ..methods.registry import METHODS, MethodConfig, also_train
from .arguments import SETTINGS, toml_settings


class LoadedModel(NamedTuple):
    """A base and an adapter on it, with all that says what they are."""

    model: ModelConfig
    base: dict
    tokenizer: object
    adapters: dict = {}  # noqa: RUF012
    config: LoraConfig | MethodConfig | None = None  # None: no adapter
    settings: dict = {}  # noqa: RUF012  of the run that trained the adapter


def warn(text):
    """Print a warning, one line on standard error."""
    print(f"warning: {text}", file=sys.stderr)


def run_settings(folder):
    """The settings of the run in `folder`; none if that is not a run's."""
    path = Path(folder) / SETTINGS
    return toml_settings(path) if path.exists() else {}


def warn_of_another_base(folder, settings, scheme, block_size):
    """Warn if the run in `folder` trained its adapter on a base that was stored otherwise.

    An adapter also makes up for what quantization did to its own base: on another base a small
    model can lose all that it learned.
    """
    its_own = settings.get("quantize", scheme), settings.get("block_size", block_size)
    before, now = (
        kind if kind in ("none", "int8") else f"{kind}, block size {size}"
        for kind, size in (its_own, (scheme, block_size))
    )
    if before != now:
        what = f"{folder} was trained on a base stored as {before}, not {now}"
        warn(f"{what}: an adapter can lose all that it learned on another base (lesson 13)")


def load_for_training(args):
    """The Start of a run: new, or from --init-adapter."""
    if args.init_adapter:
        folder, how = args.init_adapter, (args.quantize, args.block_size)
        warn_of_another_base(folder, run_settings(folder), *how)
        start = load_with_adapter(folder, args.model, *how)
        held = method_name(start.config)
        require(held == args.method, f"{args.init_adapter} holds {held}: give that to --method")
    else:
        start = new_adapter(args, make_adapter_config(args))
    possible = isinstance(start.config, LoraConfig) or not args.also_train
    require(possible, f"--also-train goes with low-rank factors, not with --method {args.method}")
    possible = "bias" not in args.also_train or args.method != "dora"
    require(possible, "--also-train bias has no place in PEFT's files of DoRA: take norm or head")
    return start._replace(adapters=also_train(start.adapters, start.base, args.also_train))


def make_adapter_config(args):
    """The LoraConfig or MethodConfig that the flags say."""
    if args.method not in ("lora", "dora"):
        why = f"which --method {args.method} does not have"
        require(args.init_lora_weights is None, f"--init-lora-weights is for lora_A, lora_B, {why}")
        return MethodConfig(args.method, args.num_virtual_tokens, args.bottleneck_size)
    layers = args.layers_to_transform
    return LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout,
        target_modules=tuple(args.target_modules), use_rslora=args.use_rslora,
        layers_to_transform=None if layers is None else tuple(layers),
        use_dora=args.method == "dora", init_lora_weights=args.init_lora_weights or True,
    )  # fmt: skip


def method_name(config):
    """The name in METHODS that a LoraConfig or MethodConfig belongs to."""
    if isinstance(config, MethodConfig):
        return config.method
    return "dora" if config.use_dora else "lora"


def new_adapter(args, config):
    """A new adapter on the base that --model and --quantize name."""
    rng, name = np.random.default_rng(args.seed), args.model
    if isinstance(config, LoraConfig) and config.init_lora_weights in INITIALIZERS:
        model, base, tokenizer = load(name)
        adapters, base = initializers.init(base, config, rng, args.quantize, args.block_size)
    else:
        low_precision = args.method != "full"  # what stays frozen may stay in its file's type
        model, base, tokenizer = load(name, args.quantize, args.block_size, low_precision)
        adapters, base = METHODS[args.method](base, config, rng)
    return LoadedModel(model, base, tokenizer, adapters, config)


def load_with_adapter(folder, name, scheme, block_size):
    """The adapter in `folder` on the base `name`, whose projections are stored in `scheme`.

    Raises InputError if either cannot be used.
    """
    dense, low_precision = needs_dense_base(folder), not trains_all_weights(folder)
    loaded_scheme = "none" if dense else scheme
    model, base, tokenizer = load(name, loaded_scheme, block_size, low_precision)
    how = (scheme, block_size) if dense else ()
    adapters, base, config = load_adapter(folder, base, *how)
    return LoadedModel(model, base, tokenizer, adapters, config)

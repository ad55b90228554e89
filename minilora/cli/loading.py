"""Open a base and an adapter: for a new run, or from the folder of an earlier one."""

import sys
from pathlib import Path
from typing import NamedTuple

from ..config import INITIALIZERS, LoraConfig, ModelConfig, require
from ..formats.checkpoint import load_adapter, needs_dense_base, trains_all_weights
from ..formats.pretrained import load
from ..methods.registry import MethodConfig, also_train, get_peft_model
from .arguments import SETTINGS, toml_settings


class LoadedModel(NamedTuple):
    """A base and an adapter on it, with all that says what they are."""

    model_config: ModelConfig
    base: dict
    tokenizer: object
    adapters: dict = {}  # noqa: RUF012
    adapter_config: LoraConfig | MethodConfig | None = None  # None: no adapter
    settings: dict = {}  # noqa: RUF012  of the run that trained the adapter


def warn(text):
    """Print a warning, one line on standard error."""
    print(f"warning: {text}", file=sys.stderr)


def run_settings(folder):
    """The settings of the run in `folder`; none if that is not a run's."""
    path = Path(folder) / SETTINGS
    return toml_settings(path, written=True) if path.exists() else {}


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
        warn(f"{what}: an adapter can lose all that it learned on another base (lesson 13b)")


def load_for_training(args):
    """The Start of a run: new, or from --init-adapter."""
    if args.init_adapter:
        folder, how = args.init_adapter, (args.quantize, args.block_size)
        warn_of_another_base(folder, run_settings(folder), *how)
        start = load_with_adapter(folder, args.model, *how)
        held = method_name(start.adapter_config)
        require(held == args.method, f"{args.init_adapter} holds {held}: give that to --method")
    else:
        start = new_adapter(args, make_adapter_config(args))
    possible = isinstance(start.adapter_config, LoraConfig) or not args.also_train
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


def method_name(adapter_config):
    """The name in METHODS that a LoraConfig or MethodConfig belongs to."""
    if isinstance(adapter_config, MethodConfig):
        return adapter_config.method
    return "dora" if adapter_config.use_dora else "lora"


def new_adapter(args, adapter_config):
    """A new adapter on the base that --model and --quantize name."""
    dense = getattr(adapter_config, "init_lora_weights", True) in INITIALIZERS
    scheme, low_precision = "none" if dense else args.quantize, args.method != "full"
    loaded = load(args.model, scheme, args.block_size, low_precision and not dense)
    how = args.quantize, args.block_size
    model = get_peft_model(loaded.base, adapter_config, args.seed, *how)
    return LoadedModel(loaded.model_config, model.base, loaded.tokenizer, model.adapters,
                       adapter_config)  # fmt: skip


def load_with_adapter(folder, name, scheme, block_size):
    """The adapter in `folder` on the base `name`, whose projections are stored in `scheme`.

    Raises InputError if either cannot be used.
    """
    dense, low_precision = needs_dense_base(folder), not trains_all_weights(folder)
    loaded = load(name, "none" if dense else scheme, block_size, low_precision)
    how = (scheme, block_size) if dense else ()
    adapters, base, adapter_config = load_adapter(folder, loaded.base, *how)
    return LoadedModel(loaded.model_config, base, loaded.tokenizer, adapters, adapter_config)

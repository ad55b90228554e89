"""Write and read adapters in PEFT's format, and the state of a run for resuming.

Each file is written under a temporary name, flushed to the disk and renamed. A kill at any moment
leaves the complete old file or the complete new one; while the two files of an adapter change, it
can leave the adapter without its weights. Nothing is pickled, and no pickle is opened.
"""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import lora
from ..config import INITIALIZERS, InputError, LoraConfig
from ..methods import initializers
from ..methods.method import MethodConfig
from ..methods.registry import METHODS
from ..model import Model, Source
from ..optim import OPTIMIZERS
from ..quant.schemes import WITHOUT_BLOCKS, with_compute_dtype
from ..training import Best, State
from ..tree import Tree, arrays, get, named_leaves, overlay, unflatten
from . import method_format, peft_format, safetensors_file
from .files import atomic_write, errors_in, parse_object, read_json, sync, write_json
from .safetensors_file import check_floats, check_names_and_shapes, entry, format_name

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CHECKPOINT = "checkpoint.safetensors"
SETTINGS = "train_config.toml"
SOURCE = "minilora_source"  # name of the metadata in WEIGHTS; PEFT ignores it


def save_adapter(
    folder: str | os.PathLike[str],
    adapters: Tree,
    model: Model,
    adapter_config: LoraConfig | MethodConfig,
    dtype: str = "float32",
) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT writes them.

    model: that of the adapter; its source is written, too. `adapter_config` is a LoraConfig, or the
    MethodConfig of another method. `dtype` is float32, bfloat16 or float16; trained biases next to
    A and B, the random matrices of VeRA and the prompt of P-tuning stay float32, because no run
    rounds them.
    Raises InputError if the folder contains a model or a run of `minilora train`, if a leaf has no
    place in the format, if a number is too large for `dtype`, or if `adapter_config` does not
    describe the tree.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in (CHECKPOINT, SETTINGS)):
        raise InputError(f"{folder} already contains a run: choose another folder")
    if (folder / "config.json").exists():
        raise InputError(f"{folder} contains a model: choose another folder")
    if isinstance(adapter_config, MethodConfig):
        method_format.check_leaves(adapters, adapter_config, model.base)
    write_adapter(folder, adapters, model, adapter_config, dtype)


def write_adapter(folder, adapters, model, adapter_config, dtype):
    """Write the two files of `save_adapter`; a run writes them into its own folder."""
    stored_type = format_name(dtype)
    name = model.source.name or None
    if isinstance(adapter_config, MethodConfig):
        tensors = method_format.tensors(adapters, adapter_config)
        fields = method_format.as_json(adapter_config, name)
        exact = METHODS[adapter_config.method].float32
    else:
        if adapter_config.init_lora_weights != model.source.init_lora_weights:
            what = f"init_lora_weights {adapter_config.init_lora_weights!r} is not that of `model`"
            raise InputError(f"{what}: give the config, and the model from get_peft_model")
        tensors, with_bias, modules = peft_format.tensors(adapters, model.base, adapter_config)
        fields = peft_format.as_json(adapter_config, name, with_bias, modules)
        exact = tuple(path for path in tensors if path.endswith("lora_B.bias"))
    texts = {"format": "pt"}  # transformers needs it
    if name:
        texts[SOURCE] = json.dumps(model.source._asdict())
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        name: entry("F32" if name in exact else stored_type, w) for name, w in tensors.items()
    }
    config = folder / CONFIG
    with atomic_write(config, folder / WEIGHTS) as (config_file, weights_file):
        write_json(config_file, fields)
        safetensors_file.write(weights_file, entries, texts)
        if not (config.exists() and config.read_bytes() == config_file.read_bytes()):
            # a kill between the two renames must not leave the old weights with the new config
            sync(config_file)
            sync(weights_file)
            (folder / WEIGHTS).unlink(missing_ok=True)


class UnfitAdapter(InputError):
    """The tensors of an adapter are not those that its config describes, or are not finite."""


class AdapterWarning(UserWarning):
    """An adapter may not do here what it did where it was trained."""


class LoadedAdapter(NamedTuple):
    """An adapter as `load_adapter` returns it."""

    adapters: Tree
    model: Model
    adapter_config: LoraConfig | MethodConfig


def load_adapter(
    folder: str | os.PathLike[str],
    model: Model,
    scheme: str | None = None,
    block_size: int | None = None,
) -> LoadedAdapter:
    """Read an adapter that PEFT or `save_adapter` wrote: its LoadedAdapter.

    The adapter of P-tuning is its prompt, because the file lacks the network that computes it. The
    returned model is `model`, except for PiSSA and LoftQ: then `model` must be dense, and the
    returned model has its projections in `scheme` and `block_size`; the default is the storage that
    the adapter was trained on. For other adapters, these two are refused. Warns if the model is not
    the one that it was trained on, or multiplies in another `compute_dtype`; of a model that was in
    no file, as one that was merged, the adapter does not know the source. Raises InputError naming
    the file and the tensor or field that is missing, unexpected, of the wrong shape, not finite or
    not implemented. A folder with only a pickle is refused unopened. (In the folder of a run that
    was killed while it wrote, the adapter can be an older one: the commands refuse it, see
    `minilora train --resume`.)
    """
    config = Path(folder) / CONFIG
    weights = weights_of(folder)
    entries = safetensors_file.read_header(weights)
    raw = read_json(config)
    if raw.get("init_lora_weights") not in INITIALIZERS:
        initializers.refuse_storage(scheme, block_size)
    if raw.get("peft_type") != "LORA":
        with errors_in(config):
            other = method_format.read_config(raw, model.base)
        read = _read(weights, entries, method_format.shapes(other, model.base))
        warn_of_other_model(folder, model)
        return LoadedAdapter(method_format.tree(other, read, model.base), model, other)
    base = model.base
    with errors_in(config):
        adapter_config, with_bias, modules = peft_format.read_config(raw, base)
        shapes = peft_format.shapes(adapter_config, with_bias, modules, base)
    stored = {peft_format.key(path): shape for path, shape in shapes.items()}
    read = _read(weights, entries, stored)
    adapters = unflatten({path: read[peft_format.key(path)] for path in shapes})
    warn_of_zero_factors(weights, adapters)
    if adapter_config.init_lora_weights in INITIALIZERS:
        then = read_source(folder) or Source()
        scheme = scheme or then.scheme
        if scheme not in WITHOUT_BLOCKS:
            block_size = block_size or then.block_size
        started, model = initializers.init(model, adapter_config, 0, scheme, block_size)
        adapters = overlay(started, adapters)
        model = with_compute_dtype(model, then.compute_dtype)
        base = model.base
    if peft_format.EMBEDDING in shapes and "lm_head" not in adapters | base:
        # in PEFT, a trained embedding is a copy, so the head of a tied model stays as it was
        base = base | {"lm_head": {"weight": get(base, peft_format.EMBEDDING)}}
    for path in lora.adapted_paths(adapters):
        scaling = adapter_config.rank_and_scaling(path)[1]
        node = get(adapters, path)
        node |= {"lora_scaling": scaling, "lora_dropout": adapter_config.lora_dropout}
        if with_bias:
            # b = b₀ + (α/r)·b_B
            own = np.float64(get(base, path).get("bias", 0))
            with np.errstate(over="ignore"):
                bias = np.float32(own + scaling * np.float64(node["bias"]))
            node["bias"] = check_floats(f"{weights}: {path}.bias", bias)
    warn_of_other_model(folder, model)
    return LoadedAdapter(adapters, model._replace(base=base), adapter_config)


def weights_of(folder):
    """Return the path of an adapter's weights; raise InputError if there is only a pickle."""
    weights = Path(folder) / WEIGHTS
    pickled = weights.with_name("adapter_model.bin")
    if pickled.exists() and not weights.exists():
        raise InputError(
            f"{folder} has only {pickled.name}, a pickle, which can run any program: "
            "save the weights as safetensors"
        )
    return weights


def read_source(folder: str | os.PathLike[str]) -> Source | None:
    """Read the Source of the model that an adapter was trained on; None if its file has none."""
    weights = weights_of(folder)
    texts = safetensors_file.read_json_header(weights)[0]["__metadata__"]
    if SOURCE not in texts:
        return None
    match parse_object(texts[SOURCE], f"{weights}: its {SOURCE}"):
        case {
            "name": str(),
            "scheme": str(),
            "block_size": int() | None,
            "digest": str(),
            "compute_dtype": "float32" | "bfloat16",
            **other,
        } as fields if not other:
            return Source(**fields)
    raise InputError(f"{weights}: its {SOURCE} is malformed: save the adapter again")


def warn_of_other_model(folder, model):
    """Warn if `model` is not the one that the adapter in `folder` was trained on.

    An adapter also corrects the errors of the storage. No warning if the first source is unknown.
    """
    then = read_source(folder)
    now = model.source
    if then is None:
        if now.init_lora_weights is not True and not changes_base(folder):
            what = f"the model has the frozen weights that {now.init_lora_weights} left"
            warnings.warn(f"{what}: load the one of {folder} anew", AdapterWarning, 3)
        return
    if not now.name:
        what = f"the source of the model is unknown; {folder} was trained on {then.name}"
        warnings.warn(f"{what}: load it anew if it has been merged", AdapterWarning, 3)
        return
    risk = "an adapter can lose all that it learned on another base (lesson 4)"
    if (then.scheme, then.block_size) != (now.scheme, now.block_size):
        stored = f"stored as {storage_text(then)}, not {storage_text(now)}"
        warnings.warn(f"{folder} was trained on a base {stored}: {risk}", AdapterWarning, 3)
    if then.compute_dtype != now.compute_dtype:
        what = f"{folder} was trained with products in {then.compute_dtype}"
        warnings.warn(f"{what}, not {now.compute_dtype}: set `compute_dtype`", AdapterWarning, 3)
    if then.digest != now.digest:
        what = f"the files of {now.name} are not those of the base that {folder} was trained on"
        warnings.warn(f"{what}: {risk}", AdapterWarning, 3)


def warn_of_zero_factors(weights, adapters):
    """Warn if A or B is zero in all projections: a file of before training, or a damaged one."""
    nodes = [get(adapters, path) for path in lora.adapted_paths(adapters)]
    factors = ("lora_A", "lora_B")
    zero = [name for name in factors if not any(node[name].any() for node in nodes)]
    if zero:
        what = f"{weights}: every {zero[-1]} is zero, so the low-rank factors change nothing"
        warnings.warn(f"{what}: save the adapter after training", AdapterWarning, 3)


def storage_text(source):
    """Return the storage of a Source as text."""
    blocks = f", block size {source.block_size}" if source.block_size else ""
    return source.scheme + blocks


def changes_base(folder):
    """Tell whether the initialization of the adapter in `folder` changes the frozen weight."""
    return read_json(Path(folder) / CONFIG).get("init_lora_weights") in INITIALIZERS


def begins_with_zero(folder):
    """Tell whether B was zero when the training of the adapter in `folder` began."""
    start = read_json(Path(folder) / CONFIG).get("init_lora_weights")
    return start in (None, True, "gaussian", "eva")


def trains_all(folder):
    """Tell whether the adapter in `folder` is of the method full: the weights of the whole base."""
    return read_json(Path(folder) / CONFIG).get("minilora_method") == "full"


def needs_dense_base(folder):
    """Tell whether the adapter in `folder` needs the dense base, whose weights it changes."""
    return trains_all(folder) or changes_base(folder)


def _read(path, entries, shapes):
    """Read {name: array} of exactly the tensors in {name: shape}."""
    try:
        check_names_and_shapes(entries, shapes, path)
        return {name: check_floats(found.where, found.read()) for name, found in entries.items()}
    except InputError as error:
        raise UnfitAdapter(error) from None


def save_state(path, state, metadata, history=""):
    """Write the complete state of a run to one safetensors file.

    `state` is a `training.State`. `metadata` has the settings, the digests of the files that
    training reads, and the size and digest of metrics.jsonl. `history` has records of steps and
    evaluations as JSON Lines. Raises InputError if the file cannot be written or a number is not
    finite.
    """
    trees = {"adapters": state.adapters} | averages(state.moments)
    best = state.best
    if best.adapters is not None:
        trees["best"] = best.adapters
    entries = {name: entry("F32", w) for name, w in named_leaves(arrays(trees))}
    entries[HISTORY] = entry("U8", np.frombuffer(history.encode(), np.uint8))
    numbers = {
        "step": state.step,
        "best_loss": best.loss,
        "best_step": best.step,
        "worse": best.worse,
    }
    texts = {RUN: json.dumps({"state": numbers, "facts": metadata})}
    with atomic_write(Path(path)) as (temporary,):
        safetensors_file.write(temporary, entries, texts)


def averages(moments):
    """Return the trees in the state of an optimizer, without its number of steps."""
    return {name: tree for name, tree in moments.items() if isinstance(tree, dict)}


RUN = "minilora_run_5"  # name of the metadata in the file; the number is that of its format
HISTORY = "history"  # name of the tensor of the records


def read_metadata(path):
    """Read (numbers of the state, metadata) of a file that `save_state` wrote."""
    text = safetensors_file.read_json_header(path)[0]["__metadata__"].get(RUN, "{}")
    complaint = f"{path} is not a checkpoint of this version of minilora"
    match parse_object(text, f"{complaint}: its metadata"):
        case {
            "state": {
                "step": int(),
                "best_step": int(),
                "worse": int(),
                "best_loss": float(),
                **other,
            } as numbers,
            "facts": {
                "settings": dict(),
                "digests": dict(),
                "metrics_size": int(),
                "metrics_sha256": str(),
            } as metadata,
        } if not other:
            return numbers, metadata
    raise InputError(f"{complaint}: delete it, or train again with --overwrite")


def load_state(path, like, optimizer="adamw"):
    """Read (State, metadata, history) from a file that `save_state` wrote, bit for bit.

    history: the bytes of its text. optimizer: its name in `optim.OPTIMIZERS`. Raises InputError if
    the file is not a checkpoint, lacks a tree of the state of this optimizer, or has other shapes
    than the tree `like`.
    """
    numbers, metadata = read_metadata(path)
    entries = safetensors_file.read_header(path)
    history = entries.pop(HISTORY, None)
    if history is None:
        raise InputError(f"{path} has no tensor {HISTORY}: train again with --overwrite")
    start, _ = OPTIMIZERS[optimizer]
    ours = arrays(like)
    moments = averages(start(ours))
    trees = {"adapters": ours, **moments}
    if numbers["best_step"]:
        trees["best"] = ours
    shapes = {name: leaf.shape for name, leaf in named_leaves(trees)}
    read = unflatten(_read(path, entries, shapes))
    # the file has no settings such as the scaling
    adapters = overlay(like, read["adapters"])
    kept = overlay(like, read["best"]) if "best" in read else None
    best = Best(numbers["best_loss"], numbers["best_step"], kept, numbers["worse"])
    # muon has no m and v if it trains only matrices
    moments = {name: read.get(name, {}) for name in moments} | {"step": numbers["step"]}
    return State(adapters, moments, best), metadata, history.read().tobytes()

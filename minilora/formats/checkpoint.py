"""Write and read the files of a run: the adapter in PEFT's format, and the state for resuming.

Each file is written under a temporary name, flushed to the disk and renamed. A kill at any moment
leaves the complete old file or the complete new one; while the two files of an adapter change, it
can leave no weights. Nothing is pickled, and no pickle is opened.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import lora
from ..config import INITIALIZERS, InputError, LoraConfig
from ..methods import initializers
from ..methods.method import MethodConfig
from ..optim import OPTIMIZERS
from ..tree import Tree, arrays, get, named_leaves, overlay, unflatten, without
from . import method_format, peft_format, safetensors_file
from .files import atomic_write, errors_in, parse_object, read_json, sync, write_json
from .pretrained import NAMES
from .safetensors_file import FORMAT_NAME, check_floats, check_names_and_shapes, entry

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    folder: str | os.PathLike[str], adapters: Tree, base: Tree,
    adapter_config: LoraConfig | MethodConfig, base_name: str, dtype: str = "float32",
) -> None:  # fmt: skip
    """Write adapter_config.json and adapter_model.safetensors as PEFT writes them.

    `adapter_config` is a LoraConfig, or the MethodConfig of another method. `base_name` is a name
    or a path; the path of an existing file or folder is written as an absolute path. `dtype` is
    float32, bfloat16 or float16; trained biases stay float32. Raises InputError if a leaf has no
    place in the format, if a number does not fit `dtype`, or if `adapter_config` does not describe
    the tree.
    """
    if os.path.exists(base_name) and base_name not in NAMES:
        base_name = os.path.abspath(base_name)
    if isinstance(adapter_config, MethodConfig):
        tensors = method_format.tensors(adapters, adapter_config)
        fields = method_format.as_json(adapter_config, base_name)
    else:
        tensors, with_bias, modules = peft_format.tensors(adapters, base, adapter_config)
        fields = peft_format.as_json(adapter_config, base_name, with_bias, modules)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        name: entry("F32" if name.endswith("lora_B.bias") else FORMAT_NAME[dtype], w)
        for name, w in tensors.items()
    }
    config = folder / CONFIG
    with atomic_write(config, folder / WEIGHTS) as (config_file, weights_file):
        write_json(config_file, fields)
        safetensors_file.write(weights_file, entries)
        if not (config.exists() and config.read_bytes() == config_file.read_bytes()):
            # a kill between the two renames must not leave the old weights with the new config
            sync(config_file)
            sync(weights_file)
            (folder / WEIGHTS).unlink(missing_ok=True)


class LoadedAdapter(NamedTuple):
    """An adapter as `load_adapter` returns it."""

    adapters: dict
    base: dict
    adapter_config: LoraConfig | MethodConfig


def load_adapter(
    folder: str | os.PathLike[str], base: Tree, scheme: str = "none", block_size: int = 64
) -> LoadedAdapter:
    """Read an adapter from a folder that PEFT or `save_adapter` wrote; return LoadedAdapter.

    The returned base is `base`, unless the adapter `needs_dense_base`: then `base` must be dense,
    and the returned base has its projections in `scheme`. Raises InputError naming the file and the
    tensor or field that is missing, unexpected, of the wrong shape, not finite or not implemented.
    A folder with only a pickle is refused unopened.
    """
    config = Path(folder) / CONFIG
    weights = config.with_name(WEIGHTS)
    pickled = config.with_name("adapter_model.bin")
    if pickled.exists() and not weights.exists():
        raise InputError(
            f"{config.parent} has only {pickled.name}, a pickle, which can run any program: "
            "save the weights as safetensors"
        )
    entries = safetensors_file.read_header(weights)
    raw = read_json(config)
    if raw.get("peft_type") != "LORA":
        with errors_in(config):
            other = method_format.read_config(raw)
        read = _read(weights, entries, method_format.shapes(other, base))
        return LoadedAdapter(method_format.tree(other, read, base), base, other)
    with errors_in(config):
        adapter_config, with_bias, modules = peft_format.read_config(raw, base)
        shapes = peft_format.shapes(adapter_config, with_bias, modules, base)
    stored = {peft_format.key(path): shape for path, shape in shapes.items()}
    read = _read(weights, entries, stored)
    adapters = unflatten({path: read[peft_format.key(path)] for path in shapes})
    if adapter_config.init_lora_weights in INITIALIZERS:
        _, base = initializers.init(base, adapter_config, 0, scheme, block_size)
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
    return LoadedAdapter(adapters, base, adapter_config)


def needs_dense_base(folder):
    """Tell whether the adapter in `folder` needs the dense base, whose weights it changes."""
    config = read_json(Path(folder) / CONFIG)
    trains_all = config.get("minilora_method") == "full"
    return trains_all or config.get("init_lora_weights") in INITIALIZERS


def _read(path, entries, shapes):
    """Read {name: array} of exactly the tensors in {name: shape}."""
    check_names_and_shapes(entries, shapes, path)
    return {name: check_floats(found.where, found.read()) for name, found in entries.items()}


def save_state(path, adapters, state, metadata, history=""):
    """Write everything that a run is into one safetensors file.

    `state` is what `train` passes to on_step. `metadata` has the settings, the digests of the files
    that training reads, and the size and digest of metrics.jsonl. `history` has records of steps
    and evaluations as JSON Lines. Raises InputError if the file cannot be written or a number is
    not finite.
    """
    trees = {name: value for name, value in state.items() if isinstance(value, dict)}
    leaves = named_leaves(arrays({"adapters": adapters} | trees))
    entries = {name: entry("F32", w) for name, w in leaves}
    entries[HISTORY] = entry("U8", np.frombuffer(history.encode(), np.uint8))
    texts = {RUN: json.dumps({"state": without(state, *trees), "facts": metadata})}
    with atomic_write(Path(path)) as (temporary,):
        safetensors_file.write(temporary, entries, texts)


RUN = "minilora_run_5"  # name of the metadata in the file; the number is that of its format
HISTORY = "history"  # name of the tensor of the records


def read_metadata(path):
    """Read (numbers of the state, metadata) of a file that `save_state` wrote."""
    texts = safetensors_file.read_json_header(path)[0].get("__metadata__")
    text = str(texts.get(RUN, "{}")) if isinstance(texts, dict) else "{}"
    complaint = f"{path} is not a checkpoint of this version of minilora"
    match parse_object(text, f"{complaint}: its metadata"):
        case {
            "state": {
                "step": int(), "best_step": int(), "worse": int(), "best_loss": float(), **other
            } as numbers,
            "facts": {
                "settings": dict(), "digests": dict(),
                "metrics_size": int(), "metrics_sha256": str(),
            } as metadata,
        } if not other:  # fmt: skip
            return numbers, metadata
    raise InputError(f"{complaint}: delete it, or train again with --overwrite")


def load_state(path, like, optimizer="adamw"):
    """Read (adapters, state, metadata, history) from a file that `save_state` wrote, bit for bit.

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
    moments = {name: tree for name, tree in start(ours).items() if isinstance(tree, dict)}
    trees = {"adapters": ours, **moments}
    if numbers["best_step"]:
        trees["best"] = ours
    shapes = {name: leaf.shape for name, leaf in named_leaves(trees)}
    empty: Tree = {name: {} for name in moments}  # muon has no m and v if it trains only matrices
    state = numbers | empty | unflatten(_read(path, entries, shapes))
    for tree in {"adapters", "best"} & state.keys():  # the file has no settings such as the scaling
        state[tree] = overlay(like, state[tree])
    return state.pop("adapters"), state, metadata, history.read().tobytes()

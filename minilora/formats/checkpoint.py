"""What a run leaves behind: its adapter, in PEFT's format, and the state that it goes on from.

A file is written beside its place, flushed to the disk, and renamed: a kill at any moment leaves
the old file or the new one, whole. Nothing is pickled, and no pickle is opened.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from .. import lora
from ..config import STARTS, InputError, MethodConfig, require
from ..methods import starts
from ..tree import flatten, get, put, tree_map, unflatten, walk
from . import method_format, peft_format, safetensors_file
from .files import read_json, replacing, write_json
from .safetensors_file import FLOATS, FORMAT_NAME, Source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


# --- the adapter


def save_adapter(folder, adapters, frozen, config, base_name, dtype="float32"):
    """Write adapter_config.json and adapter_model.safetensors as PEFT writes them.

    `config`: the LoraConfig, or the MethodConfig of another method (see `method_format`).
    `frozen`: the base with its lora_scaling leaves. `dtype`: float32, bfloat16 or float16. Trained
    norms and a trained head become PEFT's modules_to_save. A trained bias b becomes the bias b_B of
    lora_B (PEFT's lora_bias), which PEFT scales and adds to the base's own, b₀ or nothing:

        b = b₀ + (α/r)·b_B

    b_B is stored in float32 always; unless α/r is a power of two, b comes back rounded once more.
    (On a base without biases PEFT computes with such an adapter, but cannot merge it.) Raises
    InputError if a leaf has no place in the format, if a number does not fit `dtype`, or if
    `config` does not describe the tree.
    """
    if isinstance(config, MethodConfig):
        tensors = method_format.tensors(adapters, config)
        sources = {name: _source(w, dtype) for name, w in tensors.items()}
        _write(Path(folder), method_format.as_json(config, base_name), sources)
        return
    trained = flatten(adapters)
    _check_description(adapters, frozen, config)
    modules = _modules_to_save(adapters, frozen)
    with_bias = any(path.endswith(".bias") for path in trained)
    require(not (with_bias and config.use_dora), "PEFT's DoRA has no place for trained biases")
    if with_bias:
        trained |= _scaled_biases(adapters, frozen)
    sources = {
        peft_format.key(path): _source(w, "float32" if path.endswith(".bias") else dtype)
        for path, w in trained.items()
    }
    _write(Path(folder), peft_format.as_json(config, base_name, with_bias, modules), sources)


def _write(folder, text, sources):
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG, folder / WEIGHTS) as (config_file, weights_file):
        write_json(config_file, text)
        safetensors_file.write(weights_file, sources)


def _source(w, dtype="float32"):
    return Source(FORMAT_NAME[dtype], w.shape, partial(np.asarray, w))


def _check_description(adapters, frozen, config):
    """PEFT rebuilds an adapter from its config: what that does not say would be lost."""
    paths = lora.adapted(adapters)
    require(
        sorted(paths) == sorted(lora.targets(frozen, config)),
        "the adapter is not on the projections that its LoraConfig names",
    )
    for path in paths:
        found = (len(get(adapters, path)["lora_A"]), get(frozen, path)["lora_scaling"])
        require(
            found == config.at(path),
            f"the adapter on {path} has rank and scaling {found}, its LoraConfig says "
            f"{config.at(path)}",
        )


def _modules_to_save(adapters, frozen):
    low_rank, whole = lora.adapted(adapters), peft_format.replaceable(frozen)
    names = ("lora_A", "lora_B", "lora_magnitude_vector", "bias")
    known = {f"{path}.{name}" for path in low_rank for name in names}
    others = [path for path, _ in walk(adapters) if path not in known]
    for path in others:
        require(path in whole, f"PEFT's format has no place for a trained {path}")
    return peft_format.names_of(others, whole)


def _scaled_biases(adapters, frozen):
    """{path: b_B} for every adapted projection: PEFT's lora_bias is for all or none."""
    biases = {}
    for path in lora.adapted(adapters):
        node = get(frozen, path)
        own = np.float64(node.get("bias", np.zeros(node["weight"].shape[0])))
        # b_B = (b − b₀) / (α/r)
        b = get(adapters, path).get("bias", own)
        biases[f"{path}.bias"] = np.float32((b - own) / node["lora_scaling"])
    return biases


def load_adapter(folder, base, scheme="none", block_size=64):
    """(adapters, frozen, config) of a folder that PEFT or `save_adapter` wrote.

    `config` is a LoraConfig or a MethodConfig. `frozen` is `base`, for LoRA with lora_scaling and
    lora_dropout beside each adapted weight; if the adapter `changes_base`, `base` must be dense,
    and what the start leaves of it is stored in `scheme`. Raises
    InputError naming the file and the tensor or field that is missing, left over, misshapen, not
    finite, or asks for what is not implemented. A folder with only a pickle is refused unopened.
    """
    folder = Path(folder)
    tensors, raw = _tensors(folder), read_json(folder / CONFIG)
    if raw.get("peft_type") != "LORA":
        other = method_format.read_config(folder / CONFIG, raw)
        read = _read(folder / WEIGHTS, tensors, method_format.shapes(other, base))
        return method_format.tree(other, read, base), base, other
    config, with_bias, modules = peft_format.read_config(folder / CONFIG, base)
    try:
        paths = lora.targets(base, config)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    shapes = _shapes(base, paths, config, with_bias) | _whole(folder / CONFIG, base, modules)
    names = {path: peft_format.key(path) for path in shapes}
    read = _read(folder / WEIGHTS, tensors, {names[path]: s for path, s in shapes.items()})
    adapters = unflatten({path: read[name] for path, name in names.items()})
    if config.init_lora_weights in STARTS:
        base = starts.init(base, config, np.random.default_rng(0), scheme, block_size)[1]
    frozen = tree_map(lambda w: w, base)
    for path in paths:
        put(frozen, f"{path}.lora_scaling", config.at(path)[1])
        put(frozen, f"{path}.lora_dropout", config.lora_dropout)
        if with_bias:
            put(adapters, f"{path}.bias", _bias(get(adapters, path), get(frozen, path)))
    return adapters, frozen, config


def changes_base(folder):
    """Whether the adapter's start changed the base, and the dense base is needed to load it."""
    return read_json(Path(folder) / CONFIG).get("init_lora_weights") in STARTS


def trains_everything(folder):
    """Tell whether the folder is of full fine-tuning, whose base is held in float32."""
    return read_json(Path(folder) / CONFIG).get("minilora_method") == "full"


def _tensors(folder):
    require(folder.is_dir(), f"{folder} is no folder: give one that holds {CONFIG} and {WEIGHTS}")
    require(
        (folder / WEIGHTS).exists() or not (folder / "adapter_model.bin").exists(),
        f"{folder} has only adapter_model.bin, which is never opened because it is a pickle and "
        "could run any program; save the adapter as safetensors",
    )
    return safetensors_file.read_header(folder / WEIGHTS)


def _shapes(base, paths, config, with_bias):
    """{path: shape} of the low-rank factors and, if they have them, of their biases."""
    shapes: dict = {}
    for path in paths:
        (out_features, in_features), (r, _) = get(base, path)["weight"].shape, config.at(path)
        shapes[f"{path}.lora_A"], shapes[f"{path}.lora_B"] = (r, in_features), (out_features, r)
        if with_bias:
            shapes[f"{path}.bias"] = (out_features,)
        if config.use_dora:
            shapes[f"{path}.lora_magnitude_vector"] = (out_features,)
    return shapes


def _whole(path, base, modules):
    """{path: shape} of the weights that are trained whole."""
    whole = peft_format.replaceable(base)
    for name in modules:
        require(
            peft_format.named([name], whole),
            f"{path}: modules_to_save {name!r} is not implemented; norms and lm_head are",
        )
    return {p: whole[p] for p in peft_format.named(modules, whole)}


def _bias(trained, frozen):
    # b = b₀ + (α/r)·b_B
    own = np.float64(frozen.get("bias", 0))
    return np.float32(own + frozen["lora_scaling"] * np.float64(trained["bias"]))


def _read(path, entries, shapes):
    """{name: array} of exactly the tensors in {name: shape}."""
    for name, entry in entries.items():
        require(name in shapes, f"{entry.where} does not belong to this adapter and this base")
    for name in shapes:
        require(name in entries, f"{path}: tensor {name} is missing")
    return {name: _checked(entries[name], shape) for name, shape in shapes.items()}


def _checked(entry, shape):
    require(entry.shape == shape, f"{entry.where} has the shape {entry.shape}, not {shape}")
    require(entry.dtype in FLOATS, f"{entry.where} holds {entry.dtype}, not F32, F16 or BF16")
    w = entry.read()
    require(safetensors_file.is_finite(w), f"{entry.where} has a NaN or an infinite number")
    return w


# --- the state of a run


def save_state(path, adapters, state, facts):
    """Write all that a run needs to go on as if never interrupted, in one safetensors file.

    `state`: as `train.train` hands it to on_step. `facts`: anything that JSON can hold, such as the
    run's settings. Raises InputError if the file cannot be written or a number is not finite.
    """
    trees = {"adapters": adapters} | {k: v for k, v in state.items() if isinstance(v, dict)}
    numbers = {k: v for k, v in state.items() if not isinstance(v, dict)}
    sources = {name: _source(w) for name, w in walk(trees)}
    metadata = {"minilora_run": json.dumps(numbers), "facts": json.dumps(facts)}
    with replacing(Path(path)) as (temporary,):
        safetensors_file.write(temporary, sources, metadata)


def load_state(path):
    """(adapters, state, facts) of a file that `save_state` wrote, every bit as it was.

    Raises InputError if the file is missing, truncated, or something else.
    """
    entries = safetensors_file.read_header(path)
    numbers, facts = _metadata(path)
    ours = {n.removeprefix("adapters."): e for n, e in entries.items() if n.startswith("adapters.")}
    sound = type(numbers.get("step")) is int and numbers["step"] >= 0 and ours
    require(sound, f"{path} is no checkpoint of a run")
    trees = {"adapters", "m", "v", *(name.partition(".")[0] for name in entries)}
    shapes = {f"{tree}.{name}": entry.shape for name, entry in ours.items() for tree in trees}
    state = numbers | unflatten(_read(path, entries, shapes))
    return state.pop("adapters"), state, facts


def load_facts(path):
    """Read the facts of a run that `save_state` wrote into the file."""
    safetensors_file.read_header(path)  # or its error
    return _metadata(path)[1]


def _metadata(path):
    """(numbers, facts) beside the tensors, as `save_state` put them there."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    try:
        metadata = header["__metadata__"]
        return dict(json.loads(metadata["minilora_run"])), json.loads(metadata["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no checkpoint of a run") from error

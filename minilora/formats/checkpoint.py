"""What a run leaves behind: its adapter, in PEFT's format, and the state that it goes on from.

A file is written beside its place, flushed to the disk, and renamed: a kill at any moment leaves
the old file or the new one, whole. Nothing is pickled, and no pickle is opened.
"""

import json
from pathlib import Path

import numpy as np

from .. import lora
from ..config import STARTS, InputError, MethodConfig, require
from ..methods import starts
from ..tree import flatten, get, put, tree_map, unflatten, walk
from . import method_format, peft_format, safetensors_file
from .files import naming, read_json, replacing, write_json
from .safetensors_file import FORMAT_NAME, check_floats, entry

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
        fields = method_format.as_json(config, base_name)
    else:
        _check_description(adapters, frozen, config)
        trained = flatten(adapters)
        with_bias = any(path.endswith(".bias") for path in trained)
        require(not (with_bias and config.use_dora), "PEFT's DoRA has no place for trained biases")
        modules = _modules_to_save(adapters, frozen)
        if with_bias:
            trained |= _scaled_biases(adapters, frozen)
        tensors = {peft_format.key(path): w for path, w in trained.items()}
        fields = peft_format.as_json(config, base_name, with_bias, modules)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG, folder / WEIGHTS) as (config_file, weights_file):
        write_json(config_file, fields)
        sources = {
            name: entry("F32" if name.endswith("lora_B.bias") else FORMAT_NAME[dtype], w)
            for name, w in tensors.items()
        }
        safetensors_file.write(weights_file, sources)


def _check_description(adapters, frozen, config):
    """Raise InputError unless PEFT can rebuild the low-rank part from the config."""
    expected = {path: config.at(path) for path in lora.targets(frozen, config)}
    found = {
        path: (len(get(adapters, path)["lora_A"]), get(frozen, path)["lora_scaling"])
        for path in lora.adapted(adapters)
    }
    for path in expected | found:
        require(
            found.get(path) == expected.get(path),
            f"the adapter on {path} has rank and scaling {found.get(path)}, its LoraConfig says "
            f"{expected.get(path)}",
        )


def _modules_to_save(adapters, frozen):
    """Name the modules that are trained whole: by their last name, if that means no others."""
    places, names = peft_format.replaceable(frozen), peft_format.LEAVES
    low_rank = {f"{path}.{name}" for path in lora.adapted(adapters) for name in names}
    others = [path for path in flatten(adapters) if path not in low_rank]
    for path in others:
        require(path in places, f"PEFT's format has no place for a trained {path}")
    modules = [path.removesuffix(".weight") for path in others]
    short = sorted({module.rpartition(".")[2] for module in modules})
    return short if sorted(peft_format.named(short, places)) == sorted(others) else modules


def _scaled_biases(adapters, frozen):
    """Compute {path: b_B} for every adapted projection: PEFT's lora_bias is for all or none."""
    biases, trained = {}, flatten(adapters)
    for path, own in lora.biases(lora.adapted(adapters), frozen):
        scaling = get(frozen, path.removesuffix(".bias"))["lora_scaling"]
        # b_B = (b − b₀) / (α/r)
        b = np.float64(trained.get(path, own))
        biases[path] = np.float32((b - own) / scaling)
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
    entries, raw = _header(folder), read_json(folder / CONFIG)
    if raw.get("peft_type") != "LORA":
        with naming(folder / CONFIG):
            other = method_format.read_config(raw)
        read = _read(folder / WEIGHTS, entries, method_format.shapes(other, base))
        return method_format.tree(other, read, base), base, other
    with naming(folder / CONFIG):
        config, with_bias, whole = peft_format.read_config(raw, base)
        paths = lora.targets(base, config)
    shapes = _shapes(base, paths, config, with_bias) | whole
    names = {path: peft_format.key(path) for path in shapes}
    read = _read(folder / WEIGHTS, entries, {names[path]: s for path, s in shapes.items()})
    adapters = unflatten({path: read[name] for path, name in names.items()})
    if config.init_lora_weights in STARTS:
        base = starts.init(base, config, np.random.default_rng(0), scheme, block_size)[1]
    frozen = tree_map(lambda w: w, base)
    for path in paths:
        put(frozen, f"{path}.lora_scaling", config.at(path)[1])
        put(frozen, f"{path}.lora_dropout", config.lora_dropout)
    for path, own in lora.biases(paths, base) if with_bias else ():
        scaling = get(frozen, path.removesuffix(".bias"))["lora_scaling"]
        # b = b₀ + (α/r)·b_B
        b = np.float64(own) + scaling * np.float64(get(adapters, path))
        put(adapters, path, np.float32(b))
    return adapters, frozen, config


def changes_base(folder):
    """Whether the adapter's start changed the base, and the dense base is needed to load it."""
    return read_json(Path(folder) / CONFIG).get("init_lora_weights") in STARTS


def _header(folder):
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


def _read(path, entries, shapes):
    """Read {name: array} of exactly the tensors in {name: shape}."""
    for name, found in entries.items():
        require(name in shapes, f"{found.where} does not belong to this adapter and this base")
    read = {}
    for name, shape in shapes.items():
        require(name in entries, f"{path}: tensor {name} is missing")
        found = entries[name]
        require(found.shape == shape, f"{found.where} has the shape {found.shape}, not {shape}")
        read[name] = check_floats(found.where, found.read())
    return read


# --- the state of a run


def save_state(path, adapters, state, facts):
    """Write all that a run needs to go on as if never interrupted, in one safetensors file.

    `state`: as `train.train` hands it to on_step. `facts`: anything that JSON can hold, such as the
    run's settings. Raises InputError if the file cannot be written or a number is not finite.
    """
    trees = {"adapters": adapters} | {k: v for k, v in state.items() if isinstance(v, dict)}
    numbers = {k: v for k, v in state.items() if not isinstance(v, dict)}
    sources = {name: entry("F32", w) for name, w in walk(trees)}
    metadata = {"minilora_run": json.dumps(numbers), "facts": json.dumps(facts)}
    with replacing(Path(path)) as (temporary,):
        safetensors_file.write(temporary, sources, metadata)


def load_state(path):
    """(adapters, state, facts) of a file that `save_state` wrote, every bit as it was.

    Raises InputError if the file is missing, truncated, or something else.
    """
    entries = safetensors_file.read_header(path)
    try:
        metadata = safetensors_file.read_metadata(path)
        numbers, facts = dict(json.loads(metadata["minilora_run"])), json.loads(metadata["facts"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no checkpoint of a run") from error
    ours = {n.removeprefix("adapters."): e for n, e in entries.items() if n.startswith("adapters.")}
    sound = type(numbers.get("step")) is int and numbers["step"] >= 0 and ours
    require(sound, f"{path} is no checkpoint of a run")
    trees = {"adapters", "m", "v", *(name.partition(".")[0] for name in entries)}
    shapes = {f"{tree}.{name}": found.shape for name, found in ours.items() for tree in trees}
    state = numbers | unflatten(_read(path, entries, shapes))
    return state.pop("adapters"), state, facts

"""PEFT's format: its names for an adapter's tensors, and its adapter_config.json.

The file has some forty fields. HONOURED fields decide what an adapter computes and are implemented.
NEUTRAL fields do not affect a finished adapter. All other fields, also unknown ones of later
versions, switch on something that is not implemented here; they must be off.
"""

import warnings

import numpy as np

from .. import lora
from ..config import (
    INITIALIZERS,
    MODULES,
    InputError,
    LoraConfig,
    check_setting,
    matches,
    names_module,
)
from ..methods.replaced import biases
from ..tree import arrays, flatten, get, named_leaves
from .safetensors_file import check_names_and_shapes

EMBEDDING = "model.embed_tokens.weight"
PREFIX = "base_model.model."  # PEFT's wrapper, and the model of transformers in it
# PEFT's names of the leaves of an adapted projection, if it has other names
LEAVES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "bias": "lora_B.bias"}


def key(path):
    """Return PEFT's name of the trained leaf at `path`."""
    node, _, name = path.rpartition(".")
    return f"{PREFIX}{node}.{LEAVES.get(name, name)}"


def tensors(adapters, base, config):
    """Return ({tensor name: array}, lora_bias, modules_to_save) of a LoRA adapter.

    Trained norms, embedding and head are modules_to_save. A trained bias b becomes the bias b_B of
    lora_B (PEFT's lora_bias, for all projections or none): b = b₀ + (α/r)·b_B, where b₀ is the bias
    of the base or zero. Unless α/r is a power of two, reading rounds b once more. PEFT cannot merge
    such an adapter into a base without biases.
    """
    trained = flatten(arrays(adapters))
    scalings = {path: get(adapters, path)["lora_scaling"] for path in lora.adapted_paths(adapters)}
    for path, scaling in scalings.items():
        found = scaling, get(adapters, path)["lora_dropout"]
        expected = config.rank_and_scaling(path)[1], config.lora_dropout
        if found != expected:
            raise InputError(
                f"the adapter on {path} has the scaling and dropout {found}, "
                f"but its LoraConfig says {expected}"
            )
    places = replaceable(base)
    modules = [path.removesuffix(".weight") for path in trained if path in places]
    ends = sorted({module.rpartition(".")[2] for module in modules})
    if len(named(ends, places)) == len(modules):
        modules = ends  # PEFT compares ends
    if EMBEDDING in trained and "lm_head" not in adapters | base:
        raise InputError(
            "PEFT's format cannot hold a trained embedding that is also the head: "
            "put lm_head.weight into one of the two trees"
        )
    with_bias = any(path.endswith(".bias") for path in trained)
    if with_bias and (config.use_dora or config.init_lora_weights == "pissa"):
        raise InputError("PEFT's format cannot hold trained biases of DoRA or PiSSA")
    for path, own in biases(scalings, base) if with_bias else ():
        # b_B = (b − b₀) / (α/r)
        change = np.float64(trained.get(path, own)) - own
        trained[path] = np.float32(change / scalings[path.removesuffix(".bias")])
    expected = shapes(config, with_bias, modules, base)
    check_names_and_shapes(trained, expected, "the adapter, by its LoraConfig")
    return {key(path): w for path, w in trained.items()}, with_bias, modules


def shapes(config, with_bias, modules, base):
    """Return {path: shape} of every leaf of such an adapter on this base."""
    places = replaceable(base)
    expected = {path: places[path] for path in named(modules, places)}
    for path in lora.target_paths(base, config):
        n, m = get(base, path)["weight"].shape
        r, _ = config.rank_and_scaling(path)
        expected |= {f"{path}.lora_A": (r, m), f"{path}.lora_B": (n, r)}
        if with_bias:
            expected[f"{path}.bias"] = (n,)
        if config.use_dora:
            expected[f"{path}.lora_magnitude_vector"] = (n,)
    return expected


def replaceable(base):
    """Return {path: shape} of the weights that modules_to_save may name: norms, embedding, head."""
    gains = {path: w.shape for path, w in named_leaves(base) if path.endswith("norm.weight")}
    shape = get(base, EMBEDDING).shape
    return gains | {EMBEDDING: shape, "lm_head.weight": shape}


def named(modules, paths):
    """Return the paths that modules_to_save select; PEFT matches the end of a module's path."""
    return [path for path in paths if path.removesuffix(".weight").endswith(tuple(modules))]


# PEFT's default for a Llama
HONOURED: dict = {
    "r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False,
    "lora_bias": False, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": [],
    "target_modules": ["q_proj", "v_proj"], "exclude_modules": [], "modules_to_save": [],
}  # fmt: skip
# of the other fields, null is the default, or off
NEVER_NULL = ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")
NEUTRAL = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
)  # fmt: skip
# `bias` says which ones PEFT trained: one of the base is a tensor, and refused by its name
BIAS = ("none", "all", "lora_only")
# `layers_pattern`: PEFT cannot make an adapter with another pattern than `layers` for these models
LORA_NEUTRAL = (
    "bias", "eva_config", "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config",
)  # fmt: skip
# Initializations that leave the base unchanged. For any other one, PEFT repeats the change of the
# base when it loads the adapter, and so does `load_adapter` for config.INITIALIZERS. (PEFT's LoftQ
# quantizes differently and has a loftq_config; PEFT rejects our LoftQ, which has none.)
NEUTRAL_INITIALIZERS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def refuse_unknown(raw, free, fixed):
    """Raise InputError for a field that is not off, not in `free`, and not equal to `fixed`."""
    for name, value in raw.items():
        expected = fixed.get(name)
        # a field that must have a value may be missing, but not be off
        off = value in (False, "", []) and (name, value) != ("layers_to_transform", 0)
        off |= (name, value) == ("loftq_config", {})  # of others, {} is on, with defaults
        same = value in (None, expected) or (name not in fixed and off)
        if isinstance(value, list) and isinstance(expected, list):  # PEFT's sets have no order
            same = set(value) == set(expected)
        if not same and name not in free:
            raise InputError(
                f"{name} = {value!r} is not implemented: the adapter's outputs would be wrong"
            )


def read_config(raw, base):
    """Read (LoraConfig, lora_bias, modules_to_save) from the object in an adapter_config.json.

    Names in exclude_modules that match nothing, about which PEFT warns, are left out. Raises
    InputError naming the field that is malformed or not implemented.
    """
    start = raw.get("init_lora_weights")
    if start not in (*NEUTRAL_INITIALIZERS, *INITIALIZERS):
        raise InputError(f"init_lora_weights {start!r} is not implemented: it changes the base")
    if start == "mica":
        text = "PEFT trains only A of an adapter with init_lora_weights 'mica': here, A and B"
        warnings.warn(text, stacklevel=3)
    free = {*HONOURED, *NEUTRAL, *LORA_NEUTRAL, "init_lora_weights"}
    refuse_unknown(raw, free, {"peft_type": "LORA", "task_type": "CAUSAL_LM"})
    if raw.get("bias", "none") not in BIAS:
        raise InputError(f"bias {raw['bias']!r} is not one of {', '.join(BIAS)}")
    for name in NEVER_NULL:
        if raw.get(name, "") is None:
            advice = f"give a value, or leave it out for PEFT's default, {HONOURED[name]}"
            raise InputError(f"{name} is null: {advice}")
    fields = HONOURED | {name: raw[name] for name in HONOURED if raw.get(name) is not None}
    fields["init_lora_weights"] = start if start in INITIALIZERS else True
    lora_bias = fields.pop("lora_bias")
    modules = fields.pop("modules_to_save")
    check_setting("modules_to_save", modules, MODULES)
    check_setting("exclude_modules", fields["exclude_modules"], MODULES)
    for name in modules:
        if not named([name], replaceable(base)):
            raise InputError(
                f"modules_to_save {name!r} is not implemented; norms, embed_tokens and lm_head are"
            )
    fields["exclude_modules"] = without_useless(fields["exclude_modules"], lora.modules(base))
    if fields["layers_to_transform"] == []:
        fields["layers_to_transform"] = None  # for PEFT, an empty list means all layers
    return LoraConfig(**fields), lora_bias, modules


def without_useless(excluded, paths):
    """Return exclude_modules without the names that match none of the paths; None if all do so."""
    if isinstance(excluded, str):
        return excluded if any(matches(excluded, path) for path in paths) else None
    return [name for name in excluded if any(names_module(name, path) for path in paths)] or None


def as_json(config, base_name, lora_bias, modules):
    """Return the object for adapter_config.json."""
    return vars(config) | {
        "peft_type": "LORA", "base_model_name_or_path": base_name, "inference_mode": True,
        "lora_bias": lora_bias, "modules_to_save": modules or None,
    }  # fmt: skip

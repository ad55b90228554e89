"""PEFT's format: its names for an adapter's tensors, and its adapter_config.json.

The file has some forty fields. HONOURED fields decide what an adapter computes and are implemented.
NEUTRAL fields do not affect a finished adapter. All other fields, also unknown ones of later
versions, switch on something that is not implemented here; they must be off.
"""

import numpy as np

from .. import lora
from ..config import (
    ALL_LINEAR,
    INITIALIZERS,
    InputError,
    LoraConfig,
    matches,
    names_module,
)
from ..methods.replaced import biases
from ..tree import arrays, flatten, get, named_leaves

EMBEDDING = "model.embed_tokens.weight"
PREFIX = "base_model.model."  # PEFT's wrapper, and the model of transformers in it
# PEFT's names of the leaves of an adapted projection
LEAVES = {
    "lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "bias": "lora_B.bias",
    "lora_magnitude_vector": "lora_magnitude_vector",
}  # fmt: skip


def key(path):
    """Return PEFT's name of the trained leaf at `path`."""
    node, _, name = path.rpartition(".")
    return f"{PREFIX}{node}.{LEAVES.get(name, name)}"


def tensors(adapters, base, config):
    """Return ({tensor name: array}, modules_to_save) of a LoRA adapter.

    Trained norms, embedding and head are modules_to_save. A trained bias b becomes the bias b_B of
    lora_B (PEFT's lora_bias, for all projections or none): b = b₀ + (α/r)·b_B, where b₀ is the bias
    of the base or zero. Unless α/r is a power of two, reading rounds b once more. PEFT cannot merge
    such an adapter into a base without biases.
    """
    expected = {path: config.rank_and_scaling(path) for path in lora.target_paths(base, config)}
    low_rank = lora.adapted_paths(adapters)
    trained = flatten(arrays(adapters))
    found = {p: (len(trained[f"{p}.lora_A"]), get(adapters, p)["lora_scaling"]) for p in low_rank}
    for path in expected | found:
        has = found.get(path)
        says = expected.get(path)
        if has != says:
            raise InputError(
                f"the adapter on {path} has rank and scaling {has}, but its LoraConfig says {says}"
            )
    known = {f"{path}.{name}" for path in low_rank for name in LEAVES}
    whole = [path for path in trained if path not in known]
    places = replaceable(base)
    for path in whole:
        if path not in places:
            raise InputError(f"PEFT's format cannot hold a trained {path}")
    if EMBEDDING in whole and "lm_head" not in adapters | base:
        what = "PEFT's format cannot hold a trained embedding that is also the head"
        raise InputError(f"{what}: put lm_head.weight into one of the two trees")
    modules = [path.removesuffix(".weight") for path in whole]
    short = sorted({module.rpartition(".")[2] for module in modules})
    if sorted(named(short, places)) == sorted(whole):
        modules = short
    if any(path.endswith(".bias") for path in trained):
        if config.use_dora:
            raise InputError("PEFT's format cannot hold trained biases of DoRA")
        for path, own in biases(low_rank, base):
            scaling = config.rank_and_scaling(path.removesuffix(".bias"))[1]
            # b_B = (b − b₀) / (α/r)
            trained[path] = np.float32((np.float64(trained.get(path, own)) - own) / scaling)
    return {key(path): w for path, w in trained.items()}, modules


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


NUMBER, FLAG = (int, float), (False, (bool,), ())
# field: (PEFT's default for a Llama, types of a sound value, types of its items)
HONOURED: dict = {
    "r": (8, (int,), ()), "lora_alpha": (8, NUMBER, ()), "lora_dropout": (0.0, NUMBER, ()),
    "target_modules": (["q_proj", "v_proj"], (str, list), (str,)),
    "layers_to_transform": ([], (int, list), (int,)), "modules_to_save": ([], (list,), (str,)),
    "rank_pattern": ({}, (dict,), (int,)), "alpha_pattern": ({}, (dict,), NUMBER),
    "use_rslora": FLAG, "use_dora": FLAG, "lora_bias": FLAG, "bias": ("none", (str,), ()),
    "exclude_modules": ([], (str, list), (str,)), "layers_pattern": ([], (str, list), (str,)),
}  # fmt: skip
NEUTRAL = {
    "auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True,
    "peft_version": "0.21.2", "revision": None,
}  # fmt: skip
LORA_NEUTRAL = {"eva_config": None, "megatron_core": "megatron.core", "qalora_group_size": 16}
OFF: dict = {
    "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None,
    "ensure_weight_tying": False, "fan_in_fan_out": False,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None, "loftq_config": {},
    "lora_ga_config": None, "megatron_config": None, "monteclora_config": None, "peft_type": "LORA",
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_qalora": False, "velora_config": None,
}  # fmt: skip
# Initializations that leave the base unchanged. For any other one, PEFT repeats the change of the
# base when it loads the adapter, and so does `load_adapter` for config.INITIALIZERS. (PEFT's LoftQ
# quantizes differently and has a loftq_config; PEFT rejects our LoftQ, which has none.)
NEUTRAL_INITIALIZERS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def refuse_unknown(raw, free, fixed):
    """Raise InputError for a field that is not off, not in `free`, and not equal to `fixed`."""
    for name, value in raw.items():
        expected = fixed.get(name)
        same = value in (None, False, "", [], {}, expected)
        if isinstance(value, list) and isinstance(expected, list):  # PEFT's sets have no order
            same = sorted(value, key=repr) == sorted(expected, key=repr)
        if not same and name not in free:
            raise InputError(
                f"{name} = {value!r} is not implemented: the adapter's outputs would be wrong"
            )


def _is_sound(value, types, item_types=()):
    if type(value) not in types or value == "":
        return False
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        return all(_is_sound(item, item_types) for item in items)
    return isinstance(value, str) or abs(value) < 2**31  # not NaN


def read_config(raw, base):
    """Read (LoraConfig, lora_bias, modules_to_save) from the object in an adapter_config.json.

    A regular expression in target_modules is replaced by the paths of the projections that it
    matches. Names in exclude_modules that match nothing, about which PEFT warns, are left out.
    Raises InputError naming the field that is malformed or not implemented.
    """
    start = raw.get("init_lora_weights")
    if start not in (*NEUTRAL_INITIALIZERS, *INITIALIZERS):
        raise InputError(f"init_lora_weights {start!r} is not implemented: it changes the base")
    free = {*HONOURED, *NEUTRAL, *LORA_NEUTRAL, "init_lora_weights", "runtime_config"}
    refuse_unknown(raw, free, OFF)
    fields: dict = {}
    for name, (default, *types) in HONOURED.items():
        fields[name] = default if raw.get(name) is None else raw[name]
        if not _is_sound(fields[name], *types):
            raise InputError(f"{name} is malformed: {fields[name]!r}")
    lora_bias, modules = fields.pop("lora_bias"), fields.pop("modules_to_save")
    for name in modules:
        if not named([name], replaceable(base)):
            others = "norms, embed_tokens and lm_head are"
            raise InputError(f"modules_to_save {name!r} is not implemented; {others}")
    weights = tuple(f".{name}.weight" for name in ALL_LINEAR)
    projections = [p.removesuffix(".weight") for p, _ in named_leaves(base) if p.endswith(weights)]
    patterns = fields.pop("layers_pattern")
    if patterns and "layers" not in ([patterns] if isinstance(patterns, str) else patterns):
        what = f"layers_pattern {patterns!r} matches no list of layers of this model"
        raise InputError(f"{what}: the list is named 'layers'")
    fields["exclude_modules"] = without_useless(fields["exclude_modules"], lora.modules(base))
    bias = fields.pop("bias")
    layers, targets = fields["layers_to_transform"], fields["target_modules"]
    if isinstance(targets, str):
        if layers != []:
            raise InputError(f"layers_to_transform needs a list of target_modules, not {targets!r}")
        every = targets.lower() == "all-linear"
        targets = ALL_LINEAR if every else [p for p in projections if matches(targets, p)]
    if not targets:
        raise InputError(f"target_modules {fields['target_modules']!r} match no projection")
    fields["init_lora_weights"] = start if start in INITIALIZERS else True
    fields["target_modules"] = tuple(targets)
    # for PEFT an empty list means all layers, like null
    fields["layers_to_transform"] = (layers,) if type(layers) is int else tuple(layers) or None
    config = LoraConfig(**fields)
    check_bias(bias, config, base)
    return config, lora_bias, modules


def without_useless(excluded, paths):
    """Return exclude_modules without the names that match none of the paths; None if all do so."""
    if isinstance(excluded, str):
        return excluded if any(matches(excluded, path) for path in paths) else None
    return [name for name in excluded if any(names_module(name, path) for path in paths)] or None


def check_bias(bias, config, base):
    """Raise InputError if `bias` of PEFT's config means that the file has biases of the base."""
    if bias not in ("none", "all", "lora_only"):
        raise InputError(f"bias {bias!r} is not known: PEFT has none, all and lora_only")
    paths = [path for path, _ in named_leaves(base) if path.endswith(".bias")]
    if bias == "lora_only":
        adapted = lora.target_paths(base, config)
        paths = [path for path in paths if path.removesuffix(".bias") in adapted]
    if bias != "none" and paths:
        what = f"bias = {bias!r} is not implemented where the base has biases, such as {paths[0]}"
        raise InputError(f"{what}: train with bias='none' or with lora_bias=True")


def as_json(config, base_name, lora_bias=False, modules=()):
    """Return the object for adapter_config.json, with every field that PEFT writes."""
    targets = config.target_modules
    written = OFF | NEUTRAL | LORA_NEUTRAL | vars(config) | {
        "base_model_name_or_path": str(base_name),
        "target_modules": ALL_LINEAR if "all-linear" in targets else targets,
        "lora_bias": lora_bias,
        "modules_to_save": list(modules) or None,
    }  # fmt: skip
    return dict(sorted(written.items()))

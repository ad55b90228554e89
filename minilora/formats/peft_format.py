"""PEFT's format: its names for an adapter's tensors, and its adapter_config.json.

Of the file's some forty fields, HONOURED ones say what an adapter computes and are computed here
too. NEUTRAL ones say nothing about a finished adapter. All the others switch on something that is
not implemented here; they must be off, and so must fields of later versions that no table knows.
"""

import re

from ..config import ALL_LINEAR, STARTS, InputError, LoraConfig, names_module, require
from ..tree import walk

PREFIX = "base_model.model."  # PEFT's wrapper, and transformers' model inside it


# PEFT's names of the leaves of an adapted projection
LEAVES = {
    "lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "bias": "lora_B.bias",
    "lora_magnitude_vector": "lora_magnitude_vector",
}  # fmt: skip


def key(path):
    """Make PEFT's name of the trained leaf at `path`."""
    node, _, name = path.rpartition(".")
    return f"{PREFIX}{node}.{LEAVES.get(name, name)}"


def replaceable(base):
    """Compute {path: shape} of what may be trained whole: the norms' gains, and the head."""
    gains = {path: w.shape for path, w in walk(base) if path.endswith("norm.weight")}
    return gains | {"lm_head.weight": base["model"]["embed_tokens"]["weight"].shape}


def named(modules, paths):
    """List the paths that modules_to_save means: as in PEFT, a name is the end of a module's path."""
    return [path for path in paths if path.removesuffix(".weight").endswith(tuple(modules))]


# --- adapter_config.json


def _whole(value):
    return type(value) is int and abs(value) < 2**31


def _number(value):
    return type(value) in (int, float) and abs(value) < 1e38  # what float32 holds; not NaN


def _flag(value):
    return type(value) is bool


def _names(value):
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _layers(value):
    return _whole(value) or (isinstance(value, list) and all(map(_whole, value)))


def _values(sound):
    return lambda value: isinstance(value, dict) and all(map(sound, value.values()))


# field: (PEFT's default for a Llama, what a sound value is)
HONOURED = {
    "r": (8, _whole),
    "lora_alpha": (8, _number),
    "lora_dropout": (0.0, _number),
    "target_modules": (["q_proj", "v_proj"], lambda value: isinstance(value, str) or _names(value)),
    "layers_to_transform": ([], _layers),
    "rank_pattern": ({}, _values(_whole)),
    "alpha_pattern": ({}, _values(_number)),
    "use_rslora": (False, _flag),
    "use_dora": (False, _flag),
    "lora_bias": (False, _flag),
    "modules_to_save": ([], _names),
}
NEUTRAL = {
    "auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True,
    "peft_version": "0.21.2", "revision": None,
}  # fmt: skip
LORA_NEUTRAL = {"eva_config": None, "megatron_core": "megatron.core", "qalora_group_size": 16}
OFF: dict = {
    "alora_invocation_tokens": None, "arrow_config": None, "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "exclude_modules": None, "fan_in_fan_out": False,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None, "loftq_config": {},
    "lora_ga_config": None, "megatron_config": None, "monteclora_config": None, "peft_type": "LORA",
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_qalora": False, "velora_config": None,
}  # fmt: skip
# How A and B started no longer matters, unless the start also changed the base, as PiSSA, OLoRA,
# CorDA, LoftQ and LoRA-GA do: PEFT repeats that change when it loads the adapter, and so do we for
# those of config.STARTS. (PEFT's LoftQ, with its loftq_config, quantizes otherwise; ours has none,
# and PEFT refuses it.)
NEUTRAL_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
KNOWN = {*HONOURED, *NEUTRAL, *LORA_NEUTRAL, "init_lora_weights", "runtime_config"}


def refuse_unknown(raw, free, fixed):
    """Raise InputError for a field that is not off, not in `free`, and not as in `fixed`."""
    for name, value in raw.items():
        off = value in (None, False, "", [], {})
        require(
            off or name in free or _in_order(value) == _in_order(fixed.get(name)),
            f"{name} = {value!r} is not implemented: the adapter would compute otherwise",
        )


def _in_order(value):  # PEFT writes the items of a set in any order
    return sorted(value, key=repr) if isinstance(value, list) else value


def read_config(raw, base):
    """Read (LoraConfig, lora_bias, {path: shape} of what is trained whole) for this base.

    PEFT reads a string of target_modules and the keys of the patterns as regular expressions; they
    become the names of the base's projections that they match. Raises InputError naming the field
    that is malformed or not implemented.
    """
    start = raw.get("init_lora_weights")
    require(
        start in (*NEUTRAL_STARTS, *STARTS),
        f"init_lora_weights {start!r} is not implemented: it changes the base, too",
    )
    refuse_unknown(raw, KNOWN, OFF)
    fields: dict = {}
    for name, (default, sound) in HONOURED.items():
        fields[name] = default if raw.get(name) is None else raw[name]
        require(sound(fields[name]), f"{name} is malformed: {fields[name]!r}")
    lora_bias, modules, places = (
        fields.pop("lora_bias"),
        fields.pop("modules_to_save"),
        replaceable(base),
    )
    for name in modules:
        known = named([name], places)
        require(known, f"modules_to_save {name!r} is not implemented; norms and lm_head are")
    weights = tuple(f".{name}.weight" for name in ALL_LINEAR)
    projections = [p.removesuffix(".weight") for p, _ in walk(base) if p.endswith(weights)]
    layers = fields["layers_to_transform"]
    fields["init_lora_weights"] = start if start in STARTS else True
    fields["target_modules"] = _targets(fields, projections)
    # to PEFT an empty list is all layers, too
    fields["layers_to_transform"] = (layers,) if _whole(layers) else tuple(layers) or None
    for name in ("rank_pattern", "alpha_pattern"):
        fields[name] = _by_name(name, fields[name], projections)
    return LoraConfig(**fields), lora_bias, {path: places[path] for path in named(modules, places)}


def _targets(fields, projections):
    value = fields["target_modules"]
    if isinstance(value, str):
        require(
            fields["layers_to_transform"] == [],
            f"layers_to_transform needs a list of target_modules, not {value!r}",
        )
        whole = value.lower() == "all-linear"
        value = ALL_LINEAR if whole else _found("target_modules", value, projections)
    require(value, f"target_modules {fields['target_modules']!r} match no projection")
    return tuple(value)


def _by_name(name, pattern, projections):
    """Make the pattern with plain names: a key that is one stays, others give way to their matches.

    The first key that matches decides, in PEFT as in LoraConfig.at.
    """
    by_name: dict = {}
    for regex, value in pattern.items():
        found = _found(name, rf"(.*\.)?({regex})$", projections)
        plain = found == [p for p in projections if names_module(regex, p)]
        for each in [regex] if plain else found:
            by_name.setdefault(each, value)
    return by_name


def _found(name, regex, projections):
    try:
        return [p for p in projections if re.fullmatch(regex, p)]
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{name} {regex!r} is no regular expression: {error}") from error


def as_json(config, base_name, lora_bias=False, modules=()):
    """The object for adapter_config.json, with every field that PEFT itself writes.

    `base_name`: the name or folder of the base. Raises InputError if a key of a pattern would mean
    something else to PEFT.
    """
    for name in (*config.rank_pattern, *config.alpha_pattern):
        require(
            re.fullmatch(r"\w+(\.\w+)*", name),
            f"rank_pattern and alpha_pattern take module names, not {name!r}",
        )
    every = "all-linear" in config.target_modules
    written = OFF | NEUTRAL | LORA_NEUTRAL | vars(config) | {
        "base_model_name_or_path": str(base_name),
        "target_modules": ALL_LINEAR if every else config.target_modules,
        "lora_bias": lora_bias,
        "modules_to_save": list(modules) or None,
    }  # fmt: skip
    return dict(sorted(written.items()))

"""PEFT's format: its names for an adapter's tensors, and its adapter_config.json.

Of the file's some forty fields, HONOURED ones say what an adapter computes and are computed here
too. NEUTRAL ones say nothing about a finished adapter. All the others switch on something that is
not implemented here; they must be off, and so must fields of later versions that no table knows.
"""

import re

from ..config import ALL_LINEAR, STARTS, InputError, LoraConfig, names_module, require
from ..tree import walk
from .files import read_json

PREFIX = "base_model.model."  # PEFT's wrapper, and transformers' model inside it


def key(path):
    """PEFT's name of the trained leaf at `path`. A bias beside low-rank factors is lora_B's."""
    node, _, name = path.rpartition(".")
    names = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "bias": "lora_B.bias"}
    return f"{PREFIX}{node}.{names.get(name, name)}"


def replaceable(base):
    """{path: shape} of what may be trained whole (modules_to_save): norms' gains, and the head."""
    gains = {path: w.shape for path, w in walk(base) if path.endswith("norm.weight")}
    return gains | {"lm_head.weight": base["model"]["embed_tokens"]["weight"].shape}


def named(names, paths):
    """The paths of weights whose modules the names of modules_to_save mean, in PEFT's reading:
    only how a path ends counts, so that `norm` is every norm."""
    return [path for path in paths if path.removesuffix(".weight").endswith(tuple(names))]


def names_of(some, paths):
    """Names of modules_to_save that mean `some` of the paths: short ones where they are enough."""
    modules = [path.removesuffix(".weight") for path in some]
    short = sorted({module.rpartition(".")[2] for module in modules})
    return short if sorted(named(short, paths)) == sorted(some) else modules


# --- adapter_config.json


def _whole(value):
    return type(value) is int and abs(value) < 2**31


def _number(value):
    return type(value) in (int, float) and abs(value) < 1e38  # what float32 holds; not NaN


def _flag(value):
    return type(value) is bool


def _names(value):
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _names_or_pattern(value):
    return isinstance(value, str) or _names(value)


def _layers(value):
    return _whole(value) or (isinstance(value, list) and all(map(_whole, value)))


def _ranks(value):
    return isinstance(value, dict) and all(map(_whole, value.values()))


def _alphas(value):
    return isinstance(value, dict) and all(map(_number, value.values()))


# field: (PEFT's default for a Llama, what a sound value is)
HONOURED = {
    "r": (8, _whole),
    "lora_alpha": (8, _number),
    "lora_dropout": (0.0, _number),
    "target_modules": (["q_proj", "v_proj"], _names_or_pattern),
    "layers_to_transform": ([], _layers),
    "rank_pattern": ({}, _ranks),
    "alpha_pattern": ({}, _alphas),
    "use_rslora": (False, _flag),
    "use_dora": (False, _flag),
    "lora_bias": (False, _flag),
    "modules_to_save": ([], _names),
}
NEUTRAL = {
    "auto_mapping": None, "base_model_name_or_path": None, "eva_config": None,
    "inference_mode": True, "megatron_core": "megatron.core", "peft_version": "0.21.2",
    "qalora_group_size": 16, "revision": None,
}  # fmt: skip
OFF: dict = {
    "alora_invocation_tokens": None, "arrow_config": None, "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "exclude_modules": None, "fan_in_fan_out": False,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None, "loftq_config": {},
    "lora_ga_config": None, "megatron_config": None, "monteclora_config": None,
    "target_parameters": None, "trainable_token_indices": None, "use_bdlora": None,
    "use_qalora": False, "velora_config": None,
}  # fmt: skip
# How A and B started no longer matters, unless the start also changed the base, as PiSSA, OLoRA,
# CorDA, LoftQ and LoRA-GA do: PEFT repeats that change when it loads the adapter, and so do we for
# those of config.STARTS. (PEFT's LoftQ, with its loftq_config, quantizes otherwise; ours has none,
# and PEFT refuses it.)
NEUTRAL_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
KNOWN = {*HONOURED, *NEUTRAL, "init_lora_weights", "peft_type", "runtime_config", "task_type"}


def read_config(path, base):
    """(LoraConfig, lora_bias, modules_to_save) of LoRA's adapter_config.json for this base.

    PEFT reads a string of target_modules and the keys of the patterns as regular expressions; they
    become the names of the base's projections that they match. Raises InputError naming the file
    and the field that is malformed or not implemented.
    """
    raw = read_json(path)
    _refuse(path, raw)
    weights = tuple(f".{name}.weight" for name in ALL_LINEAR)
    projections = [p.removesuffix(".weight") for p, _ in walk(base) if p.endswith(weights)]
    fields = {name: _field(path, raw, name) for name in HONOURED}
    lora_bias, modules = fields.pop("lora_bias"), fields.pop("modules_to_save")
    start = raw.get("init_lora_weights")
    fields["init_lora_weights"] = start if start in STARTS else True
    fields["target_modules"] = _targets(path, fields, projections)
    fields["layers_to_transform"] = _layer_tuple(fields["layers_to_transform"])
    for name in ("rank_pattern", "alpha_pattern"):
        fields[name] = _by_name(path, name, fields[name], projections)
    try:
        return LoraConfig(**fields), lora_bias, modules
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _refuse(path, raw):
    task = raw.get("task_type")
    require(
        task in (None, "CAUSAL_LM"), f"{path}: task_type {task!r} is not implemented; CAUSAL_LM is"
    )
    start = raw.get("init_lora_weights")
    require(
        start in (*NEUTRAL_STARTS, *STARTS),
        f"{path}: init_lora_weights {start!r} is not implemented: it changes the base, too",
    )
    for name, value in raw.items():
        off = value in (None, False, "", [], {}) or value == OFF.get(name)
        require(
            off or name in KNOWN,
            f"{path}: {name} = {value!r} is not implemented: the adapter would compute otherwise",
        )


def _field(path, raw, name):
    default, sound = HONOURED[name]
    value = default if raw.get(name) is None else raw[name]
    require(sound(value), f"{path}: {name} is malformed: {value!r}")
    return value


def _targets(path, fields, projections):
    value = fields["target_modules"]
    if isinstance(value, str):
        require(
            fields["layers_to_transform"] == [],
            f"{path}: layers_to_transform needs a list of target_modules, not {value!r}",
        )
        whole = value.lower() == "all-linear"
        value = ALL_LINEAR if whole else _found(path, "target_modules", value, projections)
    require(value, f"{path}: target_modules {fields['target_modules']!r} match no projection")
    return tuple(value)


def _layer_tuple(layers):
    """None for all; to PEFT an empty list is all, too."""
    return (layers,) if _whole(layers) else tuple(layers) or None


def _by_name(path, name, pattern, projections):
    """The pattern with plain names: a key that is one stays, others give way to what they match.

    The first key that matches decides, in PEFT as in LoraConfig.at.
    """
    by_name: dict = {}
    for regex, value in pattern.items():
        found = _found(path, name, rf"(.*\.)?({regex})$", projections)
        plain = found == [p for p in projections if names_module(regex, p)]
        for each in [regex] if plain else found:
            by_name.setdefault(each, value)
    return by_name


def _found(path, name, regex, projections):
    try:
        return [p for p in projections if re.fullmatch(regex, p)]
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: {name} {regex!r} is no regular expression: {error}") from error


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
    written = OFF | NEUTRAL | {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_name),
        "init_lora_weights": config.init_lora_weights,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": list(ALL_LINEAR if every else config.target_modules),
        "layers_to_transform": config.layers_to_transform and list(config.layers_to_transform),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "lora_bias": lora_bias,
        "modules_to_save": list(modules) or None,
    }  # fmt: skip
    return dict(sorted(written.items()))

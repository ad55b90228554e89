"""Hugging Face's config.json of a Llama, read into a ModelConfig and written back.

The fields moved over the years: the rotation's base was `rope_theta` with `rope_scaling` beside it
up to transformers 4 and is inside `rope_parameters` from 5 on; `rope_type` was once `type`. What
would change the arithmetic and is not implemented here is refused by name.
"""

import math
from pathlib import Path

from ..config import InputError, ModelConfig, require
from .files import read_json

LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_config(folder):
    """(ModelConfig, the whole object) of folder/config.json.

    Raises InputError naming the file and the field that is missing, malformed or not implemented.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    _refuse_other_architectures(path, raw)
    heads = _size(path, raw, "num_attention_heads")
    width = _size(path, raw, "hidden_size")
    theta, scaling = read_rope(path, raw)
    generation = read_json(path.with_name("generation_config.json"), default={})
    config = model_config(
        path,
        vocab_size=_size(path, raw, "vocab_size"),
        hidden_size=width,
        intermediate_size=_size(path, raw, "intermediate_size"),
        num_hidden_layers=_size(path, raw, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_size(path, raw, "num_key_value_heads", heads),
        head_dim=_size(path, raw, "head_dim", width // heads),
        rope_theta=theta,
        rms_norm_eps=_real(path, raw, "rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_position_embeddings=_size(path, raw, "max_position_embeddings", 2048),
        eos_token_id=_ids(path, raw | generation, "eos_token_id"),
        bos_token_id=next(iter(_ids(path, raw, "bos_token_id")), None),
        rope_scaling=scaling,
    )
    return config, raw


def model_config(path, **fields):
    """ModelConfig(**fields); what it objects to is said with the file's name in front."""
    try:
        return ModelConfig(**fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _refuse_other_architectures(path, raw):
    kind = raw.get("model_type")
    require(kind == "llama", f"{path}: model_type {kind!r} is not implemented; only llama is")
    act = raw.get("hidden_act", "silu")
    require(act == "silu", f"{path}: hidden_act {act!r} is not implemented; only silu is")


def _size(path, raw, name, default=None):
    value = raw.get(name)
    value = default if value is None else value
    sound = type(value) is int and value > 0
    require(sound, f"{path}: {name} must be a whole number from 1, got {value!r}")
    return value


def _real(path, raw, name, default=None):
    value = raw.get(name)
    value = default if value is None else value
    sound = isinstance(value, int | float) and 0 < value < math.inf
    require(sound, f"{path}: {name} must be a positive number, got {value!r}")
    return float(value)


def _ids(path, raw, name):
    """A token id, a list of them or null, as a tuple."""
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    sound = all(type(i) is int and i >= 0 for i in ids)
    require(sound, f"{path}: {name} must be a token id or a list of them, got {value!r}")
    return tuple(ids)


def read_rope(path, raw):
    """(rope_theta, rope_scaling as ModelConfig wants it) from either generation of config.json."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    require(isinstance(rope, dict), f"{path}: the rope parameters must be an object, got {rope!r}")
    theta = _real(path, {**raw, **rope}, "rope_theta", 10000.0)
    part = {**raw, **rope}.get("partial_rotary_factor", 1)
    require(
        part in (None, 1), f"{path}: partial_rotary_factor {part} is not implemented; only 1 is"
    )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    require(
        kind in ("linear", "llama3"),
        f"{path}: rope type {kind!r} is not implemented; default, linear and llama3 are",
    )
    scaling = {"rope_type": kind, "factor": _real(path, rope, "factor")}
    for name in LLAMA3 if kind == "llama3" else ():
        scaling[name] = rope[name] if type(rope.get(name)) is int else _real(path, rope, name)
    return theta, scaling


def as_json(config, dtype, attention_bias=False, mlp_bias=False):
    """The object for config.json, in the spelling that transformers 4 and 5 both read.

    `dtype`: float32, float16 or bfloat16, in which the tensors beside it are stored.
    """
    eos = list(config.eos_token_id)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "torch_dtype": dtype,
    }

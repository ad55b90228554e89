"""Hugging Face's config.json of a Llama, read into a ModelConfig and written back.

The fields moved over the years: the rotation's base was `rope_theta` with `rope_scaling` beside it
up to transformers 4 and is inside `rope_parameters` from 5 on; `rope_type` was once `type`. What
would change the arithmetic and is not implemented here is refused by name.
"""

from pathlib import Path

from ..config import ModelConfig, require
from .files import naming, read_json

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
OTHERS = (
    "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_config(folder):
    """Read (ModelConfig, the whole object) of folder/config.json.

    Raises InputError naming the file and the field that is missing, malformed or not implemented.
    """
    path = Path(folder) / "config.json"
    raw, generation = read_json(path), read_json(path.with_name("generation_config.json"), {})
    with naming(path):
        return _config(raw, raw | generation), raw


def _config(raw, generation):
    kind, act = raw.get("model_type"), raw.get("hidden_act", "silu")
    require(kind == "llama", f"model_type {kind!r} is not implemented; only llama is")
    require(act == "silu", f"hidden_act {act!r} is not implemented; only silu is")
    heads, width = size(raw, "num_attention_heads"), size(raw, "hidden_size")
    defaults = {"num_key_value_heads": heads, "head_dim": width // heads}
    theta, scaling = _rope(raw)
    return ModelConfig(
        **{name: size(raw, name, defaults.get(name)) for name in SIZES},
        rope_theta=theta,
        rms_norm_eps=float(positive(raw, "rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_position_embeddings=size(raw, "max_position_embeddings", 2048),
        eos_token_id=ids(generation, "eos_token_id"),
        bos_token_id=next(iter(ids(raw, "bos_token_id")), None),
        rope_scaling=scaling,
    )


def size(raw, name, default=None):
    """Return raw[name], or the default for null, if it is a whole number from 1."""
    value = default if raw.get(name) is None else raw[name]
    sound = type(value) is int and value > 0
    require(sound, f"{name} must be a whole number from 1, got {value!r}")
    return value


def positive(raw, name, default=None):
    """Return raw[name], or the default for null, if it is a positive number that float32 holds."""
    value = default if raw.get(name) is None else raw[name]
    sound = isinstance(value, int | float) and 0 < value < 1e38
    require(sound, f"{name} must be a positive number, got {value!r}")
    return value


def ids(raw, name):
    """Return raw[name], a token id, a list of them or null, as a tuple."""
    value = raw.get(name)
    found = value if isinstance(value, list) else [] if value is None else [value]
    sound = all(type(i) is int and i >= 0 for i in found)
    require(sound, f"{name} must be a token id or a list of them, got {value!r}")
    return tuple(found)


def _rope(raw):
    """Read (rope_theta, rope_scaling as ModelConfig has it) from either generation's fields."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    require(isinstance(rope, dict), f"the rope parameters must be an object, got {rope!r}")
    every = raw | rope
    theta = float(positive(every, "rope_theta", 10000))
    part = every.get("partial_rotary_factor")
    require(part in (None, 1), f"partial_rotary_factor {part} is not implemented; only 1 is")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    require(
        kind in ("linear", "llama3"),
        f"rope type {kind!r} is not implemented; default, linear and llama3 are",
    )
    scaling = {"rope_type": kind, "factor": float(positive(rope, "factor"))}
    if kind == "llama3":
        scaling |= {name: positive(rope, name) for name in LLAMA3}
    return theta, scaling


def as_json(config, dtype, attention_bias=False, mlp_bias=False):
    """Make the object for config.json, in the spelling that transformers 4 and 5 both read.

    `dtype`: float32, float16 or bfloat16, in which the tensors beside it are stored.
    """
    eos = list(config.eos_token_id)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(config, name) for name in SIZES},
        "hidden_act": "silu",
        **{name: getattr(config, name) for name in OTHERS},
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "torch_dtype": dtype,
    }

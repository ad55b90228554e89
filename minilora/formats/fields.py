"""Check fields of a JSON object, or of the metadata of a GGUF file. A field of null is missing."""

from ..config import POSITIVE_INT, InputError, Rule, check_setting

# in the range of float32
POSITIVE = Rule(
    "be a positive number", lambda value: type(value) is not bool and 1e-38 < value < 1e38
)
LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
LAYER_TYPES = ("sliding_attention", "full_attention")


def number(raw, name, default, rule):
    """Return raw[name], or the default; raise InputError unless it is a number of this kind."""
    value = default if raw.get(name) is None else raw[name]
    check_setting(name, value, rule)
    return value


def size(raw, name, default=None):
    """Return raw[name], or the default; raise InputError unless it is a positive int."""
    return number(raw, name, default, POSITIVE_INT)


def positive(raw, name, default=None):
    """Return raw[name], or the default, as a float; raise InputError unless it is positive."""
    return float(number(raw, name, default, POSITIVE))


def boolean(raw, name):
    """Return raw[name], or false; raise InputError unless it is true or false."""
    value = raw.get(name)
    if value not in (None, False, True):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return bool(value)


def nested(raw, name):
    """Return the object raw[name], or {}; raise InputError if it is something else."""
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object, got {value!r}")
    return value


def ids(raw, name):
    """Return raw[name], which is a token id, a list of them or missing, as a tuple."""
    value = raw.get(name)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in found):
        raise InputError(f"{name} must be a token id or a list of them, got {value!r}")
    return tuple(dict.fromkeys(found))


def rope(raw):
    """Return (rope_theta, rope_scaling of ModelConfig) from the fields of transformers 4 or 5."""
    found = nested(raw, "rope_parameters") or nested(raw, "rope_scaling")
    every = raw | found
    theta = positive(every, "rope_theta", 10000)
    part = every.get("partial_rotary_factor")
    if part not in (None, 1):
        raise InputError(f"partial_rotary_factor {part!r} is not implemented; only 1 is")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise InputError(f"rope type {kind!r} is not implemented; default, linear and llama3 are")
    scaling = {"rope_type": kind, "factor": positive(found, "factor")}
    if kind == "llama3":
        scaling |= {name: number(found, name, None, POSITIVE) for name in LLAMA3}
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if low >= high:
            raise InputError(f"low_freq_factor {low} must be below high_freq_factor {high}")
    return theta, scaling


def layer_types(raw, default):
    """Return raw["layer_types"] as a tuple, or the default; raise InputError if it is malformed."""
    types = raw.get("layer_types") or default
    n = size(raw, "num_hidden_layers")
    known = isinstance(types, list) and all(kind in LAYER_TYPES for kind in types)
    if not (known and len(types) == n):
        raise InputError(f"layer_types must name {' or '.join(LAYER_TYPES)} for each of {n} layers")
    return tuple(types)

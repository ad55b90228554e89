"""Check fields of a JSON object, or of the metadata of a GGUF file."""

from ..config import MAPPING, NON_NEGATIVE_INT, POSITIVE_INT, InputError, Rule, check_setting

POSITIVE_FLOAT32 = Rule(
    "be a positive number", lambda value: type(value) is not bool and 1e-38 < value < 1e38
)
ROPE = {  # kind of scaling: its numbers
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
SLIDING = "sliding_attention"
FULL = "full_attention"


def number(raw, name, rule, default=None):
    """Return raw[name], or the default; raise InputError unless it is a number of this kind."""
    value = raw.get(name, default)
    check_setting(name, value, rule)
    return value


def size(raw, name, default=None):
    """Return raw[name], or the default; raise InputError unless it is a positive int."""
    return number(raw, name, POSITIVE_INT, default)


def mapping(raw, name):
    """Return raw[name]; {} if it is null or missing; raise InputError unless it is an object."""
    value = {} if raw.get(name) is None else raw[name]
    check_setting(name, value, MAPPING)
    return value


def ids(raw, name):
    """Return raw[name], which is a token id, a list of them or missing, as a tuple."""
    value = raw.get(name)
    found = value if isinstance(value, list) else [] if value is None else [value]
    for i in found:
        check_setting(name, i, NON_NEGATIVE_INT)
    return tuple(dict.fromkeys(found))


def rope(raw):
    """Return (rope_theta, rope_scaling of ModelConfig) from the fields of transformers 4 or 5."""
    found = mapping(raw, "rope_parameters") or mapping(raw, "rope_scaling")
    if FULL in found or SLIDING in found:
        raise InputError("rope_parameters of each type of layer are implemented only for Gemma 3")
    every = raw | found
    theta = number(every, "rope_theta", POSITIVE_FLOAT32, 10000.0)
    part = every.get("partial_rotary_factor")
    if part not in (None, 1):
        raise InputError(f"partial_rotary_factor {part!r} is not implemented; only 1 is")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ROPE:
        raise InputError(f"rope type {kind!r} is not implemented; default, linear and llama3 are")
    scaling = {name: number(found, name, POSITIVE_FLOAT32) for name in ROPE[kind]}
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if low >= high:
            raise InputError(f"low_freq_factor {low} must be below high_freq_factor {high}")
    return theta, {"rope_type": kind} | scaling


def layer_types(raw, default):
    """Return raw["layer_types"] as a tuple, or the default; raise InputError if it is malformed."""
    types = default if raw.get("layer_types") is None else raw["layer_types"]
    n = len(default)
    if not isinstance(types, list) or len(types) != n or not {SLIDING, FULL}.issuperset(types):
        raise InputError(f"layer_types must name {SLIDING} or {FULL} for each of {n} layers")
    return tuple(types)

"""The file format of the methods other than LoRA: PEFT's format if PEFT has the method, else ours.

Our format has the same two files: an adapter_config.json with `minilora_method` instead of
`peft_type`, which PEFT rejects, and tensors under the paths of the trained tree.

In PEFT's files, a prompt is one tensor `prompt_embeddings` (n, D). P-tuning stores the output of
its network there, without the network. A prefix is (n, L·2·K·hd): keys and values of each layer.
"""

import numpy as np

from ..config import require
from ..methods.operations import prompt
from ..methods.registry import METHODS, MethodConfig
from ..tree import get, named_leaves, unflatten
from .peft_format import NEUTRAL, PREFIX, refuse_unknown

LARGEST = 2**12  # largest valid size in a file
PROMPT = "prompt_embeddings"

# Fields of PEFT's adapter_config.json that decide what a method computes, by method ...
VIRTUAL = {"num_transformer_submodules": 1, "modules_to_save": None}
FIXED: dict = {
    "ia3": {
        "peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"], "fan_in_fan_out": False,
        "exclude_modules": None, "modules_to_save": None,
    },
    "prompt": VIRTUAL | {"peft_type": "PROMPT_TUNING"},
    "p-tuning": VIRTUAL | {"peft_type": "P_TUNING"},
    "prefix": VIRTUAL | {"peft_type": "PREFIX_TUNING"},
}  # fmt: skip
# ... and fields that may have any value: the initialization, and the base's shape.
BASE = {"num_layers": None, "token_dim": None, "num_attention_heads": None}
FREE: dict = {
    "ia3": {"init_ia3_weights": True},
    "prompt": BASE | {
        "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None, "tokenizer_kwargs": None,
    },
    "p-tuning": BASE | {
        "encoder_reparameterization_type": "MLP", "encoder_hidden_size": None,
        "encoder_num_layers": 2, "encoder_dropout": 0.0,
    },
    "prefix": BASE | {"encoder_hidden_size": None, "prefix_projection": False, "init_weights": None}
}  # fmt: skip
SIZE = dict.fromkeys(("prompt", "p-tuning", "prefix"), "num_virtual_tokens")
SIZE["bottleneck"] = "bottleneck_size"


def _fixed(method):
    return FIXED.get(method, {"minilora_method": method}) | {"task_type": "CAUSAL_LM"}


def as_json(config, base_name):
    """Return the object for adapter_config.json; `base_name` is the name or folder of the base."""
    written = NEUTRAL | FREE.get(config.method, {}) | _fixed(config.method)
    if config.method in SIZE:
        written[SIZE[config.method]] = getattr(config, SIZE[config.method])
    return dict(sorted((written | {"base_model_name_or_path": str(base_name)}).items()))


def read_config(raw):
    """Return the MethodConfig that the object in an adapter_config.json describes.

    Raises InputError naming the field that is malformed or not implemented.
    """
    kind, method = raw.get("peft_type"), raw.get("minilora_method")
    types = {fields["peft_type"]: name for name, fields in FIXED.items()}
    known = kind is None or str(kind) in types
    require(known, f"peft_type {kind!r} is not implemented; LORA, {', '.join(types)} are")
    own = [name for name in METHODS if name not in (*FIXED, "lora", "dora")]
    require(kind or method in own, "no peft_type and no known minilora_method")
    method = types.get(kind, method)
    size = SIZE.get(method)
    refuse_unknown(raw, {*NEUTRAL, *FREE.get(method, ()), size}, _fixed(method))
    if size is None:
        return MethodConfig(method)
    n = raw.get(size)
    require(type(n) is int and 1 <= n <= LARGEST, f"{size} is malformed: {n!r}")
    return MethodConfig(method, **{size: n})


def shapes(config, base):
    """Return {tensor name: shape} of the file of such an adapter on this base."""
    if config.method in ("prompt", "p-tuning"):
        width = base["model"]["embed_tokens"]["weight"].shape[1]
        return {PROMPT: (config.num_virtual_tokens, width)}
    adapters, _ = METHODS[config.method](base, config, np.random.default_rng(0))
    return {name: w.shape for name, w in tensors(adapters, config).items()}


def tensors(adapters, config):
    """Return {tensor name: array} for the file."""
    if config.method in ("prompt", "p-tuning"):
        return {PROMPT: prompt(adapters["model"])}
    if config.method == "prefix":
        return {PROMPT: np.concatenate([get(adapters, p) for p in _prefixes(adapters)], axis=1)}
    prefix = PREFIX if config.method in FIXED else ""
    return {prefix + path: w for path, w in named_leaves(adapters)}


def tree(config, read, base):
    """Return the trained tree that the tensors of a file, {name: array}, describe."""
    if config.method in ("prompt", "p-tuning"):
        return unflatten({f"model.{PROMPT}": read[PROMPT]})
    if config.method == "prefix":
        paths = _prefixes(base)
        parts = np.split(read[PROMPT], len(paths), axis=1)
        return unflatten(dict(zip(paths, map(np.ascontiguousarray, parts))))
    return unflatten({name.removeprefix(PREFIX): w for name, w in read.items()})


def _prefixes(tree):
    """Return the paths of the keys and values, from the first layer to the last."""
    layers, names = range(len(tree["model"]["layers"])), ("prefix_k", "prefix_v")
    return [f"model.layers.{i}.self_attn.{name}" for i in layers for name in names]

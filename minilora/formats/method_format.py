"""The files of the methods other than LoRA: PEFT's where PEFT has the method, else our own.

Ours are the same two: an adapter_config.json with `minilora_method` in the place of `peft_type`
(and `bottleneck_size`), which PEFT refuses, and tensors under the paths of the trained tree.

In PEFT's files a prompt is one tensor, `prompt_embeddings` (n, D). So is what P-tuning's network
puts out (the network itself is dropped), and a prefix: (n, L·2·K·hd), each layer's keys, values.
"""

import numpy as np

from ..config import MethodConfig, require
from ..methods.methods import METHODS
from ..methods.siblings import prompt
from ..tree import get, unflatten, walk

PREFIX = "base_model.model."  # PEFT's wrapper, and transformers' model inside it
LARGEST = 2**12  # of a size in a file: what is larger is malformed

# Fields of PEFT's adapter_config.json. None: off, or what PEFT fills in from the base.
VIRTUAL = {
    "num_transformer_submodules": 1, "modules_to_save": None, "num_layers": None, "token_dim": None,
    "num_attention_heads": None,
}  # fmt: skip
FIELDS: dict = {
    "ia3": {
        "peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"], "fan_in_fan_out": False, "init_ia3_weights": True,
        "exclude_modules": None, "modules_to_save": None,
    },
    "prompt": VIRTUAL | {
        "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None, "tokenizer_name_or_path": None, "tokenizer_kwargs": None,
    },
    "p-tuning": VIRTUAL | {
        "peft_type": "P_TUNING", "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": None, "encoder_num_layers": 2, "encoder_dropout": 0.0,
    },
    "prefix": VIRTUAL | {
        "peft_type": "PREFIX_TUNING", "encoder_hidden_size": None, "prefix_projection": False,
        "init_weights": None,
    },
}  # fmt: skip
EVERY = {
    "auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True,
    "peft_version": "0.21.2", "revision": None, "task_type": "CAUSAL_LM",
}  # fmt: skip
# How the numbers started or came about, or the shape of a base, which the tensors' shapes tell.
FREE = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "num_layers", "token_dim", "num_attention_heads", "init_ia3_weights", "init_weights",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers",
    "encoder_dropout", "prefix_projection",
}  # fmt: skip
SIZE = dict.fromkeys(("prompt", "p-tuning", "prefix"), "num_virtual_tokens")
SIZE["bottleneck"] = "bottleneck_size"


def as_json(config, base_name):
    """The object for adapter_config.json; `base_name` is the name or folder of the base."""
    written = FIELDS.get(config.method, {"minilora_method": config.method}) | EVERY
    if config.method in SIZE:
        written = written | {SIZE[config.method]: getattr(config, SIZE[config.method])}
    return dict(sorted((written | {"base_model_name_or_path": str(base_name)}).items()))


def read_config(path, raw):
    """The MethodConfig of the object in the adapter_config.json at `path`.

    Raises InputError naming the file and the field that is malformed or not implemented.
    """
    method = _method(path, raw)
    size = SIZE.get(method)
    known = EVERY | FIELDS.get(method, {"minilora_method": method})
    for name, value in raw.items():
        off = value in (None, False, "", [], {}) or name == size
        require(
            off or name in FREE & known.keys() or _same(value, known.get(name)),
            f"{path}: {name} = {value!r} is not implemented: the adapter would compute otherwise",
        )
    if size is None:
        return MethodConfig(method)
    n = raw.get(size)
    require(type(n) is int and 1 <= n <= LARGEST, f"{path}: {size} is malformed: {n!r}")
    return MethodConfig(method, **{size: n})


def _method(path, raw):
    kind, ours = raw.get("peft_type"), raw.get("minilora_method")
    types = {fields["peft_type"]: method for method, fields in FIELDS.items()}
    require(
        kind is None or kind in types,
        f"{path}: peft_type {kind!r} is not implemented; LORA, {', '.join(types)} are",
    )
    own = [name for name in METHODS if name not in (*FIELDS, "lora", "dora")]
    require(kind or ours in own, f"{path}: neither a peft_type nor a minilora_method that is known")
    return types[kind] if kind else ours


def _same(value, expected):
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(item in expected for item in value)
    return value == expected


def shapes(config, base):
    """{tensor's name: shape} of the file of such an adapter on this base."""
    n = config.num_virtual_tokens
    if config.method in ("prompt", "p-tuning"):
        return {"prompt_embeddings": (n, base["model"]["embed_tokens"]["weight"].shape[1])}
    if config.method == "prefix":
        widths = [get(base, path)["k_proj"]["weight"].shape[0] for path in _attention(base)]
        return {"prompt_embeddings": (n, 2 * sum(widths))}
    adapters, _ = METHODS[config.method](base, config, np.random.default_rng(0))
    return {_key(config, path): w.shape for path, w in walk(adapters)}


def _attention(base):
    """Paths of the self_attn nodes, from the first layer to the last."""
    return [f"model.layers.{i}.self_attn" for i in range(len(base["model"]["layers"]))]


def _key(config, path):
    return PREFIX + path if config.method in FIELDS else path


def tensors(adapters, config):
    """{tensor's name: array} for the file."""
    if config.method in ("prompt", "p-tuning"):
        return {"prompt_embeddings": prompt(adapters["model"])}
    if config.method == "prefix":
        nodes = [get(adapters, path) for path in _attention(adapters)]
        return {
            "prompt_embeddings": np.concatenate(
                [node[name] for node in nodes for name in ("prefix_k", "prefix_v")], axis=1
            )
        }
    return {_key(config, path): w for path, w in walk(adapters)}


def tree(config, read, base):
    """The trained tree of the tensors in a file, {name: array}."""
    if config.method in ("prompt", "p-tuning"):
        return unflatten({"model.prompt_embeddings": read["prompt_embeddings"]})
    if config.method == "prefix":
        names = [f"{p}.{name}" for p in _attention(base) for name in ("prefix_k", "prefix_v")]
        parts = np.split(read["prompt_embeddings"], len(names), axis=1)
        return unflatten(dict(zip(names, map(np.ascontiguousarray, parts))))
    return unflatten({name.removeprefix(PREFIX): w for name, w in read.items()})

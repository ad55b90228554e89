"""The file format of the methods other than LoRA: PEFT's format if PEFT has the method, else ours.

Our format has the same two files: an adapter_config.json with `minilora_method` instead of
`peft_type`, which PEFT rejects, and tensors under the paths of the trained tree.

In PEFT's files, a prompt is one tensor `prompt_embeddings` (n, D). P-tuning stores the output of
its network there, without the network. A prefix is (n, L·2·K·hd): keys and values of each layer.
"""

import numpy as np

from ..config import InputError, Rule, check_setting
from ..methods.method import MethodConfig
from ..methods.registry import METHODS
from ..tree import arrays, named_leaves, unflatten
from .peft_format import NEUTRAL, PREFIX, refuse_unknown

SIZE = Rule("be a whole number from 1 to 4,096", lambda n: type(n) is int and 1 <= n <= 4096)
PEFT_TYPES = {m.peft_fields["peft_type"]: m for m in METHODS.values() if m.peft_fields}


def _fixed(method):
    return (method.peft_fields or {"minilora_method": method.name}) | {"task_type": "CAUSAL_LM"}


def as_json(config, base_name):
    """Return the object for adapter_config.json; `base_name` is the name or folder of the base."""
    method = METHODS[config.method]
    written = _fixed(method) | {
        "base_model_name_or_path": str(base_name), "inference_mode": True,
    }  # fmt: skip
    if method.size:
        written[method.peft_size or method.size] = getattr(config, method.size)
    return dict(sorted(written.items()))


def read_config(raw):
    """Return the MethodConfig that the object in an adapter_config.json describes.

    Raises InputError naming the field that is malformed or not implemented.
    """
    kind, name = raw.get("peft_type"), raw.get("minilora_method")
    if kind is not None and str(kind) not in PEFT_TYPES:
        raise InputError(
            f"peft_type {kind!r} is not implemented; LORA, {', '.join(PEFT_TYPES)} are"
        )
    own = [m.name for m in METHODS.values() if not m.peft_fields and m.name not in ("lora", "dora")]
    if not kind and name not in own:
        raise InputError("no peft_type and no known minilora_method")
    method = PEFT_TYPES[kind] if kind else METHODS[name]
    size = method.peft_size or method.size or ""
    refuse_unknown(raw, {*NEUTRAL, *method.free_fields, size}, _fixed(method))
    if method.size is None:
        return MethodConfig(method.name)
    check_setting(size, raw.get(size), SIZE)
    return MethodConfig(method.name, **{method.size: raw[size]})


def shapes(config, base):
    """Return {tensor name: shape} of the file of such an adapter on this base."""
    adapters = METHODS[config.method].init(base, config, np.random.default_rng(0))
    return {name: w.shape for name, w in tensors(adapters, config).items()}


def tensors(adapters, config):
    """Return {tensor name: array} for the file."""
    method = METHODS[config.method]
    if method.pack:
        return method.pack(adapters)
    prefix = PREFIX if method.peft_fields else ""
    return {prefix + path: w for path, w in named_leaves(arrays(adapters))}


def tree(config, read, base):
    """Return the adapter that the tensors of a file, {name: array}, describe."""
    method = METHODS[config.method]
    if method.unpack:
        return method.unpack(read, base, config)
    return unflatten({name.removeprefix(PREFIX): w for name, w in read.items()})

"""The file format of the methods other than LoRA: PEFT's format if PEFT has the method, else ours.

Our format has the same two files: an adapter_config.json with `minilora_method` instead of
`peft_type`, which PEFT rejects, and tensors under the paths of the trained tree.

In PEFT's files, a prompt is one tensor `prompt_embeddings` (n, D). P-tuning stores the output of
its network there, without the network. A prefix is (n, L·2·K·hd): keys and values of each layer.
"""

import numpy as np

from ..config import InputError
from ..methods.method import MethodConfig
from ..methods.registry import METHODS
from ..tree import arrays, named_leaves, unflatten
from .fields import UP_TO_4096, number
from .peft_format import NEUTRAL, PREFIX, refuse_unknown

OWN = {m.name: m for m in METHODS.values() if not m.peft_fields and m.name not in ("lora", "dora")}
PEFT_TYPES = {m.peft_fields["peft_type"]: m for m in METHODS.values() if m.peft_fields}


def _fixed(method):
    return (method.peft_fields or {"minilora_method": method.name}) | {"task_type": "CAUSAL_LM"}


def as_json(config, base_name):
    """Return the object for adapter_config.json; `base_name` is the name or folder of the base."""
    method = METHODS[config.method]
    written = _fixed(method) | {"base_model_name_or_path": base_name, "inference_mode": True}
    if method.size:
        written[method.peft_size or method.size] = getattr(config, method.size)
    return written


def read_config(raw):
    """Return the MethodConfig that the object in an adapter_config.json describes.

    Raises InputError naming the field that is malformed or not implemented.
    """
    kind = raw.get("peft_type")
    name = raw.get("minilora_method")
    method = PEFT_TYPES.get(str(kind)) or OWN.get(str(name))
    if method is None:
        known = ", ".join(["LORA", *PEFT_TYPES])
        other = f"nor is minilora_method {name!r}"
        raise InputError(f"peft_type {kind!r} is not implemented; {known} are; {other}")
    size = method.peft_size or method.size or ""
    refuse_unknown(raw, {*NEUTRAL, *method.free_fields, size}, _fixed(method))
    if method.size is None:
        return MethodConfig(method.name)
    return MethodConfig(method.name, **{method.size: number(raw, size, UP_TO_4096)})


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
        return method.unpack(read, base)
    return unflatten({name.removeprefix(PREFIX): w for name, w in read.items()})

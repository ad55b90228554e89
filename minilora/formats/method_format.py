"""The file format of the methods other than LoRA: PEFT's format if PEFT has the method, else ours.

Our format has the same two files: an adapter_config.json with `minilora_method` instead of
`peft_type`, which PEFT rejects, and tensors under the paths of the trained tree.

In PEFT's files, a prompt is one tensor `prompt_embeddings` (n, D). P-tuning stores the output of
its network there, without the network. A prefix is (n, L·2·K·hd): keys and values of each layer.
"""

import numpy as np

from ..config import InputError
from ..methods.method import MethodConfig
from ..methods.prompt import PROMPT
from ..methods.registry import METHODS
from ..tree import flatten
from .peft_format import NEUTRAL, PREFIX, refuse_unknown
from .safetensors_file import check_names_and_shapes


def _fixed(method):
    return (method.peft_fields or {"minilora_method": method.name}) | {"task_type": "CAUSAL_LM"}


KINDS = {  # {peft_type, or our name of the method: method}
    _fixed(m).get("peft_type", m.name): m
    for m in METHODS.values()
    if m.name not in ("lora", "dora")
}


def as_json(config, base_name):
    """Return the object for adapter_config.json; `base_name` is the name or folder of the base."""
    method = METHODS[config.method]
    written = _fixed(method) | {"base_model_name_or_path": base_name, "inference_mode": True}
    if method.size:
        written[method.peft_size or method.size] = getattr(config, method.size)
    return written


def read_config(raw, base):
    """Return the MethodConfig that the object in an adapter_config.json describes.

    Raises InputError naming the field that is malformed or not implemented.
    """
    kind = raw.get("peft_type") or raw.get("minilora_method")
    method = KINDS.get(str(kind))
    if method is None:
        raise InputError(
            f"peft_type or minilora_method {kind!r} is not implemented; "
            f"LORA, {', '.join(KINDS)} are"
        )
    if method.size == "num_virtual_tokens" and raw.get("task_type") is None:
        raise InputError("task_type is missing: PEFT would compute without the virtual tokens")
    size = method.peft_size or method.size
    sizes = {method.size: raw.get(size)} if method.size else {}
    config = MethodConfig(method.name, **sizes)
    fixed = _fixed(method)
    if method.size == "num_virtual_tokens":
        layers = len(base["model"]["layers"])
        parts = 2 * layers if method.name == "prefix" else 1  # keys and values of each layer
        fixed |= {"num_layers": layers, "token_dim": shapes(config, base)[PROMPT][1] // parts}
    refuse_unknown(raw, {*NEUTRAL, *method.free_fields, size}, fixed)
    return config


def shapes(config, base):
    """Return {tensor name: shape} of the file of such an adapter on this base."""
    return _shapes(_example(config, base), config)


def _shapes(adapters, config):
    return {name: w.shape for name, w in tensors(adapters, config).items()}


def _example(config, base):
    return METHODS[config.method].init(base, config, np.random.default_rng(0))


def check_leaves(adapters, config, base):
    """Raise InputError, with the path, unless the leaves and shapes are those of the method."""
    of_method = _example(config, base)
    place = f"the adapter, as {config.method}"
    check_names_and_shapes(tensors(adapters, config), _shapes(of_method, config), place)
    # the file of a prompt or a prefix has no other leaves
    own = {*flatten(of_method), f"model.{PROMPT}"}  # of a file, P-tuning has its prompt alone
    for path in flatten(adapters):
        if path not in own:
            raise InputError(f"{path} has no place in an adapter of the method {config.method}")


def tensors(adapters, config):
    """Return {tensor name: array} for the file."""
    method = METHODS[config.method]
    packed = method.pack(adapters)
    if not method.peft_fields:
        return packed
    return {PREFIX + path if path.startswith("model.") else path: w for path, w in packed.items()}


def tree(config, read, base):
    """Return the adapter that the tensors of a file, {name: array}, describe."""
    leaves = {name.removeprefix(PREFIX): w for name, w in read.items()}
    return METHODS[config.method].unpack(leaves, base, config)

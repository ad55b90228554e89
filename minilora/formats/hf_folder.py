"""A Hugging Face folder of a Llama: which tensors it holds, in which files, and writing one.

Part 1 of `lessons/00_qlora_in_one_file.py`, made general: several files per model, other shapes,
and writing a folder.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from ..config import MLP, InputError, require
from ..kernels.weights import dense
from ..tree import flatten
from . import safetensors_file
from .files import new_folder, read_json, write_json
from .hf_config import as_json
from .safetensors_file import FORMAT_NAME, Entry

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
BIASES = {"attention_bias": "self_attn", "mlp_bias": "mlp"}  # config.json's fields: parts of layers


def shapes(config, attention_bias=False, mlp_bias=False):
    """Compute {path: shape} of every tensor of a Llama with this configuration."""
    D = config.hidden_size
    layer: dict = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
    for name, shape in config.projections().items():
        part, biased = ("mlp", mlp_bias) if name in MLP else ("self_attn", attention_bias)
        layer[f"{part}.{name}.weight"] = shape
        if biased:
            layer[f"{part}.{name}.bias"] = shape[:1]
    expected = {"model.embed_tokens.weight": (config.vocab_size, D), "model.norm.weight": (D,)}
    for i in range(config.num_hidden_layers):
        expected |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if not config.tie_word_embeddings:
        expected["lm_head.weight"] = (config.vocab_size, D)
    return expected


def biases(paths):
    """Tell which parts of the model have biases, as `shapes` and config.json name them."""
    parts = {path.split(".")[-3] for path in paths if path.endswith(".bias")}
    return {field: part in parts for field, part in BIASES.items()}


def read_tensors(folder):
    """Read {name: Entry} of model.safetensors, or of the shards that its index lists.

    Raises InputError if there is neither. Pickled weights are never opened.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return safetensors_file.read_header(single)
    if not index.is_file():
        pickled = next((path for kind in PICKLES for path in sorted(folder.glob(kind))), None)
        raise InputError(
            f"{folder} has only {pickled.name}, which is never opened because it is a pickle "
            "and could run any program; save the model as safetensors"
            if pickled
            else f"{folder} has no model.safetensors and no model.safetensors.index.json"
        )
    where = read_json(index).get("weight_map")
    sound = isinstance(where, dict) and all(
        isinstance(shard, str) and "/" not in shard and "\\" not in shard
        for shard in where.values()
    )
    require(sound, f"{index}: weight_map must map each tensor to a file of this folder")
    headers = {s: safetensors_file.read_header(folder / s) for s in sorted(set(where.values()))}
    for name, shard in where.items():
        require(name in headers[shard], f"{folder / shard} lacks tensor {name}, listed in {index}")
    return {name: headers[shard][name] for name, shard in where.items()}


def write(folder, config, base, tokenizer, dtype, quantized=lambda path, leaf: {}, **fields):
    """Write a new folder: config.json (with `fields` in it), model.safetensors, the tokenizer's.

    `quantized(path, leaf)` gives {name: Entry} for a leaf that is to be stored quantized; every
    other leaf is stored dense in `dtype`, and made dense when its turn comes. Raises InputError,
    and leaves nothing behind, if the folder exists and is not empty, or if a leaf is none of a
    Llama's, is missing, or has the wrong shape.
    """
    require(dtype in FORMAT_NAME, f"--dtype must be one of {(*FORMAT_NAME,)}, got {dtype!r}")
    leaves = {path: w for path, w in flatten(base).items() if hasattr(w, "shape")}
    config = replace(config, tie_word_embeddings="lm_head.weight" not in leaves)
    expected = shapes(config, **biases(leaves))
    for path, w in leaves.items():
        require(path in expected, f"{path} has no place in a Llama's folder: merge it first")
        require(w.shape == expected[path], f"{path} has the shape {w.shape}, not {expected[path]}")
    tensors: dict = {}
    for path, shape in expected.items():
        # Hugging Face knows biases for all projections of a part or for none: the others are zeros
        require(path in leaves or path.endswith(".bias"), f"the base lacks {path}")
        leaf = leaves.get(path)
        read = partial(np.zeros, shape, np.float32) if leaf is None else partial(dense, leaf)
        tensors |= quantized(path, leaf) or {path: Entry(FORMAT_NAME[dtype], shape, read)}
    with new_folder(folder) as temporary:
        safetensors_file.write(temporary / "model.safetensors", tensors)
        content = as_json(config, dtype, **biases(leaves)) | fields
        write_json(temporary / "config.json", content)
        if hasattr(tokenizer, "save"):
            tokenizer.save(temporary)

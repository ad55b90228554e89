"""A Hugging Face folder of a Llama: which tensors it holds, in which files, and writing one.

Part 1 of `lessons/00_qlora_in_one_file.py`, made general: several files per model, other shapes,
and writing a folder.
"""

from dataclasses import replace

import numpy as np

from ..config import MLP, InputError, require
from ..data import tokenizer
from ..kernels.weights import dense
from ..tree import flatten
from . import safetensors_file
from .files import new_folder, read_json, write_json
from .hf_config import as_json
from .safetensors_file import FORMAT_NAME, Source

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
    """Which parts of the model have biases, as `shapes` and config.json name them."""
    parts = {path.split(".")[-3] for path in paths if path.endswith(".bias")}
    return {"attention_bias": "self_attn" in parts, "mlp_bias": "mlp" in parts}


def read_tensors(folder):
    """{name: entry} of model.safetensors, or of the shards that model.safetensors.index.json lists.

    Raises InputError if there is neither. Pickled weights are never opened.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return safetensors_file.read_header(single)
    if index.is_file():
        return _sharded(folder, index)
    pickled = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    require(
        not pickled,
        f"{folder} has only {', '.join(pickled[:1])}, which is never opened because it is a pickle "
        "and could run any program; save the model as safetensors",
    )
    raise InputError(f"{folder} has no model.safetensors and no model.safetensors.index.json")


def _sharded(folder, index):
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


def read_tokenizer(folder, config):
    """The folder's own tokenizer; bytes for a base of 256 tokens that has none."""
    if config.vocab_size == 256 and not (folder / "tokenizer.json").exists():
        return tokenizer.ByteTokenizer()
    words = tokenizer.from_folder(folder, next(iter(config.eos_token_id), None))
    return fitting(folder, words, config)


def fitting(where, words, config):
    """The tokenizer, if the model at `where` has an embedding for each of its tokens."""
    require(
        words.vocab_size <= config.vocab_size,
        f"{where}: its tokenizer has {words.vocab_size} tokens, its embedding only "
        f"{config.vocab_size} rows",
    )
    return words


def dense_source(leaf, shape, dtype):
    """The leaf as dense numbers, made when their turn comes. A missing one is a bias of zeros.

    Hugging Face knows biases for all projections of a part or for none.
    """
    make = (lambda: np.zeros(shape, np.float32)) if leaf is None else (lambda: dense(leaf))
    return Source(FORMAT_NAME[dtype], shape, make)


def write(folder, config, base, tokenizer, dtype, sources, **fields):
    """Write a new folder: config.json (with `fields` in it), model.safetensors, the tokenizer's.

    `sources(path, leaf or None, shape)` gives {name: Source} for a leaf of the tree. Raises
    InputError, and leaves nothing behind, if the folder exists and is not empty, or if a leaf is
    none of a Llama's, is missing, or has the wrong shape.
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
        require(path in leaves or path.endswith(".bias"), f"the base lacks {path}")
        tensors |= sources(path, leaves.get(path), shape)
    with new_folder(folder) as temporary:
        safetensors_file.write(temporary / "model.safetensors", tensors)
        content = as_json(config, dtype, **biases(leaves)) | fields
        write_json(temporary / "config.json", content)
        if hasattr(tokenizer, "save"):
            tokenizer.save(temporary)

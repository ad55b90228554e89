"""Bases in and out: the embedded ones, Hugging Face folders, GGUF files.

A base is loaded tensor by tensor, each one checked (present, of the right shape, finite) and, under
a quantization scheme, turned into codes before the next is read: at no time does the whole dense
model exist.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import fetch, gguf_llama, gguf_tokenizer, safetensors_file, tokenizer
from .config import ATTENTION, MLP, InputError, require
from .files import new_folder, read_json, write_json
from .hf_config import as_json, read_config
from .nn import dense
from .safetensors_file import FORMAT_NAME, Source
from .tree import flatten, put

EMBEDDED = Path(__file__).parent / "bases"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened and not yet read: entries have `shape`, `where` and `read()`."""

    config: object
    tensors: dict
    tokenizer: object
    attention_bias: bool = False
    mlp_bias: bool = False


def load(name, scheme="none", block_size=64):
    """(ModelConfig, base tree, tokenizer) of a model.

    `name`: "micro" or "tiny" (embedded), "smollm2" (after `minilora fetch smollm2`), a Hugging Face
    folder, or a .gguf file. Weights are float32 (out, in), the seven projections quantized by
    `scheme` (none, int8, fp4, nf4, nf4-dq) in blocks of `block_size` weights. Raises InputError
    naming the file and the tensor or field that cannot be used.
    """
    checkpoint = open_model(os.fspath(name))
    return checkpoint.config, read_tree(checkpoint, scheme, block_size), checkpoint.tokenizer


def open_model(name):
    """The Checkpoint of that name, as `load` knows names."""
    if (EMBEDDED / name / "config.json").is_file() and Path(name).name == name:
        return open_folder(EMBEDDED / name)
    if name in fetch.MODELS:
        return open_gguf(fetch.cached(name))
    if name and Path(name).is_dir():
        return open_folder(Path(name))
    if name.endswith(".gguf"):
        return open_gguf(Path(name))
    raise InputError(
        f"there is no model {name!r}: give tiny, micro, smollm2, a Hugging Face folder "
        "or a .gguf file"
    )


def open_gguf(path):
    """The Checkpoint of a GGUF file of a Llama."""
    config, tensors, metadata = gguf_llama.read(path)
    biased = {name.split(".")[-3] for name in tensors if name.endswith(".bias")}
    return Checkpoint(
        config, tensors, _fitting(path, gguf_tokenizer.from_metadata(path, metadata), config),
        attention_bias="self_attn" in biased, mlp_bias="mlp" in biased,
    )  # fmt: skip


def open_folder(folder):
    """The Checkpoint of a Hugging Face folder of a Llama."""
    config, raw = read_config(folder)
    words = folder_tokenizer(folder, config)
    config = replace(config, eos_token_id=config.eos_token_id or (words.eos_token_id,))
    biases = (bool(raw.get("attention_bias")), bool(raw.get("mlp_bias")))
    return Checkpoint(config, folder_tensors(folder), words, *biases)


def folder_tensors(folder):
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
        isinstance(shard, str) and Path(shard).name == shard for shard in where.values()
    )
    require(sound, f"{index}: weight_map must map each tensor to a file of this folder")
    headers = {s: safetensors_file.read_header(folder / s) for s in sorted(set(where.values()))}
    for name, shard in where.items():
        require(name in headers[shard], f"{folder / shard} lacks tensor {name}, listed in {index}")
    return {name: headers[shard][name] for name, shard in where.items()}


def folder_tokenizer(folder, config):
    """The folder's own tokenizer; bytes for a base of 256 tokens that has none."""
    if config.vocab_size == 256 and not (folder / "tokenizer.json").exists():
        return tokenizer.ByteTokenizer()
    return _fitting(
        folder, tokenizer.from_folder(folder, next(iter(config.eos_token_id), None)), config
    )


def _fitting(where, words, config):
    require(
        words.vocab_size <= config.vocab_size,
        f"{where}: its tokenizer has {words.vocab_size} tokens, its embedding only "
        f"{config.vocab_size} rows",
    )
    return words


def shapes(config, attention_bias=False, mlp_bias=False):
    """{path: shape} of every tensor of a Llama with this configuration."""
    D, F, hd = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * hd, config.num_key_value_heads * hd
    projections = dict(zip(ATTENTION, ((q, D), (kv, D), (kv, D), (D, q))))
    projections |= dict(zip(MLP, ((F, D), (F, D), (D, F))))
    layer = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
    for name, shape in projections.items():
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


def read_tree(checkpoint, scheme, block_size):
    """The base tree, every tensor checked and quantized as it is read."""
    from .quantize import quantize_leaf

    tensors, base = checkpoint.tensors, {}
    last = f"model.layers.{checkpoint.config.num_hidden_layers - 1}.input_layernorm.weight"
    require(last in tensors, f"tensor {last} is missing from {_origin(tensors)}")
    expected = shapes(checkpoint.config, checkpoint.attention_bias, checkpoint.mlp_bias)
    for name, entry in tensors.items():
        require(name in expected or _needless(name), f"{entry.where} is not one of a Llama's")
    for path, shape in expected.items():
        require(path in tensors, f"tensor {path} is missing from {_origin(tensors)}")
        put(base, path, quantize_leaf(path, _checked(tensors[path], shape), scheme, block_size))
    return base


def _needless(name):
    """What old checkpoints store beside the weights: rotary frequencies, a copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _origin(tensors):
    return next((entry.where.split(": tensor")[0] for entry in tensors.values()), "the model")


def _checked(entry, shape):
    require(
        entry.shape == shape, f"{entry.where} has the shape {entry.shape}, its config says {shape}"
    )
    w = entry.read()
    require(w.dtype == "float32", f"{entry.where} holds {w.dtype}, not F32, F16 or BF16")
    require(safetensors_file.is_finite(w), f"{entry.where} has a NaN or an infinite number")
    return w


def save_pretrained(folder, config, base, tokenizer=None, dtype="float32"):
    """Write `base` as a dense Hugging Face folder that loads here and in transformers.

    Quantized leaves are dequantized one by one. `dtype`: float32, float16 or bfloat16. The folder
    appears whole or not at all. Raises InputError if it exists and is not empty, or if a leaf is
    none of a Llama's, has the wrong shape, or a number that `dtype` cannot hold.
    """
    require(dtype in FORMAT_NAME, f"--dtype must be one of {(*FORMAT_NAME,)}, got {dtype!r}")
    leaves = {path: w for path, w in flatten(base).items() if hasattr(w, "shape")}
    biased = {path.split(".")[-3] for path in leaves if path.endswith(".bias")}
    biases = {"attention_bias": "self_attn" in biased, "mlp_bias": "mlp" in biased}
    config = replace(config, tie_word_embeddings="lm_head.weight" not in leaves)
    expected = shapes(config, **biases)
    for path, w in leaves.items():
        require(path in expected, f"{path} has no place in a Llama's folder: merge it first")
        require(w.shape == expected[path], f"{path} has the shape {w.shape}, not {expected[path]}")
    with new_folder(folder) as temporary:
        sources = {p: _source(p, leaves, shape, dtype) for p, shape in expected.items()}
        safetensors_file.write(temporary / "model.safetensors", sources)
        write_json(temporary / "config.json", as_json(config, dtype, **biases))
        if hasattr(tokenizer, "save"):
            tokenizer.save(temporary)


def _source(path, leaves, shape, dtype):
    """How `path` will be written. A bias that other layers have and this one lacks is zero."""
    require(path in leaves or path.endswith(".bias"), f"the base lacks {path}")
    return Source(
        FORMAT_NAME[dtype],
        shape,
        lambda: dense(leaves[path]) if path in leaves else np.zeros(shape, np.float32),
    )

"""Bases in and out: the embedded ones, Hugging Face folders, GGUF files.

Part 7 of `lessons/00_qlora_in_one_file.py`, made general: merged and other models in folders that
transformers loads, and reading them.

A base is loaded tensor by tensor, each one checked (present, of the right shape, finite) and, under
a quantization scheme, turned into codes before the next is read: at no time does the whole dense
model exist. The embedding and the head can stay in the type of their file.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..config import InputError, ModelConfig, require
from ..kernels import nf4
from ..kernels.weights import dense
from ..quant.quantize import is_projection, quantize_leaf
from ..quant.stored import Stored
from ..tree import put
from . import fetch, gguf_llama, gguf_tokenizer, hf_folder, quantized_file
from .hf_config import read_config
from .hf_folder import shapes
from .safetensors_file import is_finite

EMBEDDED = Path(__file__).parents[1] / "data" / "bases"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened and not yet read: an entry has `shape`, `where` and `read()`."""

    config: ModelConfig
    tensors: dict  # {path: entry}
    tokenizer: object
    biases: dict


def load(name, scheme="none", block_size=64, stored=None):
    """(ModelConfig, base tree, tokenizer) of a model.

    `name`: "micro" or "tiny" (embedded), "smollm2" (after `minilora fetch smollm2`), a Hugging Face
    folder, or a .gguf file. Weights are float32 (out, in), the seven projections quantized by
    `scheme` (none, int8, fp4, nf4, nf4-dq) in blocks of `block_size` weights; a folder that is
    stored quantized stays as it is. If `stored` (default: if the base is quantized), an embedding
    and a head that their file holds in F16, BF16 or Q8_0 stay in that type (`stored.Stored`), which
    loses nothing.
    Raises InputError naming the file and the tensor or field that cannot be used.
    """
    checkpoint = open_model(os.fspath(name))
    base = read_tree(checkpoint, scheme, block_size, stored)
    return checkpoint.config, base, checkpoint.tokenizer


def open_model(name):
    """The Checkpoint of that name, as `load` knows names."""
    if Path(name).name == name and (EMBEDDED / name / "config.json").is_file():
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
    words = hf_folder.fitting(path, gguf_tokenizer.from_metadata(path, metadata), config)
    return Checkpoint(config, tensors, words, hf_folder.biases(tensors))


def open_folder(folder):
    """The Checkpoint of a Hugging Face folder of a Llama, dense or stored by bitsandbytes."""
    config, raw = read_config(folder)
    words = hf_folder.read_tokenizer(folder, config)
    config = replace(config, eos_token_id=config.eos_token_id or (words.eos_token_id,))
    tensors = hf_folder.read_tensors(folder)
    if raw.get("quantization_config"):
        tensors = quantized_file.join(folder, raw["quantization_config"], tensors)
    biases = {name: bool(raw.get(name)) for name in ("attention_bias", "mlp_bias")}
    return Checkpoint(config, tensors, words, biases)


def read_tree(checkpoint, scheme, block_size, stored=None):
    """The base tree, every tensor checked and quantized as it is read."""
    tensors = checkpoint.tensors
    base: dict = {}
    last = f"model.layers.{checkpoint.config.num_hidden_layers - 1}.input_layernorm.weight"
    require(last in tensors, f"tensor {last} is missing from {_origin(tensors)}")
    expected = shapes(checkpoint.config, **checkpoint.biases)
    if stored is None:
        stored = scheme != "none" or any(
            entry.dtype in quantized_file.TYPES for entry in tensors.values()
        )
    for name, entry in tensors.items():
        require(name in expected or _needless(name), f"{entry.where} is not one of a Llama's")
    for path, shape in expected.items():
        require(path in tensors, f"tensor {path} is missing from {_origin(tensors)}")
        entry = tensors[path]
        require(
            entry.shape == shape,
            f"{entry.where} has the shape {entry.shape}, its config says {shape}",
        )
        as_stored = stored and path in TABLES and entry.read_stored
        w = entry.read_stored() if as_stored else entry.read()
        put(base, path, _leaf(path, entry, w, scheme, block_size))
    return base


def _leaf(path, entry, w, scheme, block_size):
    if isinstance(w, Stored):
        require(w.is_finite(), f"{entry.where} has a NaN or an infinite number")
        return w
    if isinstance(w, np.ndarray):
        require(w.dtype == "float32", f"{entry.where} holds {w.dtype}, not F32, F16 or BF16")
        require(is_finite(w), f"{entry.where} has a NaN or an infinite number")
        return (
            quantize_leaf(path, w, scheme, block_size, nf4.quantize) if is_projection(path) else w
        )
    if not is_projection(path):  # an output head that somebody quantized
        return dense(w)
    stored = quantized_file.scheme(w)
    require(
        scheme == "none" or stored in ((scheme, block_size), (scheme, None)),
        f"{entry.where} is stored in {stored[0]}{f', blocks of {stored[1]}' if stored[1] else ''}: "
        "give --quantize none to take it as it is",
    )
    return w


def _needless(name):
    """What old checkpoints store beside the weights: rotary frequencies, a copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _origin(tensors):
    return next((entry.where.split(": tensor")[0] for entry in tensors.values()), "the model")


def save_pretrained(folder, config, base, tokenizer=None, dtype="float32"):
    """Write `base` as a dense Hugging Face folder that loads here and in transformers.

    Quantized leaves are dequantized one by one. `dtype`: float32, float16 or bfloat16. The folder
    appears whole or not at all. Raises InputError if it exists and is not empty, or if a leaf is
    none of a Llama's, has the wrong shape, or a number that `dtype` cannot hold.
    """

    def sources(path, leaf, shape):
        return {path: hf_folder.dense_source(leaf, shape, dtype)}

    hf_folder.write(folder, config, base, tokenizer, dtype, sources)

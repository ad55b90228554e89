"""Bases in and out: the embedded ones, Hugging Face folders, GGUF files.

Part 7 of `lessons/00_qlora_in_one_file.py`, made general: merged and other models in folders that
transformers loads, and reading them.

A base is loaded tensor by tensor, each one checked (present, of the right shape, finite) and, under
a quantization scheme, turned into codes before the next is read: at no time does the whole dense
model exist. The embedding and the head can stay in the type of their file.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import ModelConfig, require
from ..data.tokenizer import ByteTokenizer
from ..kernels import dense, quantize_4bit
from ..quant.low_precision import LowPrecision
from ..quant.schemes import is_projection, quantize_leaf
from ..tree import set_leaf
from . import fetch, gguf_llama, gguf_tokenizer, hf_folder, hf_tokenizer, quantized_file
from .hf_folder import read_config, shapes
from .safetensors_file import check_floats

EMBEDDED = Path(__file__).parents[1] / "data" / "bases"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


class Pretrained(NamedTuple):
    """A model as `load` returns it."""

    model_config: ModelConfig
    base: dict
    tokenizer: Any


def load(name, scheme="none", block_size=64, low_precision=None):
    """Load a model: Pretrained(model_config, base, tokenizer).

    `name`: "micro" or "tiny" (embedded), "smollm2" (after `minilora fetch smollm2`), a Hugging Face
    folder, or a .gguf file. Weights are float32 (out, in), the seven projections quantized by
    `scheme` (none, int8, fp4, nf4, nf4-dq) in blocks of `block_size` weights; a folder that is
    stored quantized stays as it is. If `low_precision` (default: if the base is quantized), an
    embedding and a head that their file holds in F16, BF16 or Q8_0 stay in that type, as a
    `LowPrecision` matrix, which loses nothing. Raises InputError naming the file and the tensor or
    field that cannot be used.
    """
    place = _place(os.fspath(name))
    if place.is_dir():
        config, tensors, tokenizer, biases = _folder(place)
    else:
        config, tensors, metadata = gguf_llama.read(place)
        tokenizer, biases = gguf_tokenizer.from_metadata(place, metadata), hf_folder.biases(tensors)
    # the largest id may be one that the tokenizer puts before every text
    n, rows = max([tokenizer.vocab_size, *(i + 1 for i in tokenizer.encode(""))]), config.vocab_size
    require(n <= rows, f"{place}: its tokenizer has {n} tokens, its embedding only {rows} rows")
    for i in config.eos_token_id:
        require(i < rows, f"{place}: eos_token_id {i} is outside its vocabulary of {rows} tokens")
    if low_precision is None:
        types = {entry.dtype for entry in tensors.values()}
        low_precision = scheme != "none" or not types.isdisjoint(quantized_file.TYPES)
    origin = next((entry.where.split(": tensor")[0] for entry in tensors.values()), place)
    n = config.num_hidden_layers
    last = f"model.layers.{n - 1}.input_layernorm.weight"
    require(last in tensors, f"tensor {last} is missing from {origin}")
    there = len(tensors)
    require(n <= there, f"num_hidden_layers is {n}, but {origin} has {there} tensors")
    base: dict = {}
    expected = shapes(config, **biases)
    for path, entry in tensors.items():
        # what old folders hold beside the weights: rotary frequencies, a copy of a tied head
        needless = path.endswith("rotary_emb.inv_freq") or path == "lm_head.weight"
        require(path in expected or needless, f"{entry.where} is not one of a Llama's")
    for path, shape in expected.items():
        require(path in tensors, f"tensor {path} is missing from {origin}")
        entry = tensors[path]
        same = entry.shape == shape
        require(same, f"{entry.where} has the shape {entry.shape}, its config says {shape}")
        keep_low_precision = low_precision and path in TABLES and entry.read_low_precision
        w = entry.read_low_precision() if keep_low_precision else entry.read()
        set_leaf(base, path, _leaf(path, entry.where, w, scheme, block_size))
    return Pretrained(config, base, tokenizer)


def _place(name):
    """Find the folder or file of that name."""
    if Path(name).name == name and (EMBEDDED / name / "config.json").is_file():
        return EMBEDDED / name
    if name in fetch.MODELS:
        return fetch.cached(name)
    known = "tiny, micro, smollm2, a Hugging Face folder or a .gguf file"
    there = (name and Path(name).is_dir()) or name.endswith(".gguf")
    require(there, f"there is no model {name!r}: give {known}")
    return Path(name)


def _folder(folder):
    """Open a folder: (ModelConfig, {path: Entry}, tokenizer, which parts have biases)."""
    config, raw = read_config(folder)
    if config.vocab_size == 256 and not (folder / "tokenizer.json").exists():
        tokenizer = ByteTokenizer()
    else:
        tokenizer = hf_tokenizer.from_folder(folder, next(iter(config.eos_token_id), None))
    config = replace(config, eos_token_id=config.eos_token_id or (tokenizer.eos_token_id,))
    tensors = hf_folder.read_tensors(folder)
    if raw.get("quantization_config"):
        tensors = quantized_file.join(folder, raw["quantization_config"], tensors)
    return config, tensors, tokenizer, {part: bool(raw.get(part)) for part in hf_folder.BIASES}


def _leaf(path, where, w, scheme, block_size):
    """Check a tensor that was read and make it a leaf of the base."""
    if isinstance(w, LowPrecision):
        require(w.is_finite(), f"{where} has a NaN or an infinite number")
        return w
    if isinstance(w, np.ndarray):
        check_floats(where, w)
        quantized = is_projection(path)
        return quantize_leaf(path, w, scheme, block_size, quantize_4bit) if quantized else w
    if not is_projection(path):  # an output head that somebody quantized
        return dense(w)
    name, size = quantized_file.scheme(w)
    kind = f"{name}, blocks of {size}" if size else name
    same = scheme == "none" or (name == scheme and size in (block_size, None))
    require(same, f"{where} is stored in {kind}: give --quantize none to take it as it is")
    return w


def save_pretrained(folder, config, base, tokenizer=None, dtype="float32"):
    """Write `base` as a dense Hugging Face folder that loads here and in transformers.

    Quantized leaves are dequantized one by one. `dtype`: float32, float16 or bfloat16. The folder
    appears whole or not at all. Raises InputError if it exists and is not empty, or if a leaf is
    none of a Llama's, has the wrong shape, or a number that `dtype` cannot hold.
    """
    hf_folder.write(folder, config, base, tokenizer, dtype)

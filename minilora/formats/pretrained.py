"""Load models by name (built-in, Hugging Face, GGUF), and save folders that transformers loads.

This generalizes part 7 of `lessons/00_qlora_in_one_file.py`.

A model is loaded tensor by tensor. Each tensor is checked (present, right shape, finite) and
quantized before the next one is read, so the whole dense model never exists in memory. The
embedding and the head can stay in the type of their file.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import kernels
from ..config import InputError
from ..data.tokenizer import ByteTokenizer
from ..methods import initializers
from ..model import Model, Source
from ..quant.low_precision import LowPrecision
from ..quant.schemes import (
    check_block_size,
    is_projection,
    is_rounded,
    leaf_in,
    quantize_leaf,
    storage,
    storage_of,
)
from ..tree import set_leaf
from . import fetch, gguf_llama, gguf_tokenizer, hf_folder, hf_tokenizer, quantized_file
from .families import FAMILIES
from .files import digest, read_json
from .hf_folder import read_config, shapes, with_bias
from .safetensors_file import check_floats, check_names_and_shapes

EMBEDDED = ("tiny", "micro")
NAMES = (*EMBEDDED, *fetch.MODELS)  # of the models in the package, and of those to fetch
TOKENIZERS = (  # files of a tokenizer other than that of bytes
    *hf_tokenizer.FILES, "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt", "tekken.json"
)  # fmt: skip
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


class Pretrained(NamedTuple):
    """A loaded model and its tokenizer."""

    model: Model
    tokenizer: Any


def load(
    name: str | os.PathLike[str],
    scheme: str = "none",
    block_size: int | None = None,
    low_precision: bool | None = None,
    compute_dtype: str = "float32",
) -> Pretrained:
    """Load a model; return Pretrained(model, tokenizer).

    `name` is "micro" or "tiny" (built in), "smollm2" (after `minilora fetch smollm2`), a Hugging
    Face folder, or a .gguf file. Weights are float32 (out, in). The projections are quantized by
    `scheme` (none, int8, fp4, nf4, nf4-dq), to 4 bits in blocks of `block_size` weights (default:
    64); a folder that is stored quantized is not changed, nor are the projections that it stores
    dense. If `low_precision` (default: if the base is quantized), an embedding and a head stored in
    F16, BF16 or Q8_0 stay in that type, as an exact `LowPrecision`. compute_dtype: see
    `with_compute_dtype`; warns if bfloat16 rounds a dense weight. Raises InputError naming the file
    and the tensor or field that cannot be used.
    """
    check_block_size(scheme, block_size)
    place = _place(name)
    read = _folder if place.is_dir() else _gguf
    config, tensors, tokenizer, biased = read(place)
    check_vocabulary(place, config, tokenizer)
    tokenizer = replace(tokenizer, eos_token_ids=config.eos_token_id)
    stored_quantized = quantized_file.is_quantized(tensors)
    if low_precision is None:
        low_precision = scheme != "none" or stored_quantized
    expected = shapes(config, FAMILIES[config.model_type].biased(biased))
    # old folders also contain rotary frequencies, or a copy of a tied head
    needless = ("rotary_emb.inv_freq", "lm_head.weight")
    used = {p: e for p, e in tensors.items() if p in expected or not p.endswith(needless)}
    check_names_and_shapes(used, expected, place)
    base: dict = {}
    rounded = False
    for path in expected:
        entry = tensors[path]
        keep = low_precision and path in TABLES and entry.read_low_precision
        w = entry.read_low_precision() if keep else entry.read()
        stays_dense = stored_quantized and entry.dtype not in quantized_file.TYPES
        leaf = _leaf(path, entry.where, w, "none" if stays_dense else scheme, block_size)
        stored = leaf_in(leaf, compute_dtype)
        rounded |= is_rounded(leaf, stored)
        set_leaf(base, path, stored)
    if rounded:
        warnings.warn(f"the dense weights of {name} are rounded to {compute_dtype}", stacklevel=2)
    name = os.fspath(name)
    if name in NAMES and os.path.exists(name):
        what = f"{name} is the model of this name: write ./{name} for that of this folder"
        warnings.warn(what, stacklevel=2)
    known = name if name in NAMES else os.path.abspath(name)
    stored, block = storage(base)
    source = Source(known, stored, block, digest(files(place)), compute_dtype)
    return Pretrained(Model(config, base, kernels.ops, source), tokenizer)


def check_vocabulary(place, config, tokenizer):
    """Raise InputError if a token of the tokenizer or of the config has no row in the embedding."""
    # the largest id may be that of a token that the tokenizer adds to every text
    last = max([tokenizer.vocab_size - 1, *tokenizer.encode(""), *config.eos_token_id])
    if last >= config.vocab_size:
        raise InputError(
            f"{place}: the tokenizer or eos_token_id has the token {last}, "
            f"but the embedding has {config.vocab_size} rows"
        )


def files(place):
    """Return the files that `load` reads of the folder or file `place`."""
    return hf_folder.files(place) if place.is_dir() else [place]


def _place(name):
    """Return the folder or file of a model's name."""
    name = os.fspath(name)
    if name in EMBEDDED:
        return Path(__file__).parents[1] / "data" / "bases" / name
    if name in fetch.MODELS:
        return fetch.cached(name)
    path = Path(name)
    if not name or not (path.is_dir() or name.endswith(".gguf")):
        raise InputError(
            f"there is no model {name!r}: "
            f"give {', '.join(NAMES)}, a Hugging Face folder or a .gguf file"
        )
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise InputError(f"{name} is the folder of an adapter: give it to --adapter-path")
    return path


def _folder(folder):
    """Return (ModelConfig, {path: Entry}, tokenizer, projections with a bias) of a folder."""
    config, biased = read_config(folder)
    if (folder / "adapter_config.json").exists():
        text = f"{folder} also has an adapter, which is not loaded with the base: load it, too"
        warnings.warn(text, stacklevel=3)
    if config.vocab_size == 256 and not any((folder / name).exists() for name in TOKENIZERS):
        tokenizer = ByteTokenizer()
    else:
        eos = next(iter(config.eos_token_id), None)
        tokenizer = hf_tokenizer.from_folder(folder, eos, config.model_type)
    # training ends a row with the tokenizer's token, which the config may not name
    ends = dict.fromkeys((*config.eos_token_id, tokenizer.eos_token_id))
    config = replace(config, eos_token_id=tuple(ends))
    tensors = quantized_file.join(hf_folder.read_tensors(folder))
    says_quantized = read_json(folder / "config.json").get("quantization_config")
    if says_quantized and not quantized_file.is_quantized(tensors):
        what = f"{folder}: config.json has a quantization_config, but no weight is quantized"
        raise InputError(f"{what}: delete this field if the weights are those of the dense model")
    tensors = FAMILIES[config.model_type].split(config, tensors)
    if config.tie_word_embeddings and has_other_head(tensors):
        config = replace(config, tie_word_embeddings=False)
    return config, tensors, tokenizer, biased


def has_other_head(tensors):
    """Return whether {path: Entry} has a head that differs from the embedding.

    A file may have a copy of a tied head. transformers does not tie a head that differs, either.
    """
    if not tensors.keys() >= set(TABLES):
        return False
    embedding, head = (kernels.ops.dense(tensors[path].read()) for path in TABLES)
    return not np.array_equal(embedding, head)


def _gguf(path):
    """Return the same of a GGUF file."""
    config, tensors, metadata = gguf_llama.read(path)
    return config, tensors, gguf_tokenizer.from_metadata(path, metadata), with_bias(tensors)


def _leaf(path, where, w, scheme, block_size):
    """Return a tensor as a leaf of the base, checked and quantized."""
    if isinstance(w, LowPrecision):
        if not w.is_finite():
            raise InputError(f"{where} has a NaN or an infinite number")
        return w
    if isinstance(w, np.ndarray):
        check_floats(where, w)
        return quantize_leaf(path, w, scheme, block_size) if is_projection(path) else w
    if not is_projection(path):  # a quantized output head
        return kernels.ops.dense(w)
    stored = storage_of(w)
    if scheme != "none" and stored not in ((scheme, block_size or 64), (scheme, None)):
        kind = f"{stored[0]}, blocks of {stored[1]}" if stored[1] else stored[0]
        raise InputError(f"{where} is stored in {kind}: give --quantize none to keep that")
    return w


def save_pretrained(
    folder: str | os.PathLike[str], model: Model, tokenizer: Any = None, dtype: str = "float32"
) -> None:
    """Write a model as a dense Hugging Face folder, which minilora and transformers load.

    Quantized leaves are dequantized one by one. `dtype` is float32, float16 or bfloat16. Raises
    InputError and writes nothing if the folder exists and is not empty, or if a leaf is not part of
    such a model, has the wrong shape, or has a number that `dtype` cannot hold, or if the frozen
    weights are those that PiSSA or LoftQ left for their adapter.
    """
    initializers.check_whole(model)
    hf_folder.write(folder, model, tokenizer, dtype)

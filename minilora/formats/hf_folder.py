"""Read and write a Hugging Face folder of a model: config.json and the files of the tensors.

This generalizes part 1 of `lessons/00_qlora_in_one_file.py`: several files per model, other shapes.

Some fields of config.json have moved: transformers 4 has `rope_theta` and `rope_scaling`,
transformers 5 has both inside `rope_parameters`; `rope_type` was once `type`. A field that would
change the computation and is not implemented raises an error that names it.

The model types differ from Llama in what their file in `families` says.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..config import ALL_LINEAR, ATTENTION, MLP, QK_NORMS, InputError, ModelConfig
from ..data.tokenizer import PretrainedTokenizer
from ..kernels import dense
from ..tree import flatten
from . import hf_tokenizer, safetensors_file
from .families import FAMILIES
from .fields import boolean, ids, positive, rope, size
from .files import errors_in, new_folder, pickle_refusal, read_json, write_json
from .safetensors_file import FORMAT_NAME, Entry

CONFIGS = ("config.json", "generation_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # of the weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
BIASES = {"attention_bias": ATTENTION, "mlp_bias": MLP}  # field of config.json: projections
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
OTHERS = (
    "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


def read_config(folder):
    """Read (ModelConfig, the JSON object) of folder/config.json.

    Raises InputError naming the file and the field that is missing, malformed or not implemented.
    """
    path, other = (Path(folder) / name for name in CONFIGS)
    raw, generation = read_json(path), read_json(other, {})
    with errors_in(path):
        kind = raw.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise InputError(f"model_type {kind!r} is not implemented; {known} are")
        family = FAMILIES[kind]
        raw = family.defaults | raw
        implemented = family.fields.get("hidden_act", "silu")
        act = raw.get("hidden_act") or raw.get("hidden_activation") or implemented
        if act != implemented:
            raise InputError(f"hidden_act {act!r} is not implemented; only {implemented} is")
        heads = size(raw, "num_attention_heads")
        width = size(raw, "hidden_size")
        defaults = {"num_key_value_heads": heads, "head_dim": width // heads}
        fields = {name: size(raw, name, defaults.get(name)) for name in SIZES} | family.fields
        fields |= {
            "rms_norm_eps": float(positive(raw, "rms_norm_eps", 1e-6)),
            "tie_word_embeddings": boolean(raw, "tie_word_embeddings"),
            "max_position_embeddings": size(raw, "max_position_embeddings", 2048),
            "eos_token_id": ids(raw | generation, "eos_token_id"),
            "bos_token_id": next(iter(ids(raw, "bos_token_id")), None),
            "generation_config": generation or None, "model_type": kind,
        }  # fmt: skip
        for name in BIASES:
            boolean(raw, name)
        own = family.read(raw)
        if "rope_theta" not in own:
            own["rope_theta"], own["rope_scaling"] = rope(raw)
        return ModelConfig(**fields, **own), raw


def as_json(config, dtype, biased):
    """Return the object for config.json, with field names that transformers 4 and 5 both read."""
    family = FAMILIES[config.model_type]
    eos = list(config.eos_token_id)
    flags = {name: names[0] in biased for name, names in BIASES.items() if names in family.biases}
    return {
        "architectures": [family.architecture], "model_type": config.model_type,
        **{name: getattr(config, name) for name in SIZES}, "hidden_act": config.hidden_act,
        **{name: getattr(config, name) for name in OTHERS}, **flags, **family.write(config),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None, "torch_dtype": dtype,
    }  # fmt: skip


def projection_shapes(config):
    """Return {name: (out, in)} of a layer's seven projections."""
    D, F, hd = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * hd, config.num_key_value_heads * hd
    return dict(zip(ALL_LINEAR, ((q, D), (kv, D), (kv, D), (D, q), (F, D), (F, D), (D, F))))


def shapes(config, biased=()):
    """Return {path: shape} of every tensor; biased: the projections that have a bias."""
    D = config.hidden_size
    layer: dict = {f"{name}.weight": (D,) for name in config.norms if name}
    if config.qk_norm:
        layer |= {f"self_attn.{name}.weight": (config.head_dim,) for name in QK_NORMS}
    for name, shape in projection_shapes(config).items():
        part = "mlp" if name in MLP else "self_attn"
        layer[f"{part}.{name}.weight"] = shape
        if name in biased:
            layer[f"{part}.{name}.bias"] = shape[:1]
    expected = {"model.embed_tokens.weight": (config.vocab_size, D), "model.norm.weight": (D,)}
    for i in range(config.num_hidden_layers):
        expected |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if not config.tie_word_embeddings:
        expected["lm_head.weight"] = (config.vocab_size, D)
    return expected


def with_bias(paths):
    """Return the names of the projections that have a bias at one of the paths."""
    return {path.split(".")[-2] for path in paths if path.endswith(".bias")}


def model_type(config, paths):
    """Return the first model type, from `config.model_type` on, that can have these leaves."""
    some = with_bias(paths)
    for kind in (config.model_type, *FAMILIES):
        if FAMILIES[kind].fits(config, some):
            return kind
    every = f"biases of {', '.join(sorted(some))}, as this {config.model_type} model has"
    raise InputError(f"no model_type of config.json has {every}: train without --also-train bias")


def files(folder):
    """Return the files that `load` reads in a folder: config, tokenizer and weights."""
    index = folder / INDEX
    weights = [folder / WEIGHTS]
    if not weights[0].is_file() and index.is_file():
        weights = [index, *(folder / name for name in set(read_index(index).values()))]
    others = [folder / name for name in (*CONFIGS, *hf_tokenizer.FILES)]
    return sorted(path for path in (*others, *weights) if path.is_file())


def read_index(path):
    """Read {tensor: name of its file} of the index of a model in several files."""
    where = read_json(path).get("weight_map")
    names = where.values() if isinstance(where, dict) else [None]
    if not all(isinstance(s, str) and "/" not in s and "\\" not in s for s in names):
        raise InputError(f"{path}: weight_map must map each tensor to a file of this folder")
    return where


def read_tensors(folder):
    """Read {name: Entry} of model.safetensors or the shards of its index; never open a pickle."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return safetensors_file.read_header(single)
    if not index.is_file():
        pickled = next((path for kind in PICKLES for path in sorted(folder.glob(kind))), None)
        none = f"{folder} has no {WEIGHTS} and no {INDEX}"
        raise InputError(pickle_refusal(pickled) if pickled else none)
    where = read_index(index)
    headers = {s: safetensors_file.read_header(folder / s) for s in sorted(set(where.values()))}
    for name, shard in where.items():
        if name not in headers[shard]:
            raise InputError(f"{folder / shard} lacks tensor {name}, listed in {index}")
    return {name: headers[shard][name] for name, shard in where.items()}


def write(folder, config, base, tokenizer, dtype, quantized=lambda path, leaf: {}, **fields):
    """Write a new folder with config.json (and `fields` in it), the tensors and the tokenizer.

    generation_config.json is written as it was read. `quantized(path, leaf)` returns {name: Entry}
    for a leaf that is stored quantized, else {}. The other leaves are stored in `dtype` and
    dequantized one by one. Raises InputError and writes nothing if the folder exists and is not
    empty, or if a leaf is missing, is not part of a model of this type, or has the wrong shape.
    """
    if dtype not in FORMAT_NAME:
        raise InputError(f"`dtype` must be one of {(*FORMAT_NAME,)}, got {dtype!r}")
    leaves = {path: w for path, w in flatten(base).items() if hasattr(w, "shape")}
    kind = model_type(config, leaves)
    tied = "lm_head.weight" not in leaves
    config = replace(config, model_type=kind, tie_word_embeddings=tied)
    own = FAMILIES[kind].biased(with_bias(leaves))
    expected = shapes(config, own)
    for path, w in leaves.items():
        if path not in expected:
            raise InputError(f"{path} is not part of a {kind}: merge the adapter first")
        if w.shape != expected[path]:
            raise InputError(f"{path} has the shape {w.shape}, not {expected[path]}")
    tensors: dict = {}
    for path, shape in expected.items():
        # in Hugging Face's format all projections of a group have biases or none has: add zeros
        if path not in leaves and not path.endswith(".bias"):
            raise InputError(f"the base lacks {path}")
        leaf = leaves.get(path)
        read = partial(np.zeros, shape, np.float32) if leaf is None else partial(dense, leaf)
        tensors |= quantized(path, leaf) or {path: Entry(FORMAT_NAME[dtype], shape, read)}
    with new_folder(folder) as temporary:
        safetensors_file.write(temporary / WEIGHTS, tensors)
        write_json(temporary / "config.json", as_json(config, dtype, own) | fields)
        if config.generation_config:
            write_json(temporary / "generation_config.json", config.generation_config)
        if isinstance(tokenizer, PretrainedTokenizer):
            hf_tokenizer.save(tokenizer, temporary)

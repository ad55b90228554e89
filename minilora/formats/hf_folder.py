"""Read and write a Hugging Face folder of a model: config.json and the files of the tensors.

This generalizes part 1 of `lessons/00_qlora_in_one_file.py`: several files per model, other shapes.

Some fields of config.json have moved: transformers 4 has `rope_theta` and `rope_scaling`,
transformers 5 has both inside `rope_parameters`; `rope_type` was once `type`. A field that would
change the computation and is not implemented raises an error that names it.

The model types differ from Llama in what their file in `families` says.
"""

import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from .. import kernels
from ..config import ALL_LINEAR, ATTENTION, BOOLEAN, MLP, QK_NORMS, InputError, ModelConfig, Rule
from ..data.tokenizer import PretrainedTokenizer
from ..methods.method import SIZE
from ..tree import arrays, flatten, without
from . import hf_tokenizer, safetensors_file
from .families import FAMILIES
from .fields import POSITIVE_FLOAT32, ids, mapping, number, rope, size
from .files import errors_in, new_folder, read_json, warn_of_unread, write_json
from .safetensors_file import Entry, check_names_and_shapes, format_name

CONFIGS = ("config.json", "generation_config.json")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# field of config.json: [settings, {setting: SHA-256 of its files}] of each run of `minilora train`
# that the weights come from; {} of training whose rows are unknown
RUNS = "_minilora_runs"
BIASES = {"attention_bias": ATTENTION, "mlp_bias": MLP}  # field of config.json: projections
CAUSAL = Rule("be true", lambda value: value is True)
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
OTHERS = (
    "model_type", "rms_norm_eps", "rope_theta", "rope_scaling",
    "max_position_embeddings", "tie_word_embeddings", "bos_token_id",
)  # fmt: skip
# read next to what `as_json` writes
ALSO_READ = (
    "rope_parameters", "partial_rotary_factor", "quantization_config", "is_causal", "dtype",
)  # fmt: skip
# what transformers takes for a missing field of a Llama; a Family has those that differ
DEFAULTS = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
# without effect on what a model computes here, as *_token_id, output_*, and names that begin with _
NEUTRAL = (
    "architectures", "cache_implementation", "chunk_size_feed_forward", "id2label",
    "initializer_range", "is_llama_config", "label2id", "max_length",
    "pretraining_tp", "problem_type", "return_dict", "torch_dtype", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
)  # fmt: skip


def read_config(folder):
    """Read (ModelConfig, biased projections) of the two config files of a folder.

    Raises InputError naming the file and the field that is missing, malformed or not implemented.
    Warns of fields that are not read and not known to be without effect.
    """
    path = folder / CONFIGS[0]
    raw = read_json(path)
    generation = read_json(folder / CONFIGS[1], {})
    with errors_in(path.with_name(CONFIGS[1])):
        ends = {
            name: generation[name]
            for name in ("bos_token_id", "eos_token_id")
            if ids(generation, name)
        }
    with errors_in(path):
        config = model_config(raw | ends)
        biased = {name for field in BIASES if raw.get(field) for name in BIASES[field]}
        method = mapping(raw, "quantization_config").get("quant_method", "bitsandbytes")
        if method != "bitsandbytes":
            raise InputError(f"quant_method {method!r} is not supported; only bitsandbytes is")
    known = {*as_json(config, "", ()), *FAMILIES[config.model_type].defaults, *ALSO_READ}
    others = without(raw, *known)
    advice = "If the model needs a field of these, use transformers"
    warn_of_unread(path, unread_fields(others), advice)
    return replace(config, generation_config=generation or None, other_fields=others), biased


def unread_fields(others):
    """Return the names of the fields of config.json that may have an effect and are not read."""
    return [
        name
        for name, value in others.items()
        if value
        and name not in NEUTRAL
        and not name.startswith(("_", "output_"))
        and not name.endswith("_token_id")
    ]


def model_config(raw):
    """Return the ModelConfig of an object with the fields of config.json."""
    kind = raw.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise InputError(f"model_type {kind!r} is not implemented; {', '.join(FAMILIES)} are")
    raw = DEFAULTS | family.defaults | raw
    implemented = family.fields.get("hidden_act", "silu")
    act = raw.get(family.activation, implemented)
    if act != implemented:
        raise InputError(f"{family.activation} {act!r} is not implemented; only {implemented} is")
    number(raw, "num_hidden_layers", SIZE)
    number(raw, "is_causal", CAUSAL, True)
    for name in (*BIASES, "use_sliding_window"):
        number(raw, name, BOOLEAN, False)
    heads = size(raw, "num_attention_heads")
    defaults = {"num_key_value_heads": heads, "head_dim": size(raw, "hidden_size") // heads}
    for name, default in defaults.items():
        if raw.get(name) is None:  # of all numbers, transformers allows null only for these two
            raw[name] = default
    fields = {name: size(raw, name) for name in SIZES} | family.fields
    both = mapping(raw, "rope_parameters"), mapping(raw, "rope_scaling")
    if all(both) and both[0] != both[1]:  # transformers 5 would use the second
        raise InputError("rope_scaling next to rope_parameters is not read: write it into them")
    fields |= {
        "rms_norm_eps": number(raw, "rms_norm_eps", POSITIVE_FLOAT32, 1e-6),
        "tie_word_embeddings": number(raw, "tie_word_embeddings", BOOLEAN, False),
        "max_position_embeddings": size(raw, "max_position_embeddings"),
        "eos_token_id": ids(raw, "eos_token_id"),
        "bos_token_id": next(iter(ids(raw, "bos_token_id")), None), "model_type": kind,
    } | family.read(raw)  # fmt: skip
    if "rope_theta" not in fields:
        fields["rope_theta"], fields["rope_scaling"] = rope(raw)
    return ModelConfig(**fields)


def as_json(config, dtype, biased):
    """Return the object for config.json, with field names that transformers 4 and 5 both read."""
    family = FAMILIES[config.model_type]
    flags = {name: names[0] in biased for name, names in BIASES.items() if names in family.biases}
    copied = {name: getattr(config, name) for name in (*SIZES, *OTHERS)}
    return copied | flags | family.write(config) | {
        family.activation: config.hidden_act, "eos_token_id": config.eos_token_id or None,
        "architectures": [family.architecture], "torch_dtype": dtype,
    }  # fmt: skip


def projection_shapes(config):
    """Return {name: (out, in)} of a layer's seven projections."""
    D = config.hidden_size
    F = config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return dict(zip(ALL_LINEAR, ((q, D), (kv, D), (kv, D), (D, q), (F, D), (F, D), (D, F))))


def shapes(config, biased=()):
    """Return {path: shape} of every tensor; biased: the projections that have a bias."""
    D = config.hidden_size
    layer = {f"{name}.weight": (D,) for name in config.norms if name}
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


def family_with(config, some):
    """Return the first Family, from that of the model on, that holds config and `some` biases."""
    own = FAMILIES[config.model_type]
    for family in (own, *FAMILIES.values()):
        biased = family.biased(some)
        if some <= biased and can_hold(family, config, biased):
            return family
    what = f"biases of {', '.join(sorted(some))}" if some else "such settings"
    way = "train without --also-train bias or --method bitfit" if some else "save the adapter alone"
    raise InputError(
        f"no model_type of config.json has {what}, as this {config.model_type} model has: {way}"
    )


def can_hold(family, config, biased):
    """Return whether a config.json of `family` holds all settings of `config`."""
    config = replace(config, model_type=family.model_type, generation_config=None, other_fields={})
    text = json.dumps(as_json(config, "float32", biased))
    try:
        return per_layer(model_config(json.loads(text))) == per_layer(config)
    except InputError:  # a setting that this family does not have
        return False


def per_layer(config):
    """Return the settings of each layer."""
    kinds = config.layer_types or ("",) * config.num_hidden_layers
    return [replace(config.of_layers(kind), layer_types=None) for kind in kinds]


def weight_files(folder):
    """Return the files of the tensors: model.safetensors, or the index and its shards."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    raw = read_json(index)
    with errors_in(index):
        names = set(raw["weight_map"].values())
        if any(Path(name).name != name for name in names):
            raise InputError("weight_map must map each tensor to a file of this folder")
    return [index, *(folder / name for name in sorted(names))]


def warn_of_tokenizer(folder, family):
    """Warn that transformers may read the tokenizer of a changed model_type as another one."""
    text = (
        f"{folder} is written as {family.model_type}, which has all its settings; by this type, "
        "AutoTokenizer may choose a class with other tokens: use "
        "transformers.PreTrainedTokenizerFast.from_pretrained"
    )
    warnings.warn(text, stacklevel=4)


def files(folder):
    """Return the files that `load` reads in a folder: config, tokenizer and weights."""
    paths = [folder / name for name in (*CONFIGS, *hf_tokenizer.FILES)] + weight_files(folder)
    return sorted(filter(Path.is_file, paths))


def read_tensors(folder):
    """Read {name: Entry} of the files of the tensors."""
    paths = weight_files(folder)
    if not paths[0].is_file():
        raise InputError(f"{paths[0]} is missing: save the weights as safetensors, no pickle")
    tensors: dict = {}
    for path in paths:
        if path.name != INDEX:
            tensors |= safetensors_file.read_header(path)
    return tensors


def write(folder, model, tokenizer, dtype, quantized=lambda *_: {}, **fields):
    """Write a new folder with config.json (and `fields` in it), the tensors and the tokenizer.

    generation_config.json is written as it was read, with the end tokens of the model, which
    include that of the tokenizer. `quantized(path, leaf, dtype)` returns {name: Entry} for a leaf
    that is stored quantized, else {}. The other leaves are stored in `dtype` and dequantized one by
    one. Raises InputError and writes nothing if the folder exists and is not
    empty, or if a leaf is missing, is not part of a model of this type, or has the wrong shape.
    """
    stored_type = format_name(dtype)
    leaves = flatten(arrays(model.base))
    some = with_bias(leaves)
    family = family_with(model.config, some)
    biased = family.biased(some)
    tied = "lm_head.weight" not in leaves
    config = replace(model.config, model_type=family.model_type, tie_word_embeddings=tied)
    expected = shapes(config, biased)
    # in Hugging Face's format all projections of a group have biases or none has: add zeros
    zeros = {p: np.zeros(n, np.float32) for p, n in expected.items() if p.endswith(".bias")}
    leaves = zeros | leaves
    check_names_and_shapes(leaves, expected, f"the base, as a {family.model_type}")
    tensors: dict = {}
    for path, leaf in leaves.items():
        own = quantized(path, leaf, dtype)
        tensors |= own or {path: Entry(stored_type, leaf.shape, partial(kernels.ops.dense, leaf))}
    tensors = family.join(config, tensors)
    others = config.other_fields
    if others.get(RUNS) and not model.source.name:  # an adapter was merged
        others = others | {RUNS: [*others[RUNS], ({}, {})]}
    with new_folder(folder) as temporary:
        safetensors_file.write(temporary / WEIGHTS, tensors)
        written = others | as_json(config, dtype, biased) | fields
        write_json(temporary / "config.json", written)
        generation = config.generation_config
        if generation:
            if {*ids(generation, "eos_token_id")} != {*config.eos_token_id}:
                generation = generation | {"eos_token_id": [*config.eos_token_id]}
            write_json(temporary / CONFIGS[1], generation)
        if isinstance(tokenizer, PretrainedTokenizer):
            hf_tokenizer.save(tokenizer, temporary)
            if family.model_type != model.config.model_type:
                warn_of_tokenizer(folder, family)

"""Folders and GGUF files against transformers and the gguf library: tensors and logits."""

import json
import math
import re
import shutil
import warnings
from dataclasses import replace

import gguf
import numpy as np
import pytest
import toy_models
from comparisons import forward, relative
from peft_models import llama_of, their_logits, torch, transformers
from test_families import GEMMA, MODELS
from toy_models import CONFIG, GGUF_CONFIG, gguf_metadata, leaves

from minilora import layers
from minilora.config import InputError
from minilora.formats.gguf_file import read_header
from minilora.formats.hf_folder import NEUTRAL
from minilora.formats.peft_format import EMBEDDING
from minilora.formats.pretrained import load, save_pretrained
from minilora.tree import flatten

RANDOM, PEER = "random models", "transformers"
WEIGHTS = "weights of folders and GGUF files, both ways"
LINEAR = {"rope_type": "linear", "factor": 4.0}


def test_shards_of_transformers_here(random_model, tmp_path, tokens, same_logits):
    llama = llama_of(random_model())
    llama.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, _ = load(tmp_path)
    same_logits(RANDOM, PEER, their_logits(llama, tokens), {}, model, tokens)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_folders_both_ways(random_model, tmp_path, equal, dtype):
    """torch reads the same numbers, and rounds the same numbers to the same bits."""
    save_pretrained(tmp_path / "ours", load(random_model()).model, dtype=dtype)
    llama = llama_of(random_model()).to(getattr(torch, dtype))
    llama.save_pretrained(tmp_path / "theirs")
    read = flatten(load(tmp_path / "theirs").model.base)
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert written.dtype == llama.dtype, "transformers 5 keeps the stored type"
    written = written.state_dict()
    for name, p in llama.named_parameters():
        w = p.detach().float()
        equal(WEIGHTS, PEER, (read[name], w), (written[name].float(), w), case=name)


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("scaling", [{}, LINEAR])
def test_rotary_frequencies(equal, theta, head_dim, scaling):
    """Bit for bit: an ulp of a frequency is 3e-5 of a cosine near position 1,000."""
    parameters = {"rope_theta": theta, "rope_type": "default"} | scaling
    their_config = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=parameters)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(their_config)
    config = replace(CONFIG, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling or None)
    equal("rotary frequencies", PEER, (layers.rope_frequencies(config), theirs.inv_freq))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_gguf_file_of_the_gguf_library(tmp_path, equal, tokens, same_logits, kind):
    """Names and blocks of the library, here and in transformers: the same numbers and rows."""
    names, tensors, values = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2), {}, {}
    for place, w in leaves(GGUF_CONFIG).items():
        stored = gguf.GGMLQuantizationType["F32" if w.ndim == 1 else kind]
        raw = gguf.quants.quantize(w * np.float32(0.2), stored)
        name = names.get_name(place, try_suffixes=(".weight",))
        tensors[name] = stored, w.shape, raw.tobytes()
        values[place] = gguf.quants.dequantize(raw, stored)
    metadata = gguf_metadata(llama__rope__freq_base=500.0)
    path = toy_models.gguf(tmp_path / "m.gguf", metadata, tensors)
    llama = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    model, _ = load(path)
    state = llama.state_dict()
    base = flatten(model.base)
    for name, x in base.items():
        equal(WEIGHTS, PEER, (x, state[name]), case=name)
    equal("blocks of GGUF files: values", "gguf", (base[EMBEDDING], values[EMBEDDING]), case=kind)
    same_logits(RANDOM, PEER, their_logits(llama, tokens), {}, model, tokens)


KINDS = (0, 1, 2, 3, 8, 30)  # of tensors
SOME = {"S": ("", "a", "é"), "I": (-2, 7), "F": (-0.1, 0.5)}  # by the first letter of a type


def write_drawn_gguf(path, rng):
    """Write a file with metadata and tensors of random types, as the library writes it."""
    writer = gguf.GGUFWriter(path, "drawn")
    array = gguf.GGUFValueType.ARRAY
    for i in range(rng.randrange(4)):
        kind = rng.choice([kind for kind in gguf.GGUFValueType if kind != array])
        largest = 2 ** int(kind.name[4:] or 1) - 1 if kind.name[0] in "UB" else 0
        items = rng.choices(SOME.get(kind.name[0], (0, largest)), k=rng.randrange(1, 4))
        writer.add_key_value(f"k{i}", *rng.choice([(items[0], kind), (items, array, kind)]))
    if rng.random() < 0.5:
        writer.add_custom_alignment(rng.choice((8, 64)))
    for i in range(rng.randrange(4)):
        kind = gguf.GGMLQuantizationType(rng.choice(KINDS))
        *shape, blocks = (rng.randrange(1, 3) for _ in range(rng.randrange(1, 4)))
        shape.append(blocks * gguf.GGML_QUANT_SIZES[kind][1])
        raw = np.frombuffer(rng.randbytes(math.prod(shape)), np.uint8)
        writer.add_tensor(f"t{i}", raw.reshape(shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_drawn_gguf_file_has_the_tensors_that_the_library_reads(tmp_path, rng, tries):
    path = tmp_path / "m.gguf"
    for _ in range(tries(300, 5000)):
        write_drawn_gguf(path, rng)
        reader = gguf.GGUFReader(path)
        fields = reader.fields.items()
        expected = {name: field.contents() for name, field in fields if "GGUF." not in name}
        metadata, tensors = read_header(path)
        assert repr(metadata) == repr(expected)
        assert [*tensors] == [t.name for t in reader.tensors]
        for theirs in reader.tensors:
            ours = tensors[theirs.name].read()
            assert ours.shape == tuple(reversed(theirs.shape.tolist()))
            with np.errstate(all="ignore"):  # the bytes are random
                w = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
            np.testing.assert_array_equal(ours, w.astype(np.float32))


FAMILIES = dict(MODELS.values())
FULL, SLIDING = ["full_attention"] * 3, ["sliding_attention"] * 3
MIXED = GEMMA["layer_types"]
ODD = (None, "missing", True, False, 0, 1, 2, 2.5, -1, "x", [], [1], {"a": 1}, MIXED, "gelu")
# which of several fields decides; and values of fields that a family reads and another one does not
FIRST = (
    {}, {"embedding_multiplier": 12.0}, {"partial_rotary_factor": 0.5}, {"is_causal": False},
    {"sliding_window": None}, {"rope_parameters": {"rope_theta": 500.0, **LINEAR}},
    {"rope_parameters": {FULL[0]: {"rope_theta": 500.0}, SLIDING[0]: {"rope_theta": 500.0}}},
    {"use_sliding_window": False, "layer_types": "missing"},
    {"layer_types": "missing"}, {"max_window_layers": 3, "layer_types": SLIDING},
    {"layer_types": FULL}, {"layer_types": None, "sliding_window_pattern": 2},
    {"rope_parameters": "missing", "rope_scaling": LINEAR, "rope_theta": 500.0},
    {"rope_parameters": "missing", "rope_scaling": {"type": "linear", "factor": 4.0}},
)  # fmt: skip
# transformers 5 refuses other types of these; what a model computes does not depend on them
UNREAD = {
    *NEUTRAL, "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "output_attentions",
    "output_hidden_states", "quantization_config", "_name_or_path", "_sliding_window_pattern",
}  # fmt: skip
DELIBERATE = {  # what is read here and refused there
    # 0 and false are off
    "attention_dropout", "attn_logit_softcapping", "final_logit_softcapping",
    "use_bidirectional_attention",
    "rms_norm_eps",  # 1 and 2 are numbers, with or without a point
    "layer_types",  # Llama does not use it
    "head_dim",  # null is hidden_size / num_attention_heads, as in Llama
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_drawn_configuration_computes_what_transformers_computes_or_is_refused(
    random_model, tmp_path, tokens, rng, tries, family
):
    """Or it is warned of.

    One or two fields of the file of a family have another value, null, type, or are gone.
    """
    folder = tmp_path / "model"
    shutil.copytree(random_model(family, **FAMILIES[family]), folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    names = {*raw, "rope_theta", "rope_scaling"}.union(*FIRST)
    for each in FAMILIES:
        names |= getattr(transformers, f"{each}Config")().to_dict().keys()
    names = sorted(names - {"model_type", "vocab_size"})
    for i in range(tries(50, 600)):
        drawn = rng.sample(names, rng.choice((1, 1, 2)))
        changes = FIRST[i] if i < len(FIRST) else {name: rng.choice(ODD) for name in drawn}
        drawn = [*changes]
        changed = {n: v for n, v in (raw | changes).items() if v != "missing"}
        path.write_text(json.dumps(changed))
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model, _ = load(folder)
        except InputError as error:
            named = "|".join([*drawn, "tensor", "head", "layer_types", "hidden_act"])
            assert re.search(named, str(error)), (changes, error)
            continue
        if said:
            assert re.search(f"not read: ({'|'.join(drawn)})", str(said[0].message)), changes
            continue
        try:
            llama, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            expected = their_logits(llama.eval(), tokens)
        except Exception:
            assert not {*drawn}.isdisjoint(UNREAD | DELIBERATE), changes
            continue
        assert not any(info.values()), changes
        ours, precise = forward({}, model, tokens)
        # the bound of `same_logits`, or the noise of float32 in such a model, in both; a field read
        # wrongly is 1e-2 and more
        bound = max(1e-5, 4 * relative(ours, precise))
        assert relative(ours, expected) <= bound, changes

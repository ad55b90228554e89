"""Model families: config.json and leaves of each family, read and written."""

import json
from dataclasses import replace

import numpy as np
import phi3
import pytest
import safetensors.numpy
from outcomes import refused
from toy_models import (
    CONFIG,
    FULL,
    LLAMA3,
    OF_GEMMA,
    SLIDING,
    TRANSFORMERS_5,
    WINDOW,
    assert_same,
    change_json,
    folder,
    leaves,
    read_json,
    tiny,
    toy_model,
)

from minilora.config import ATTENTION, GEMMA_NORMS, InputError
from minilora.formats.families import FAMILIES
from minilora.formats.hf_folder import per_layer, read_config
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.quant.schemes import quantize
from minilora.rounding import round_to
from minilora.tree import flatten

QKV = ATTENTION[:3]
LINEAR = {"type": "linear", "factor": 8.0}  # as before transformers 5
SCALED = {"rope_type": "linear", "factor": 8.0}
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh", "norm_offset": 1.0, "norms": GEMMA_NORMS, "qk_norm": True,
    "embedding_scale": 32**0.5, "query_pre_attn_scalar": 16, "sliding_window": 3,
    "layer_types": (SLIDING, FULL), "rope_theta": 5e5, "rope_local_base_freq": 2e4,
    "rope_scaling": SCALED,
}  # fmt: skip
TRANSFORMERS_4 = {
    "rope_parameters": None, "rope_theta": 5e5, "rope_local_base_freq": 2e4,
    "rope_scaling": SCALED, "sliding_window_pattern": 2,
}  # fmt: skip
OF_LLAMA3 = {"rope_theta": 5e5, **LLAMA3}
# model_type, fields of config.json, projections with a bias, fields of ModelConfig
CASES = [
    (  # Llama has no window
        "llama", WINDOW | {"rope_parameters": OF_LLAMA3, "rope_scaling": OF_LLAMA3}, (),
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "other_fields": WINDOW},
    ),
    (
        "llama", {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": LINEAR}, (),
        {"rope_theta": 5e5, "rope_scaling": SCALED},
    ),
    (
        "mistral", {"sliding_window": 3, "layer_types": [SLIDING, FULL]}, (),
        {"sliding_window": 3, "layer_types": (SLIDING, FULL)},
    ),
    (
        "mistral", {"tie_word_embeddings": False}, (),
        {"tie_word_embeddings": False, "sliding_window": 4096},  # the default of transformers
    ),
    ("qwen2", WINDOW | {"use_sliding_window": False}, QKV, {}),
    # without max_window_layers, the first 28 layers have no window
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3}, QKV, {}),
    (
        "qwen2", {"use_sliding_window": True, "max_window_layers": 1}, QKV,
        {"sliding_window": 4096, "layer_types": (FULL, SLIDING)},
    ),
    (
        "qwen3", WINDOW | {"attention_bias": True, "layer_types": [SLIDING, FULL]}, ATTENTION,
        {"qk_norm": True, "sliding_window": 3, "layer_types": (SLIDING, FULL)},
    ),
    ("gemma3_text", OF_GEMMA | TRANSFORMERS_4, (), GEMMA),
    (
        "gemma3_text", OF_GEMMA | TRANSFORMERS_5 | {"attention_bias": True, "hidden_act": "silu"},
        ATTENTION, GEMMA | {"other_fields": {"hidden_act": "silu"}},  # Gemma has no hidden_act
    ),
]  # fmt: skip


@pytest.mark.parametrize("kind, fields, biased, expected", CASES)
def test_a_folder_of_each_type_both_ways(tmp_path, kind, fields, biased, expected):
    expected = replace(CONFIG, model_type=kind, rms_norm_eps=1e-5, **expected)
    w = leaves(expected, biased=biased)
    model, _ = load(folder(tmp_path, w, model_type=kind, **fields))
    assert model.config == expected
    assert_same(model.base, w)
    save_pretrained(tmp_path / "out", model, dtype="bfloat16")
    again, _ = load(tmp_path / "out")
    assert again.config == expected
    assert_same(again.base, flatten(round_to(model.base, "bfloat16")))
    written = read_json(tmp_path / "out" / "config.json")
    assert written["torch_dtype"] == "bfloat16", "transformers loads a model in this type"
    assert written["architectures"] == [f"{kind.removesuffix('_text').capitalize()}ForCausalLM"]


def test_a_mistral_without_a_window_says_so(tmp_path):
    # null is no window; a missing field would be one of 4096
    save_pretrained(tmp_path, toy_model(replace(CONFIG, model_type="mistral")))
    path = tmp_path / "config.json"
    written = read_json(path)
    assert written["sliding_window"] is None and "layer_types" not in written
    change_json(path, model_type="qwen2", use_sliding_window=True, max_window_layers=0)
    assert read_config(tmp_path)[0].layer_types is None


def test_a_field_that_is_missing_has_a_default(tmp_path):
    """Gemma 3's config.json often has only the fields that differ; tests/peers has all families."""
    raw = {
        "model_type": "gemma3_text", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 7, "num_attention_heads": 4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    expected = GEMMA | {
        "model_type": "gemma3_text", "num_hidden_layers": 7, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 131072, "bos_token_id": 2, "eos_token_id": (1,),
        "layer_types": (SLIDING,) * 5 + (FULL, SLIDING), "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": None, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    assert read_config(tmp_path)[0] == replace(CONFIG, **expected)


def test_a_family_that_joins_tensors_splits_and_joins_them(tmp_path, monkeypatch):
    """tests/peers compares the order of their rows with transformers."""
    monkeypatch.setitem(FAMILIES, "phi3", phi3.FAMILY)
    model = toy_model(replace(CONFIG, model_type="phi3"))
    save_pretrained(tmp_path, model)
    written = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert written["model.layers.1.mlp.gate_up_proj.weight"].shape == (128, 32)
    assert_same(load(tmp_path).model.base, leaves())
    with refused(r"^model.*q_proj.weight is quantized, and a quantized phi"):
        save_quantized(tmp_path / "q", quantize(model, "nf4"))
    assert not (tmp_path / "q").exists()


TYPES = "layer_types must name sliding_attention or full_attention for each of 2 layers"
OFF_IN_GEMMA = (
    "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"
)  # fmt: skip


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("qwen3", WINDOW | {"layer_types": [SLIDING, "full"]}, TYPES),
        ("qwen2", {"layer_types": [FULL, SLIDING]}, "but there is no sliding_window in use"),
        *(
            ("qwen2", {"rope_parameters": {kind: {"rope_theta": 5e5}}}, "each type of layer are")
            for kind in (FULL, SLIDING)
        ),
        ("mistral", {"layer_types": []}, TYPES),
        *(("gemma3_text", {name: 30.0}, f"{name} 30.0 is not") for name in OFF_IN_GEMMA),
        (
            "gemma3_text", {"rope_parameters": {SLIDING: LINEAR}},
            "of sliding_attention is not implemented; only rope_theta is",
        ),
        (
            "gemma3_text", {"rope_parameters": None, "rope_scaling": LINEAR},
            "rope_scaling has a `type`, which transformers ignores",
        ),
        ("gemma3_text", {"sliding_window": None}, "sliding_window.* None"),  # null is no default
    ],
)  # fmt: skip
def test_what_is_refused_by_name(tmp_path, kind, changes, message):
    path = folder(tmp_path, model_type=kind, **OF_GEMMA if kind == "gemma3_text" else {})
    change_json(path / "config.json", **changes)
    with refused(message):
        load(path)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("fields", [
    {"sliding_window": 3}, {"norm_offset": 1.0}, {"embedding_scale": 2.0}, {"rms_norm_eps": 1e-3},
    {"query_pre_attn_scalar": 4}, {"hidden_act": "gelu_pytorch_tanh"}, {"rope_theta": 50.0},
    {"max_position_embeddings": 99},
])  # fmt: skip
def test_a_folder_has_all_settings_of_its_model(tmp_path, kind, fields):
    """Its own type has them, or another one, or it is not written."""
    config = replace(CONFIG, model_type=kind, **fields)
    try:
        save_pretrained(tmp_path, toy_model(config))
    except InputError as error:
        assert "no model_type of config.json has such settings, as this" in str(error)
        return
    written = load(tmp_path).model.config
    assert per_layer(replace(written, other_fields={}, model_type=kind)) == per_layer(config)


def test_a_trained_bias_can_change_the_type_or_is_refused(tmp_path):
    """All projections that have one in this type get one: zero in the others."""
    words, one = tiny(), np.ones(32, np.float32)
    config = replace(CONFIG, model_type="mistral", sliding_window=3, vocab_size=words.vocab_size)
    model = toy_model(config, {"model.layers.0.self_attn.q_proj.bias": one})
    says = "out is written as qwen2, .*, AutoTokenizer may choose .*: use transformers.PreTr"
    with pytest.warns(UserWarning, match=says) as said:
        save_pretrained(tmp_path / "out", model, words)
    assert said[0].filename == __file__
    got, _ = load(tmp_path / "out")
    assert (got.config.model_type, got.config.sliding_window) == ("qwen2", 3)
    expected = flatten(model.base)
    for path, w in flatten(got.base).items():
        assert (w == expected.get(path, 0)).all(), path
    with refused(r"no model_type .* has biases of down_proj, .* --also-train"):
        name = "model.layers.0.mlp.down_proj.bias"
        save_pretrained(tmp_path / "none", toy_model(config, {name: one}))

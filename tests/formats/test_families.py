"""Model families: config.json and leaves of each family, read and written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy_models import CONFIG, assert_same, folder, leaves

from minilora.config import ATTENTION, MLP, InputError, ModelConfig
from minilora.formats.families import FAMILIES, family
from minilora.formats.hf_folder import read_config
from minilora.formats.pretrained import load, save_pretrained
from minilora.tree import unflatten

WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
QKV = ATTENTION[:3]
CASES = [  # fields of config.json, projections with a bias, the window
    ({"model_type": "llama", **WINDOW}, (), None),  # Llama has no such fields
    ({"model_type": "llama", "attention_bias": True, "mlp_bias": True}, ATTENTION + MLP, None),
    ({"model_type": "mistral", "sliding_window": 3}, (), 3),
    ({"model_type": "mistral"}, (), 4096),  # the default of transformers
    ({"model_type": "qwen2"}, QKV, None),
    ({"model_type": "qwen2", **WINDOW}, QKV, 3),
    ({"model_type": "qwen2", **WINDOW, "use_sliding_window": False}, QKV, None),
    ({"model_type": "qwen2", **WINDOW, "max_window_layers": 2}, QKV, None),  # of two layers
    # without max_window_layers, the first 28 layers have no window
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3}, QKV, None),
    ({"model_type": "qwen3"}, (), None),
    ({"model_type": "qwen3", "attention_bias": True, **WINDOW}, ATTENTION, 3),
    ({"model_type": "qwen3", **WINDOW, "layer_types": ["full_attention"] * 2}, (), None),
    (
        {"model_type": "qwen3", **WINDOW, "max_window_layers": 1,
         "layer_types": ["sliding_attention"] * 2}, (), 3,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "biased", "window"), CASES)
def test_a_folder_of_each_type_both_ways(tmp_path, fields, biased, window):
    kind = fields["model_type"]
    qk_norm = kind == "qwen3"
    expected = replace(CONFIG, model_type=kind, sliding_window=window, qk_norm=qk_norm)
    w = leaves(expected, biased=biased)
    assert sum(path.endswith(".bias") for path in w) == 2 * len(biased)
    norms = ("q_norm.weight", "k_norm.weight")
    assert sum(path.endswith(norms) for path in w) == 4 * qk_norm
    config, base, _ = load(folder(tmp_path, w, **fields))
    assert replace(config, rms_norm_eps=CONFIG.rms_norm_eps) == expected
    assert_same(base, w)
    save_pretrained(tmp_path / "out", config, base)
    again, base, _ = load(tmp_path / "out")
    assert again == config
    assert_same(base, w)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == [f"{kind.capitalize()}ForCausalLM"]


def test_a_mistral_without_a_window_says_so(tmp_path):
    # null is no window; a missing field would be one of 4096
    path = folder(tmp_path, model_type="mistral")
    raw = json.loads((path / "config.json").read_text()) | {"sliding_window": None}
    (path / "config.json").write_text(json.dumps(raw))
    config, base, _ = load(path)
    assert (config.model_type, config.sliding_window) == ("mistral", None)
    save_pretrained(tmp_path / "out", config, base)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] is None
    assert load(tmp_path / "out")[0] == config


SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = [  # fields of config.json, the types of the two layers
    ({"model_type": "qwen2", **WINDOW, "max_window_layers": 1}, (FULL, SLIDING)),
    ({"model_type": "qwen3", **WINDOW, "layer_types": [SLIDING, FULL]}, (SLIDING, FULL)),
    ({"model_type": "qwen3", **WINDOW, "max_window_layers": 1}, (FULL, SLIDING)),
]


@pytest.mark.parametrize(("fields", "types"), MIXED)
def test_a_window_in_some_layers_both_ways(tmp_path, fields, types):
    kind = fields["model_type"]
    expected = replace(
        CONFIG, model_type=kind, qk_norm=kind == "qwen3", sliding_window=3, layer_types=types
    )
    w = leaves(expected, biased=QKV if kind == "qwen2" else ())
    config, base, _ = load(folder(tmp_path, w, **fields))
    assert replace(config, rms_norm_eps=CONFIG.rms_norm_eps) == expected
    windows = [config.of_layers(kind).sliding_window for kind in config.layer_types or ("", "")]
    assert windows == [3 if t == SLIDING else None for t in types]
    save_pretrained(tmp_path / "out", config, base)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["layer_types"] == list(types) and written["use_sliding_window"] is True
    again, base, _ = load(tmp_path / "out")
    assert again == config
    assert_same(base, w)


GEMMA = replace(
    CONFIG, model_type="gemma3_text", hidden_act="gelu_pytorch_tanh", norm_offset=1.0,
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
           "post_feedforward_layernorm"),
    qk_norm=True, embedding_scale=32**0.5, query_pre_attn_scalar=16, sliding_window=3,
    layer_types=(SLIDING, FULL), rope_theta=5e5, rope_local_base_freq=2e4,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
)  # fmt: skip
OF_GEMMA = {  # what both generations of transformers write
    "model_type": "gemma3_text", "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16, "sliding_window": 3, "attn_logit_softcapping": None,
}  # fmt: skip
GENERATIONS = {
    4: {
        "rope_parameters": None, "rope_theta": 5e5, "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 2,
    },
    5: {
        "layer_types": [SLIDING, FULL],
        "rope_parameters": {
            FULL: {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
            SLIDING: {"rope_type": "default", "rope_theta": 2e4},
        },
    },
    "both": {
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "layer_types": [SLIDING, FULL],
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0}, SLIDING: {"rope_type": "default"},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("biased", [(), ATTENTION])
def test_a_gemma_folder_both_ways(tmp_path, generation, biased):
    fields = OF_GEMMA | GENERATIONS[generation] | {"attention_bias": bool(biased)}
    w = leaves(GEMMA, biased=biased)
    assert sum(path.endswith("norm.weight") for path in w) == 2 * (4 + 2) + 1
    config, base, _ = load(folder(tmp_path, w, **fields))
    assert replace(config, rms_norm_eps=GEMMA.rms_norm_eps) == GEMMA
    assert_same(base, w)
    save_pretrained(tmp_path / "out", config, base)
    again, base, _ = load(tmp_path / "out")
    assert again == config
    assert_same(base, w)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["Gemma3ForCausalLM"]
    assert written["hidden_activation"] == "gelu_pytorch_tanh"


def test_the_defaults_of_gemma(tmp_path):
    """A config.json of Gemma 3 has only the fields that differ from transformers' defaults."""
    path = tmp_path / "model"
    path.mkdir()
    raw = {
        "model_type": "gemma3_text", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(raw))
    config, _ = read_config(path)
    assert config.layer_types == (SLIDING,) * 5 + (FULL, SLIDING)
    assert (config.head_dim, config.query_pre_attn_scalar) == (256, 256)
    assert (config.sliding_window, config.tie_word_embeddings) == (4096, True)
    kinds = [config.of_layers(config.layer_types[i]) for i in (4, 5)]
    assert [kind.rope_theta for kind in kinds] == [1e4, 1e6]
    assert [kind.sliding_window for kind in kinds] == [4096, None]


TYPES = "layer_types must name sliding_attention or full_attention for each of 2 layers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, f"'gemma2' is not .*; {', '.join(FAMILIES)}"),
        ({"model_type": ["llama"]}, "model_type .* is not implemented"),
        ({"model_type": "qwen3", **WINDOW, "layer_types": [SLIDING, "full"]}, TYPES),
        ({"model_type": "qwen3", **WINDOW, "layer_types": SLIDING}, TYPES),
        ({"model_type": "qwen3", **WINDOW, "layer_types": [SLIDING]}, TYPES),
        ({"model_type": "qwen3", **WINDOW, "layer_types": [[FULL], 1]}, TYPES),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": "2"}, "max_window_layers must be"),
        ({"model_type": "qwen2", "use_sliding_window": 1.5}, "use_sliding_window must be true or"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number"),
        ({"model_type": "qwen2"}, "q_proj.bias is missing"),
        ({"model_type": "qwen3"}, "q_norm.weight is missing"),
        ({"model_type": "qwen2", "rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        (OF_GEMMA | {"hidden_activation": "gelu"}, "hidden_act 'gelu' is not implemented"),
        (OF_GEMMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not impl"),
        (OF_GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention is not"),
        (OF_GEMMA | {"rope_parameters": [1]}, "rope_parameters must be an object"),
        (OF_GEMMA | {"rope_parameters": {SLIDING: 5}}, "sliding_attention must be an object"),
        (OF_GEMMA | {"rope_parameters": {FULL: 5}}, "the rope parameters must be an object"),
        (
            OF_GEMMA | {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}},
            "rope type 'linear' of sliding_attention is not implemented",
        ),
        (OF_GEMMA | {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be a whole number"),
        (OF_GEMMA, "pre_feedforward_layernorm.weight is missing"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path, leaves(), **changes))


def test_a_window_is_a_whole_number():
    for window in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="`sliding_window` must be a whole number from 1"):
            replace(CONFIG, sliding_window=window)
    assert ModelConfig(**vars(replace(CONFIG, sliding_window=1))).sliding_window == 1


def save_with_biases(tmp_path, config, biased, trained):
    w = leaves(config, biased=biased)
    biases = {f"model.layers.0.{name}.bias": np.ones(32, np.float32) for name in trained}
    save_pretrained(tmp_path / "out", config, unflatten({**w, **biases}))
    return load(tmp_path / "out")


def test_a_trained_bias_that_the_type_has_no_place_for_makes_a_llama(tmp_path):
    config = replace(CONFIG, model_type="qwen2")
    got, base, _ = save_with_biases(tmp_path, config, QKV, ["self_attn.o_proj"])
    assert got.model_type == "llama", "which has biases on all four"
    node = base["model"]["layers"]["1"]["self_attn"]["o_proj"]
    assert not node["bias"].any()
    assert base["model"]["layers"]["0"]["self_attn"]["o_proj"]["bias"].all()


@pytest.mark.parametrize(
    ("kind", "window", "biased", "trained"),
    [("mistral", 3, (), ["self_attn.o_proj"]), ("qwen3", None, (), ["mlp.down_proj"])],
)
def test_leaves_of_no_type_are_refused(tmp_path, kind, window, biased, trained):
    qk_norm = kind == "qwen3"
    config = replace(CONFIG, model_type=kind, sliding_window=window, qk_norm=qk_norm)
    name = trained[0].rpartition(".")[2]
    with pytest.raises(InputError, match=f"no model_type .* has biases of {name}, .* --also-train"):
        save_with_biases(tmp_path, config, biased, trained)


def test_a_trained_bias_of_a_mistral_with_a_window_makes_a_qwen2(tmp_path):
    config = replace(CONFIG, model_type="mistral", sliding_window=3)
    got, _, _ = save_with_biases(tmp_path, config, (), ["self_attn.q_proj"])
    assert (got.model_type, got.sliding_window) == ("qwen2", 3)


def test_what_is_the_same_in_each_model_of_a_family_decides_whether_a_config_fits():
    assert {name for one in FAMILIES.values() for name in one.fields} <= family.FIXED

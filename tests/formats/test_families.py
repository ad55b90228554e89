"""Model types next to Llama: config.json and leaves of Mistral, Qwen2 and Qwen3, both ways."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy_models import CONFIG, assert_same, folder, leaves

from minilora.config import ATTENTION, MLP, InputError, ModelConfig
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
    expected = replace(CONFIG, model_type=kind, sliding_window=window)
    w = leaves(expected, biased=biased)
    assert sum(path.endswith(".bias") for path in w) == 2 * len(biased)
    assert sum(path.endswith(("q_norm.weight", "k_norm.weight")) for path in w) == 4 * (
        kind == "qwen3"
    )
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


MIXED = "a sliding window in some layers only is not implemented"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3_text"}, "'gemma3_text' is not .*; llama, mistral, qwen2, "),
        ({"model_type": ["llama"]}, "model_type .* is not implemented"),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": 1}, MIXED),
        ({"model_type": "qwen3", **WINDOW, "layer_types": ["sliding_attention", "full"]}, MIXED),
        ({"model_type": "qwen3", **WINDOW, "layer_types": "sliding_attention"}, MIXED),
        ({"model_type": "qwen3", **WINDOW, "layer_types": [["full_attention"], 1]}, MIXED),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": "2"}, "max_window_layers must be"),
        ({"model_type": "qwen2", "use_sliding_window": 1.5}, "use_sliding_window must be true or"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number"),
        ({"model_type": "qwen2"}, "q_proj.bias is missing"),
        ({"model_type": "qwen3"}, "q_norm.weight is missing"),
        ({"model_type": "qwen2", "rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path, leaves(), **changes))


def test_a_window_is_a_whole_number():
    for window in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="sliding_window must be a whole number from 1"):
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
    config = replace(CONFIG, model_type=kind, sliding_window=window)
    name = trained[0].rpartition(".")[2]
    with pytest.raises(InputError, match=f"no model_type .* has biases of {name}, .* --also-train"):
        save_with_biases(tmp_path, config, biased, trained)


def test_a_trained_bias_of_a_mistral_with_a_window_makes_a_qwen2(tmp_path):
    config = replace(CONFIG, model_type="mistral", sliding_window=3)
    got, _, _ = save_with_biases(tmp_path, config, (), ["self_attn.q_proj"])
    assert (got.model_type, got.sliding_window) == ("qwen2", 3)

"""Configurations: the scaling, and every value that raises an error."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY
from outcomes import refused

from minilora.config import (
    ALL_LINEAR,
    FRACTION,
    NON_NEGATIVE,
    NON_NEGATIVE_INT,
    POSITIVE,
    POSITIVE_INT,
    InputError,
    LoraConfig,
    ModelConfig,
    TrainConfig,
    scaling,
)
from minilora.methods.method import SIZE, MethodConfig

Q = "model.layers.3.self_attn.q_proj"


@given(st.integers(1, 512), st.floats(1e-3, 1e3))
def test_scaling(r, alpha):
    assert scaling(r, alpha) == scaling(r, alpha, False) == alpha / r
    # α/√r, and so √r times the other: two roundings on one side and three on the other, each of at
    # most 2⁻⁵³. (The same √r is rounded on both, but divides here and multiplies there.)
    rslora = scaling(r, alpha, use_rslora=True)
    assert math.isclose(rslora, math.sqrt(r) * alpha / r, rel_tol=5 * 2.0**-53)
    assert LoraConfig(r=r, lora_alpha=alpha).rank_and_scaling(Q) == (r, alpha / r)


def test_the_text_of_an_error_is_one_short_line():
    """Control characters are escaped, and the middle of a long text is left out."""
    assert str(InputError("a \n b\t\x00 ü “c”")) == "a \\n b\\t\\x00 ü “c”"
    text = "".join(chr(97 + i % 26) for i in range(1201))
    assert str(InputError(text[:1200])) == text[:1200]
    assert str(InputError(text)) == f"{text[:800]} … {text[-300:]}"


BELOW_ONE, SMALLEST, LARGEST, INF = math.nextafter(1, 0), 5e-324, 1.7e308, float("inf")
RANGES = {  # per rule: accepted values up to the limits, and refused values beyond them
    POSITIVE_INT: ((1, 2, 10**9), (0, -1, 1.0, True, "1", None)),
    NON_NEGATIVE_INT: ((0, 1, 10**9), (-1, 0.0, False, "0", None)),
    POSITIVE: ((SMALLEST, 0.5, 1, LARGEST), (0, -SMALLEST, -2, INF, math.nan, True, "16", None)),
    FRACTION: ((0, SMALLEST, 0.5, BELOW_ONE), (-SMALLEST, -2, 1, 3, math.nan, False)),
    NON_NEGATIVE: ((0, SMALLEST, 1, LARGEST), (-SMALLEST, -2, INF, math.nan, True)),
    SIZE: ((1, 4096), (0, 4097, 1.0, True, "1", None)),
}
SIZES = {
    "vocab_size": 11, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip
METHOD = {"num_virtual_tokens": 16, "bottleneck_size": 8, "vera_r": 256}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
RUN = {  # the fields that are numbers, and their defaults
    "iters": 200, "batch_size": 4, "grad_accumulation_steps": 1, "max_seq_length": 256,
    "learning_rate": 2e-4, "warmup_ratio": 0.06, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-8, "also_train_lr_scale": 0.1,
    "layer_lr_decay": 1.0, "loraplus_lr_ratio": 1.0, "steps_per_eval": 50, "val_batches": 8,
    "early_stopping_patience": 0, "seed": 0,
}  # fmt: skip
RULES = {
    "lora_dropout": FRACTION, "warmup_ratio": FRACTION, "adam_beta1": FRACTION,
    "adam_beta2": FRACTION, "weight_decay": NON_NEGATIVE, "seed": NON_NEGATIVE_INT,
    "early_stopping_patience": NON_NEGATIVE_INT, "lora_alpha": POSITIVE,
    **dict.fromkeys(METHOD, SIZE),
}  # fmt: skip


@pytest.mark.parametrize("name", [*SIZES, *LORA, *RUN, *METHOD, "sliding_window"])
def test_every_number_has_its_rule(name):
    """Without a rule of its own, a whole number is positive, and so is any other."""
    default = (SIZES | LORA | RUN | METHOD).get(name, 1)
    rule = RULES.get(name, POSITIVE_INT if type(default) is int else POSITIVE)
    good, bad = RANGES[rule]

    def make(value):
        if name in SIZES or name == "sliding_window":
            return ModelConfig(**SIZES | {name: value})
        if name in METHOD:
            return MethodConfig("vera", **{name: value})
        return (LoraConfig if name in LORA else TrainConfig)(**{name: value})

    for value in (default,) if name in SIZES else good:
        assert getattr(make(value), name) == value
    for value in (*bad, np.ones(2)):
        if name == "sliding_window" and value is None:
            continue
        with refused() as error:
            make(value)
        assert str(error.value) == f"`{name}` must {rule.text}, got {value!r}"


SWITCHES = ("mask_prompt", "packing", "gradient_checkpointing", "keep_best")
CHOICES = {
    "lr_schedule": ("constant", "linear", "cosine"), "optimizer": ("adamw", "muon"),
    "adapter_dtype": ("float32", "bfloat16", "float16"),
    "init_lora_weights": (True, "pissa", "loftq"), "bias": ("none",),
    "task_type": ("CAUSAL_LM", None),
    **dict.fromkeys(SWITCHES, (False, True)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice(name):
    config = LoraConfig if hasattr(LoraConfig(), name) else TrainConfig
    for value in CHOICES[name]:
        assert getattr(config(**{name: value}), name) == value
    for value in ("", "Linear", "FLOAT32", "Pissa", "no", 2, "all"):
        with refused(f"^`{name}` must be .*, got "):
            config(**{name: value})


REFUSED = [
    ({"rank_pattern": {"q_proj": 0}}, "`rank_pattern` must be a whole number from 1, got 0"),
    ({"alpha_pattern": {"q_proj": 0}}, "`alpha_pattern` must be a positive number, got 0"),
    *(
        ({name: wrong}, f"`{name}` must be an object {{name: value}}, got {wrong!r}")
        for name in ("rank_pattern", "alpha_pattern")
        for wrong in ([4], None)
    ),
    ({"target_modules": None}, "`target_modules` must be a list of names, or one"),
    ({"target_modules": [1]}, "`target_modules` must be a list of names, or one"),
    ({"exclude_modules": iter(["q_proj"])}, "`exclude_modules` must be a list of names, or one"),
    ({"layers_to_transform": iter([0])}, "`layers_to_transform` must be the number of a layer, or"),
    *(
        ({"layers_to_transform": wrong}, "`layers_to_transform` must be the number of a layer, or")
        for wrong in (True, [True, False], "01")
    ),
    (
        {"target_modules": ".*q_proj", "layers_to_transform": 0},
        "layers_to_transform needs a list of target_modules, not the regular expression",
    ),
]


@pytest.mark.parametrize("fields, message", REFUSED)
def test_refused_lora_values(fields, message):
    with refused() as error:
        LoraConfig(**fields)
    assert message in str(error.value)


def test_a_head_has_pairs_of_numbers_to_turn():
    with refused("head_dim 5 is odd"):
        replace(TINY, head_dim=5)


def test_the_defaults():
    """PEFT's of an adapter, transformers' of a Llama. tests/test_readme.py has those of a run."""
    assert vars(LoraConfig()) == LORA | {
        "target_modules": ("q_proj", "v_proj"), "use_rslora": False, "layers_to_transform": None,
        "rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None, "use_dora": False,
        "init_lora_weights": True, "bias": "none", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    assert vars(MethodConfig("vera")) == METHOD | {"method": "vera"}
    assert vars(ModelConfig(**SIZES)) == SIZES | {
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "max_position_embeddings": 2048, "eos_token_id": (), "bos_token_id": None,
        "rope_scaling": None, "sliding_window": None, "model_type": "llama",
        "generation_config": None, "other_fields": {}, "hidden_act": "silu",
        "norms": ("input_layernorm", None, "post_attention_layernorm", None), "norm_offset": 0.0,
        "qk_norm": False, "embedding_scale": 1.0, "query_pre_attn_scalar": None,
        "layer_types": None, "rope_local_base_freq": None,
    }  # fmt: skip
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert names == ALL_LINEAR
    for config in (TINY, LoraConfig(), TrainConfig()):
        with pytest.raises(FrozenInstanceError):
            config.r = 1


def test_each_kind_of_layer_has_its_own_settings():
    linear = {"rope_type": "linear", "factor": 8.0}
    kinds = ("full_attention", "sliding_attention")
    config = replace(
        TINY, layer_types=kinds, sliding_window=3, rope_theta=1e6, rope_scaling=linear,
        rope_local_base_freq=1e4,
    )  # fmt: skip
    full, sliding = (config.of_layers(kind) for kind in kinds)
    assert (full.sliding_window, full.rope_theta, full.rope_scaling) == (None, 1e6, linear)
    assert (sliding.sliding_window, sliding.rope_theta, sliding.rope_scaling) == (3, 1e4, None)
    one_base = replace(config, rope_local_base_freq=None).of_layers("sliding_attention")
    assert (one_base.sliding_window, one_base.rope_theta, one_base.rope_scaling) == (3, 1e6, linear)
    assert TINY.of_layers("") is TINY


def test_a_set_of_names_becomes_a_tuple_which_a_file_can_hold():
    config = LoraConfig(target_modules={"q_proj"}, exclude_modules={"k_proj"})
    assert (config.target_modules, config.exclude_modules) == (("q_proj",), ("k_proj",))


def test_numbers_of_numpy_become_those_of_python():
    """An array of one number in an adapter's tree would be trained."""
    alpha, dropout, r = np.float32(16), np.linspace(0, 1, 3)[1], np.array([4])[0]
    config = LoraConfig(r, alpha, dropout, rank_pattern={"q": r}, alpha_pattern={"q": alpha})
    assert config == LoraConfig(4, 16.0, 0.5, rank_pattern={"q": 4}, alpha_pattern={"q": 16.0})
    assert type(config.r) is type(config.rank_pattern["q"]) is int
    for layers in (range(2), np.arange(2), (np.int64(0), 1)):
        assert json.dumps(LoraConfig(layers_to_transform=layers).layers_to_transform) == "[0, 1]"
    for number in (config.lora_alpha, config.lora_dropout, config.alpha_pattern["q"]):
        assert type(number) is float
    assert type(TrainConfig(learning_rate=np.float64(1e-3)).learning_rate) is float

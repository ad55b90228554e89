"""Configurations: the scaling, and every value that raises an error."""

import math
from dataclasses import FrozenInstanceError, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, U64
from outcomes import refused
from toy_models import SIZES

from minilora.config import (
    FRACTION,
    NON_NEGATIVE,
    NON_NEGATIVE_INT,
    POSITIVE,
    POSITIVE_INT,
    InputError,
    LoraConfig,
    ModelConfig,
    TrainConfig,
)
from minilora.methods.method import SIZE, MethodConfig


@given(st.integers(1, 512), st.floats(1e-3, 1e3))
def test_scaling(r, alpha):
    # α/r, and α/√r as √r times it: two roundings on one side and three on the other, each of 2⁻⁵³
    for use_rslora, factor in (False, alpha / r), (True, math.sqrt(r) * alpha / r):
        config = LoraConfig(r=r, lora_alpha=alpha, use_rslora=use_rslora)
        assert config.rank_and_scaling("q_proj") == (r, pytest.approx(factor, rel=5 * U64, abs=0))


def test_the_text_of_an_error_is_one_short_line():
    """Control characters are escaped, and the middle of a long text is left out."""
    assert str(InputError("a \n b\t\x00 ü “c”")) == "a \\n b\\t\\x00 ü “c”"
    text = "".join(chr(97 + i % 26) for i in range(1201))
    assert str(InputError(text[:1200])) == text[:1200]
    assert str(InputError(text)) == f"{text[:800]} … {text[-300:]}"


BELOW_ONE, SMALLEST, LARGEST, INF = math.nextafter(1, 0), 5e-324, 1.7e308, float("inf")
RANGES = {  # per rule: accepted values at the limits, and refused values beyond them
    POSITIVE_INT: ((1, 10**9), (0, 1.0, True, "1", None)),
    NON_NEGATIVE_INT: ((0, 10**9), (-1, 0.0, False)),
    POSITIVE: ((SMALLEST, 1, LARGEST), (0, INF, math.nan, True, "16", None)),
    FRACTION: ((0, BELOW_ONE), (-SMALLEST, 1, math.nan, False)),
    NON_NEGATIVE: ((0, SMALLEST, LARGEST), (-SMALLEST, INF, math.nan, True)),
    SIZE: ((1, 4096), (0, 4097, 1.0, True)),
}
OWNERS = partial(ModelConfig, **SIZES), LoraConfig, TrainConfig, partial(MethodConfig, "vera")
NUMBERS = {
    name: owner
    for owner in OWNERS
    for name, default in vars(owner()).items()
    if type(default) in (int, float) or name == "sliding_window"
}
RULES = {
    **dict.fromkeys(("lora_dropout", "warmup_ratio", "adam_beta1", "adam_beta2"), FRACTION),
    **dict.fromkeys(("weight_decay", "norm_offset"), NON_NEGATIVE),
    **dict.fromkeys(("seed", "early_stopping_patience"), NON_NEGATIVE_INT),
    **dict.fromkeys(("num_virtual_tokens", "bottleneck_size", "vera_r"), SIZE),
    "lora_alpha": POSITIVE, "sliding_window": POSITIVE_INT,
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_its_rule(name):
    """Without a rule of its own, a whole number is positive, and so is any other."""
    owner = NUMBERS[name]
    default = getattr(owner(), name)
    rule = RULES.get(name, POSITIVE_INT if type(default) is int else POSITIVE)
    good, bad = RANGES[rule]
    for value in () if name in SIZES else good:  # a size must fit the others
        assert getattr(owner(**{name: value}), name) == value
    for value in (*bad, np.ones(2)):
        if value is not default:
            with refused() as error:
                owner(**{name: value})
            assert str(error.value) == f"`{name}` must {rule.text}, got {value!r}"


CHOICES = {
    name: owner
    for owner in (LoraConfig, TrainConfig)
    for name, default in vars(owner()).items()
    if type(default) in (bool, str)
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice(name):
    """Other tests make all others of the choices that are accepted."""
    LoraConfig(init_lora_weights="loftq", task_type=None)
    for value in ("", "Linear", 2):
        with refused(f"^`{name}` must be .*, got "):
            CHOICES[name](**{name: value})


REFUSED = [
    ({"rank_pattern": {"q_proj": 0}}, "`rank_pattern` must be a whole number from 1, got 0"),
    ({"alpha_pattern": {"q_proj": 0}}, "`alpha_pattern` must be a positive number, got 0"),
    ({"rank_pattern": [4]}, r"`rank_pattern` must be an object {name: value}, got \[4\]"),
    ({"alpha_pattern": None}, "`alpha_pattern` must be an object {name: value}, got None"),
    ({"target_modules": [1]}, "`target_modules` must be a list of names, or one"),
    ({"exclude_modules": iter(["q_proj"])}, "`exclude_modules` must be a list of names, or one"),
    *(
        ({"layers_to_transform": wrong}, "`layers_to_transform` must be the number of a layer, or")
        for wrong in (True, [True, False])
    ),
    ({"target_modules": ".*q", "layers_to_transform": 0}, "needs a list of target_modules, not"),
]


@pytest.mark.parametrize("fields, message", REFUSED)
def test_refused_lora_values(fields, message):
    with refused(message):
        LoraConfig(**fields)


def test_a_head_has_pairs_of_numbers_to_turn():
    with refused("head_dim 5 is odd"):
        replace(TINY, head_dim=5)


def test_the_defaults():
    """PEFT's of an adapter, transformers' of a Llama. tests/test_readme.py has those of a run."""
    assert vars(LoraConfig()) == {
        "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ("q_proj", "v_proj"),
        "use_rslora": False, "layers_to_transform": None, "rank_pattern": {}, "alpha_pattern": {},
        "exclude_modules": None, "use_dora": False, "init_lora_weights": True, "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    assert vars(MethodConfig("vera")) == {
        "method": "vera", "num_virtual_tokens": 16, "bottleneck_size": 8, "vera_r": 256,
    }  # fmt: skip
    assert vars(ModelConfig(**SIZES)) == SIZES | {
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "max_position_embeddings": 2048, "eos_token_id": (), "bos_token_id": None,
        "rope_scaling": None, "sliding_window": None, "model_type": "llama",
        "generation_config": None, "other_fields": {}, "hidden_act": "silu",
        "norms": ("input_layernorm", None, "post_attention_layernorm", None), "norm_offset": 0.0,
        "qk_norm": False, "embedding_scale": 1.0, "query_pre_attn_scalar": None,
        "layer_types": None, "rope_local_base_freq": None,
    }  # fmt: skip
    for config in (TINY, LoraConfig(), TrainConfig()):
        with pytest.raises(FrozenInstanceError):
            config.r = 1


def test_each_kind_of_layer_has_its_own_settings():
    linear = {"rope_type": "linear", "factor": 8.0}
    one_base = replace(TINY, sliding_window=3, rope_theta=1e6, rope_scaling=linear)
    two_bases = replace(one_base, rope_local_base_freq=1e4)
    sliding = replace(two_bases, rope_theta=1e4, rope_scaling=None)
    assert two_bases.of_layers("full_attention") == replace(two_bases, sliding_window=None)
    assert two_bases.of_layers("sliding_attention") == sliding
    assert one_base.of_layers("sliding_attention") == one_base == one_base.of_layers("")


def test_a_set_of_names_becomes_a_tuple_which_a_file_can_hold():
    config = LoraConfig(target_modules={"q_proj"}, exclude_modules={"k_proj"})
    assert (config.target_modules, config.exclude_modules) == (("q_proj",), ("k_proj",))


def test_numbers_of_numpy_become_those_of_python():
    """An array of one number in an adapter's tree would be trained."""

    def config(whole, real, layers):
        patterns = {"rank_pattern": {"q": whole(4)}, "alpha_pattern": {"q": real(16)}}
        return LoraConfig(whole(4), real(16), real(0.5), layers_to_transform=layers, **patterns)

    expected = repr(config(int, float, [0, 1]))
    assert repr(config(np.int64, np.float32, np.arange(2))) == expected
    assert repr(config(np.array, np.float64, (np.int64(0), 1))) == expected

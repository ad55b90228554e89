"""Configurations: the scaling, other ranks by name, and every value that raises an error."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, random_base

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
    check_setting,
    names_module,
    scaling,
)
from minilora.formats.hf_folder import projection_shapes
from minilora.lora import target_paths

Q = "model.layers.3.self_attn.q_proj"


@given(st.integers(1, 512), st.floats(1e-3, 1e3))
def test_scaling(r, alpha):
    assert scaling(r, alpha) == alpha / r
    # α/√r, and so √r times the other: two roundings on one side and three on the other, each of at
    # most 2⁻⁵³. (The same √r is rounded on both, but divides here and multiplies there.)
    rslora = scaling(r, alpha, use_rslora=True)
    assert math.isclose(rslora, math.sqrt(r) * alpha / r, rel_tol=5 * 2.0**-53)
    assert LoraConfig(r=r, lora_alpha=alpha).rank_and_scaling(Q) == (r, alpha / r)


def test_an_exception_takes_its_own_rank_and_alpha():
    config = LoraConfig(r=8, lora_alpha=16, rank_pattern={"q_proj": 2}, alpha_pattern={Q: 3})
    assert config.rank_and_scaling(Q) == (2, 1.5)
    assert config.rank_and_scaling("model.layers.4.self_attn.q_proj") == (2, 8.0)
    assert config.rank_and_scaling("model.layers.3.self_attn.v_proj") == (8, 2.0)
    assert replace(config, use_rslora=True).rank_and_scaling(Q) == (2, 3 / math.sqrt(2))


def test_one_layer_may_be_a_number():
    base = random_base(TINY)
    one, several = (LoraConfig(layers_to_transform=layers) for layers in (1, (1,)))
    assert target_paths(base, one) == target_paths(base, several)


def test_a_switch_is_true_or_false():
    for bad in ("no", 1, None):
        with pytest.raises(InputError, match="`mask_prompt` must be true or false, got "):
            TrainConfig(mask_prompt=bad)


def test_a_name_is_a_whole_path_or_an_end_after_a_dot():
    assert names_module("q_proj", Q) and names_module(Q, Q) and names_module("self_attn.q_proj", Q)
    assert not names_module("proj", Q) and not names_module("attn.q_proj", Q)
    assert not names_module("model", Q) and not names_module("k_proj", Q)


BELOW_ONE, SMALLEST, LARGEST, INF = math.nextafter(1, 0), 5e-324, 1.7e308, float("inf")
RANGES = {  # per rule: accepted values up to the limits, and refused values beyond them
    POSITIVE_INT: ((1, 2, 10**9), (0, -1, 1.0, 1.5, True, "1", None)),
    NON_NEGATIVE_INT: ((0, 1, 10**9), (-1, -2, 0.0, 1.5, False, "0", None)),
    POSITIVE: (
        (SMALLEST, 0.5, 1, LARGEST),
        (0, -SMALLEST, -0.5, -2, INF, math.nan),
    ),
    FRACTION: ((0, SMALLEST, 0.5, BELOW_ONE), (-SMALLEST, -0.5, -2, 1, 1.5, 3, math.nan)),
    NON_NEGATIVE: ((0, SMALLEST, 0.5, 1, LARGEST), (-SMALLEST, -0.5, -2, INF, math.nan)),
}


@pytest.mark.parametrize("rule", RANGES, ids=lambda rule: rule.text)
def test_a_rule_takes_its_range_and_nothing_else(rule):
    good, bad = RANGES[rule]
    for value in good:
        check_setting("some_field", value, rule)
    for value in bad:
        with pytest.raises(InputError, match=r"^`some_field` must ") as error:
            check_setting("some_field", value, rule)
        assert str(error.value) == f"`some_field` must {rule.text}, got {value!r}"


def test_the_text_of_an_error_is_one_short_line():
    """Control characters are escaped, and the middle of a long text is left out."""
    assert str(InputError("a \n b\t\x00 ü “c”")) == "a \\n b\\t\\x00 ü “c”"
    text = "".join(chr(97 + i % 26) for i in range(1201))
    assert str(InputError(text[:1200])) == text[:1200]
    assert str(InputError(text)) == f"{text[:800]} … {text[-300:]}"


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads", "num_key_value_heads", "head_dim")  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_size_of_a_model_is_a_positive_integer(name):
    sizes = dict(zip(SIZES, (11, 12, 10, 2, 4, 2, 6)))
    for bad in (0, -2, 2.0, None):
        with pytest.raises(InputError, match=f"^`{name}` must be a whole number from 1, got "):
            ModelConfig(**sizes | {name: bad})
    assert getattr(ModelConfig(**sizes), name) == sizes[name]


WHOLE_FIELDS = (
    "iters", "batch_size", "grad_accumulation_steps", "max_seq_length", "steps_per_eval",
    "val_batches",
)  # fmt: skip
POSITIVE_FIELDS = (
    "learning_rate", "max_grad_norm", "adam_eps", "also_train_lr_scale", "layer_lr_decay",
    "loraplus_lr_ratio",
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "fields", "rule"),
    [
        (TrainConfig, WHOLE_FIELDS, POSITIVE_INT),
        (TrainConfig, ("seed", "early_stopping_patience"), NON_NEGATIVE_INT),
        (TrainConfig, POSITIVE_FIELDS, POSITIVE),
        (TrainConfig, ("warmup_ratio", "adam_beta1", "adam_beta2"), FRACTION),
        (TrainConfig, ("weight_decay",), NON_NEGATIVE),
        (LoraConfig, ("r",), POSITIVE_INT),
        (LoraConfig, ("lora_alpha",), POSITIVE),
        (LoraConfig, ("lora_dropout",), FRACTION),
    ],
)
def test_every_field_has_its_rule(config, fields, rule):
    good, bad = RANGES[rule]
    for name in fields:
        for value in good:
            assert getattr(config(**{name: value}), name) == value
        for value in bad:
            with pytest.raises(InputError) as error:
                config(**{name: value})
            assert f" must {rule.text}, got " in str(error.value)


@pytest.mark.parametrize(
    ("config", "field", "values"),
    [
        (TrainConfig, "lr_schedule", ("constant", "linear", "cosine")),
        (TrainConfig, "adapter_dtype", ("float32", "bfloat16", "float16")),
        (LoraConfig, "init_lora_weights", (True, "pissa", "loftq")),
    ],
)
def test_every_choice(config, field, values):
    for value in values:
        assert getattr(config(**{field: value}), field) == value
    for value in ("", "Linear", "FLOAT32", "Pissa", False, None):
        with pytest.raises(InputError, match=f"^`{field}` must be"):
            config(**{field: value})


def test_switches_take_either_value():
    for name in ("mask_prompt", "packing", "gradient_checkpointing"):
        assert [getattr(TrainConfig(**{name: v}), name) for v in (False, True)] == [False, True]


def test_the_defaults():
    """PEFT's of an adapter, transformers' of a Llama, mlx_lm's of a run where they are shared."""
    assert vars(LoraConfig()) == {
        "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ("q_proj", "v_proj"),
        "use_rslora": False, "layers_to_transform": None, "rank_pattern": {}, "alpha_pattern": {},
        "exclude_modules": None, "use_dora": False, "init_lora_weights": True, "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    assert vars(TrainConfig()) == {
        "iters": 200, "batch_size": 4, "grad_accumulation_steps": 1, "max_seq_length": 256,
        "optimizer": "adamw",
        "learning_rate": 2e-4, "lr_schedule": "cosine", "warmup_ratio": 0.06, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-8,
        "also_train_lr_scale": 0.1, "layer_lr_decay": 1.0, "loraplus_lr_ratio": 1.0,
        "adapter_dtype": "float32", "mask_prompt": False, "packing": False,
        "gradient_checkpointing": False, "steps_per_eval": 50, "val_batches": 8,
        "early_stopping_patience": 0, "keep_best": False, "seed": 0,
    }  # fmt: skip
    shape = vars(ModelConfig(11, 12, 10, 2, 4, 2, 6))
    assert shape == {
        "vocab_size": 11, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 2048,
        "eos_token_id": (), "bos_token_id": None, "rope_scaling": None, "sliding_window": None,
        "model_type": "llama", "generation_config": None, "hidden_act": "silu",
        "norms": ("input_layernorm", None, "post_attention_layernorm", None), "norm_offset": 0.0,
        "qk_norm": False, "embedding_scale": 1.0, "query_pre_attn_scalar": None,
        "layer_types": None, "rope_local_base_freq": None,
    }  # fmt: skip
    assert scaling(4, 6.0) == scaling(4, 6.0, False) == 1.5


def test_the_seven_projections():
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert names == ALL_LINEAR
    shapes = projection_shapes(ModelConfig(11, 13, 17, 2, 6, 2, 4))  # q is 24 wide, k and v 8
    assert [*shapes] == [*names]
    assert [*shapes.values()] == [
        (24, 13),
        (8, 13),
        (8, 13),
        (13, 24),
        (17, 13),
        (17, 13),
        (13, 17),
    ]


@pytest.mark.parametrize(
    "field, value",
    [
        ("r", 0), ("r", -1), ("r", 2.5), ("rank_pattern", {"q_proj": 0}),
        ("lora_alpha", 0), ("lora_alpha", -1), ("lora_alpha", math.inf), ("lora_alpha", math.nan),
        ("alpha_pattern", {"q_proj": 0}),
        ("lora_dropout", 1), ("lora_dropout", -0.1), ("lora_dropout", math.nan),
    ],
)  # fmt: skip
def test_refused_lora_values(field, value):
    with pytest.raises(InputError, match=f"^`{field}` must"):
        LoraConfig(**{field: value})


@pytest.mark.parametrize(
    "field, value",
    [
        *((name, bad) for name in ("iters", "batch_size", "grad_accumulation_steps",
                                   "max_seq_length", "steps_per_eval", "val_batches")
          for bad in (0, -3, 1.5, "4")),
        *((name, bad) for name in ("learning_rate", "max_grad_norm", "adam_eps",
                                   "also_train_lr_scale")
          for bad in (0, -1e-3, math.inf, math.nan)),
        *((name, bad) for name in ("warmup_ratio", "adam_beta1", "adam_beta2")
          for bad in (1, -0.1, math.nan)),
        *((name, bad) for name in ("weight_decay", "early_stopping_patience", "seed")
          for bad in (-1, math.inf, math.nan)),
        ("lr_schedule", "cosin"), ("adapter_dtype", "float64"),
    ],
)  # fmt: skip
def test_refused_training_values_name_their_field(field, value):
    with pytest.raises(InputError, match=f"^`{field}` must .*got"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field", ["seed", "early_stopping_patience"])
def test_a_count_is_a_whole_number(field):
    with pytest.raises(InputError, match=f"^`{field}` must"):
        TrainConfig(**{field: 1.5})


def test_a_model_has_whole_groups_of_heads_and_pairs_to_turn():
    with pytest.raises(InputError, match="num_attention_heads 4 is not a multiple"):
        replace(TINY, num_key_value_heads=3)
    with pytest.raises(InputError, match="head_dim 5 is odd"):
        replace(TINY, head_dim=5)
    assert replace(TINY, num_key_value_heads=4, head_dim=2).head_dim == 2


def test_configurations_are_frozen():
    for config in (TINY, LoraConfig(), TrainConfig()):
        with pytest.raises(FrozenInstanceError):
            config.r = 1

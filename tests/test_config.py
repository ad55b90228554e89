"""Configurations: the scaling, exceptions by name, and every value that is refused."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY

from minilora.config import InputError, LoraConfig, TrainConfig, flag, names_module, scaling

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


def test_a_name_is_a_whole_path_or_an_end_after_a_dot():
    assert names_module("q_proj", Q) and names_module(Q, Q) and names_module("self_attn.q_proj", Q)
    assert not names_module("proj", Q) and not names_module("attn.q_proj", Q)
    assert not names_module("model", Q) and not names_module("k_proj", Q)


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
    with pytest.raises(InputError, match=r"lora (r|alpha|dropout) must"):
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
def test_refused_training_values_name_their_flag(field, value):
    with pytest.raises(InputError, match=f"^{flag(field)} must .*got"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field", ["seed", "early_stopping_patience"])
def test_a_count_is_a_whole_number(field):
    with pytest.raises(InputError, match=f"^{flag(field)} must"):
        TrainConfig(**{field: 1.5})


def test_a_model_has_whole_groups_of_heads_and_pairs_to_turn():
    with pytest.raises(InputError, match="num_attention_heads 4 is not a multiple"):
        replace(TINY, num_key_value_heads=3)
    with pytest.raises(InputError, match="head_dim 5 is odd"):
        replace(TINY, head_dim=5)


def test_configurations_are_frozen():
    for config in (TINY, LoraConfig(), TrainConfig()):
        with pytest.raises(FrozenInstanceError):
            config.r = 1


def test_flag():
    assert flag("grad_accumulation_steps") == "--grad-accumulation-steps"

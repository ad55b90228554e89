"""Gradients of every low-rank factor against PyTorch + PEFT, dense and through four bits."""

from copy import deepcopy

import pytest
from peft_models import (
    ALL,
    four_bit_peft,
    llama_of,
    prose_batch,
    random_batch,
    random_peft,
    small_random_peft,
)

from minilora.formats.pretrained import load
from minilora.quant.schemes import quantize

PEFT, FOUR_BITS = "PyTorch + PEFT", "PyTorch + PEFT + bitsandbytes"


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_rslora": True, "lora_alpha": 3}, {"modules_to_save": ["norm", "lm_head"]}],
)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_every_factor(tiny_llama, same_gradients, tied, fields):
    base_folder = tiny_llama(tie_word_embeddings=tied)
    config, base, _ = load(base_folder)
    theirs = random_peft(llama_of(base_folder), target_modules=ALL, **fields)
    batch = random_batch(256, B=3, T=24)
    same_gradients("random Llamas", PEFT, theirs, base, config, batch)


@pytest.mark.slow
def test_gradients_on_the_real_base(smollm2, their_smollm2, prose, same_gradients):
    """210 adapters, 420 factors."""
    config, base, _, _ = smollm2
    theirs = small_random_peft(deepcopy(their_smollm2))
    batch = prose_batch(prose, (128, 100))
    same_gradients("SmolLM2", PEFT, theirs, base, config, batch)


def test_gradients_through_a_four_bit_base(tiny_llama, same_gradients):
    # Rows of whole blocks: others are dequantized wrongly by bitsandbytes 0.50's loop for the CPU.
    folder = tiny_llama(intermediate_size=128)
    config, base, _ = load(folder, "nf4-dq")
    theirs, batch = four_bit_peft(llama_of(folder)), random_batch(256, B=3, T=24)
    same_gradients("random Llama in NF4", FOUR_BITS, theirs, base, config, batch)


@pytest.mark.slow
def test_gradients_through_the_real_base_in_four_bits(
    smollm2, their_smollm2, prose, same_gradients
):
    config, base, _, _ = smollm2
    base, batch = quantize(base, "nf4-dq"), prose_batch(prose, (128, 100))
    theirs = four_bit_peft(deepcopy(their_smollm2))
    same_gradients("SmolLM2 in NF4", FOUR_BITS, theirs, base, config, batch)

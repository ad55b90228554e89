"""Models of every family against transformers, PEFT and bitsandbytes: folders, gradients, tokens.

A window of 6 is much shorter than the sequences, so a window that is too long, too short or not
read changes the logits of most tokens.
"""

import json
from dataclasses import replace

import numpy as np
import phi3
import pytest
from comparisons import relative
from models import PATHS
from peft_models import (
    ALL,
    four_bit_peft,
    in_peft,
    llama_of,
    our_adapter,
    peft,
    peft_folder,
    random_batch,
    random_peft,
    their_logits,
    torch,
    transformers,
)
from toy_models import FULL, LLAMA3, SIZES, SLIDING

import minilora
from minilora import layers
from minilora.config import ALL_LINEAR, LoraConfig
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.formats.families import FAMILIES
from minilora.formats.hf_folder import read_config
from minilora.formats.pretrained import load, save_pretrained
from minilora.quant.schemes import quantize
from minilora.tree import flatten, without

RANDOM = "random models"
TIED, BIASED = {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}
SCALED = {"rope_theta": 500.0, **LLAMA3, "original_max_position_embeddings": 16}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
GEMMA = {  # a scale of the scores that is not that of head_dim
    "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 6,
    "layer_types": [SLIDING, FULL, SLIDING],
}  # fmt: skip
MODELS = {  # one or two of each family, for all tests
    "Llama": ("Llama", {"rope_parameters": SCALED}),
    "Llama, tied, with biases": ("Llama", {**TIED, **BIASED}),
    "Mistral with a window": ("Mistral", {"sliding_window": 6, "head_dim": 32}),
    "Qwen2, tied": ("Qwen2", TIED),
    "Qwen2 with a window": ("Qwen2", WINDOW),
    "Qwen3 with a window and biases": (
        "Qwen3", {"attention_bias": True, "head_dim": 16, "rms_norm_eps": 0.1, **WINDOW},
    ),
    "Gemma 3": ("Gemma3Text", GEMMA),
}  # fmt: skip
# Families whose files join tensors. PEFT adapts the joined tensors, so only folders are compared.
JOINED = {"Phi-3 with a window": ("Phi3", {"sliding_window": 6, "pad_token_id": None})}
EVERYWHERE = LoraConfig(target_modules=ALL_LINEAR)
EACH = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def with_phi3(monkeypatch):
    """A family that a contributor adds."""
    monkeypatch.setitem(FAMILIES, "phi3", phi3.FAMILY)


@pytest.fixture
def folder(random_model, name):
    """The folder of the random model of this name."""
    family, fields = (MODELS | JOINED)[name]
    return random_model(family, **fields)


@pytest.fixture
def model(folder):
    return load(folder).model


@EACH
def test_a_folder_of_transformers_here(folder, model, tokens, same_logits, compared):
    """The optimized operations, and the reference."""
    theirs = llama_of(folder)
    assert set(flatten(model.base)) <= set(theirs.state_dict())
    expected = their_logits(theirs, tokens)
    same_logits(RANDOM, "transformers", expected, {}, model, tokens, loss=True)
    plain = minilora.forward({}, model._replace(ops=layers), tokens)
    compared(f"{RANDOM}, --plain: logits", "transformers", relative(plain, expected), 1e-5)


@pytest.mark.parametrize("name", [*MODELS, *JOINED])
def test_our_folder_in_transformers(folder, tmp_path, tokens, same_logits):
    """Without an adapter, and what `merge` makes of a base and an adapter."""
    model, tokenizer = load(folder)
    adapters, model = our_adapter(model, EVERYWHERE, ["norm"])
    saved = {"base": ({}, model), "merged": (adapters, minilora.merge(adapters, model))}
    for name, (ours, written) in saved.items():
        save_pretrained(tmp_path / name, written, tokenizer)
        theirs = llama_of(tmp_path / name)
        assert type(theirs) is type(llama_of(folder))
        what, expected = f"{RANDOM}, our folder", their_logits(theirs, tokens)
        same_logits(what, "transformers", expected, ours, model, tokens, loss=True)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "lora_alpha": 3}])
@PATHS
@EACH
def test_gradients_of_every_factor(folder, model, same_gradients, ops, fields):
    theirs = random_peft(llama_of(folder), target_modules=ALL, modules_to_save=["norm"], **fields)
    same_gradients(RANDOM, "PyTorch + PEFT", theirs, model._replace(ops=ops), random_batch())


@EACH
def test_gradients_through_a_four_bit_base(folder, same_gradients):
    model, theirs = load(folder, "nf4-dq").model, four_bit_peft(llama_of(folder))
    against = "PyTorch + PEFT + bitsandbytes"
    same_gradients(f"{RANDOM} in NF4", against, theirs, model, random_batch())


@pytest.mark.parametrize("scheme", ["none", "nf4-dq"])
@EACH
def test_greedy_generation_with_the_cache(folder, model, equal, name, scheme):
    """30 tokens after a prompt of 9: the window of 6 passes over both."""
    adapters, model = our_adapter(quantize(model, scheme), EVERYWHERE, ["norm"])
    dense = minilora.merge(adapters, model).base
    theirs = llama_of(folder)
    theirs.load_state_dict({p: torch.tensor(w) for p, w in flatten(dense).items()}, strict=False)
    prompt = np.random.default_rng(1).integers(250, size=9).tolist()
    found = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=30, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    endless = model._replace(config=replace(model.config, eos_token_id=()))
    ours = list(minilora.generate(adapters, endless, prompt, max_tokens=30))
    what = f"{RANDOM}: greedy tokens, with the cache"
    equal(what, "transformers", (ours, found[0, 9:]), case=name)


@pytest.mark.parametrize("prefix", [False, True], ids=["DoRA", "prefix"])
@EACH
def test_an_adapter_of_peft_here(folder, model, tmp_path, tokens, same_logits, prefix):
    """In PEFT the window counts the keys of a prefix: later tokens do not see it."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", use_dora=True)
    if prefix:
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = random_peft(llama_of(folder), config)
    adapters, model, _ = load_adapter(peft_folder(tmp_path, theirs), model)
    what, expected = "PEFT's adapters read here", their_logits(theirs, tokens)
    same_logits(what, "PEFT", expected, adapters, model, tokens, loss=True)


@EACH
def test_our_adapter_in_peft(folder, model, tmp_path, tokens, same_logits):
    adapters, model = our_adapter(model, EVERYWHERE, ["norm"])
    save_adapter(tmp_path, adapters, model, EVERYWHERE)
    theirs = in_peft(llama_of(folder), tmp_path)
    what, expected = "our adapters in PEFT", their_logits(theirs, tokens)
    same_logits(what, "PEFT", expected, adapters, model, tokens, loss=True)


@pytest.mark.parametrize("kind", sorted({*FAMILIES} - {"phi3"}))
def test_a_missing_field_has_the_default_of_transformers(tmp_path, kind):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": kind, **without(SIZES, "head_dim")})
    )
    ours, _ = read_config(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    expected = {"head_dim": 8, "sliding_window": None} | theirs.to_dict()
    end = expected["eos_token_id"]
    assert ours.eos_token_id == (() if end is None else (end,))
    for name in (
        "bos_token_id", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
        "head_dim", "sliding_window",
    ):  # fmt: skip
        assert getattr(ours, name) == expected[name], name

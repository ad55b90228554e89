"""The whole family against PEFT: its folders here, ours there, the gradient of every leaf."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from comparisons import relative
from peft_models import (
    ALL,
    float64_loss,
    gradients_of,
    llama_of,
    our_adapter,
    peft,
    peft_folder,
    prose_batch,
    quietly,
    random_batch,
    random_peft,
    their_logits,
    torch,
    transformers_loss,
)

import minilora
from minilora import layers, lora
from minilora.config import ALL_LINEAR, LoraConfig
from minilora.formats import method_format
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.formats.pretrained import load
from minilora.methods import dora
from minilora.methods.method import MethodConfig
from minilora.methods.registry import METHODS
from minilora.tree import flatten, get, unflatten

TASK = {"task_type": "CAUSAL_LM"}
LORA = {"target_modules": ALL, "r": 4, "lora_alpha": 6, **TASK}
CONFIGS = {
    "dora": peft.LoraConfig(use_dora=True, **LORA),
    "pissa": peft.LoraConfig(init_lora_weights="pissa", **LORA),
    "vera": peft.VeraConfig(r=5, **TASK),
    "ia3": peft.IA3Config(**TASK),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=5, **TASK),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=5, **TASK),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=5, **TASK),
}
EVERY = pytest.mark.parametrize("name", CONFIGS)


def renamed(gradients):
    """{path: gradient} of a tree, a prompt and P-tuning's layers under one name on both sides."""
    names = {".default": "", "model.prompt_": "prompt_"}
    names["prompt_encoder.embedding.weight"] = "prompt_embeddings"
    gradients = flatten(gradients)
    for old, new in names.items():
        gradients = {path.replace(old, new): g for path, g in gradients.items()}
    return gradients


def prefix(gradients):
    """A prefix's as one leaf, as PEFT has it."""
    return method_format.tensors(gradients, MethodConfig("prefix"))


def loaded(theirs, name, model, folder):
    """(adapters, model) of what PEFT saved; P-tuning's network, which it drops, beside it."""
    adapters, model, _ = load_adapter(peft_folder(folder, theirs), model)
    if name == "p-tuning":
        encoder = theirs.prompt_encoder["default"].state_dict().items()
        adapters = unflatten({f"model.prompt_encoder.{p}": w.numpy().copy() for p, w in encoder})
    return adapters, model


# As for LoRA alone: noise is 3e-6 of the logits, ten times that of a leaf's gradient in SmolLM2; a
# wrong term is 1e-2 and more. DoRA in SmolLM2 has three times as much: each of its 210 products is
# scaled by the norms of its rows, sums of some 1,000 squares, which are off by up to 3.5 roundings
# in torch and 2.2 here. Such errors need not average out as those of a product's terms do: 60
# products one behind the other make 60·5.7·6e-8 = 2e-5 of the logits, on top of the 1e-5, and
# ten times as much in the gradients.
LOGITS, GRADIENTS = 1e-5, 1e-4
ROW_NORMS = 3
# How far float32 is from float64 on SmolLM2 depends on the order in which the products add: IA³'s
# gradients here are off by 4e-5 with the kernels of OpenBLAS for Zen 4, by 1.1e-4 with Haswell's.
REAL = 3

# For PiSSA both sides decompose the weights anew, and PEFT in float32. What it leaves of a weight W
# is that of another matrix, W + E, where ‖E‖ is one or two roundings of σ₁ for each of its n =
# min(out, in) directions: u·σ₁·√n. Taking the r largest parts away changes what is left by up to
# ‖E‖·σᵣ/(σᵣ − σᵣ₊₁), because a part of E that turns uᵣ towards uᵣ₊₁ turns it by ‖E‖/(σᵣ − σᵣ₊₁).
# Ours is decomposed in float64. So the residuals may differ by RESIDUAL of these units. Each of
# them changes the output of its product by its share of ‖W‖; the differences of several weights
# are independent, so their squares add. `same_residuals` holds the bound of the logits to that.
RESIDUAL = 2
PISSA = {"random Llamas": 10, "SmolLM2": 40}  # times LOGITS and GRADIENTS


def kind(what, name):
    """(the row's name, how many times the bounds)."""
    if name == "pissa":
        return f"{what} with PiSSA", PISSA[what]
    if (what, name) == ("SmolLM2", "dora"):
        return f"{what} with DoRA", ROW_NORMS
    return f"{what} with other methods", REAL if what == "SmolLM2" else 1


def same_residuals(compared, what, theirs, adapters, model, dense):
    """What PiSSA leaves of each weight."""
    tensors, errors, shares = theirs.state_dict(), [], []
    for path in lora.adapted_paths(adapters):
        w, r = get(dense.base, path)["weight"], len(get(adapters, path)["lora_A"])
        residual = tensors[f"base_model.model.{path}.base_layer.weight"].numpy()
        small = np.float64(min(w, w.T, key=len))
        sigma = np.sqrt(np.linalg.eigvalsh(small @ small.T)[: -r - 2 : -1])  # the largest r + 1
        turned = sigma[r - 1] / (sigma[r - 1] - sigma[r])
        rounding = 2.0**-24 * sigma[0] * np.sqrt(len(small)) * turned
        difference = get(model.base, path)["weight"] - residual
        errors.append(np.linalg.norm(difference) / rounding)
        shares.append(RESIDUAL * rounding / np.linalg.norm(w))
    row = f"{what} with PiSSA: residual of each weight (in u·σ₁·√n·σᵣ/(σᵣ − σᵣ₊₁))"
    compared(row, "PEFT", errors, RESIDUAL)
    assert LOGITS + np.linalg.norm(shares) <= PISSA[what] * LOGITS


@pytest.fixture
def same_here(compared, same_logits):
    """same_here(what, whose, name, theirs, adapters, model, dense, tokens): logits of that method.

    On random Llamas they are not those of the dense base. And PiSSA's residuals.
    """

    def same_here(what, whose, name, theirs, adapters, model, dense, tokens):
        if name == "pissa":
            same_residuals(compared, what, theirs, adapters, model, dense)
        expected, (row, times) = their_logits(theirs, tokens), kind(what, name)
        row = f"{row}, {whose}"
        same_logits(row, "PEFT", expected, adapters, model, tokens, bound=times * LOGITS)
        if what == "random Llamas":
            assert relative(minilora.forward({}, dense, tokens), expected) > 0.01

    return same_here


@pytest.fixture
def folder_here(same_here, near_gradients, tmp_path):
    """folder_here(what, name, theirs, dense, tokens, batch): logits, the gradient of each leaf."""

    def folder_here(what, name, theirs, dense, tokens, batch):
        adapters, model = loaded(theirs, name, dense, tmp_path)
        same_here(what, "PEFT's folder", name, theirs, adapters, model, dense, tokens)
        real = what == "SmolLM2"  # peft_models.py says why its loss is taken in float64
        loss_of = float64_loss if real else transformers_loss
        expected = renamed(gradients_of(loss_of(theirs, batch), theirs))
        row, times = kind(what, name)
        against = "PyTorch + PEFT, loss in float64" if real else "PyTorch + PEFT"
        near_gradients(
            f"{row}: gradient of each leaf", against, expected, minilora.loss, adapters, model,
            batch, bound=times * GRADIENTS, named=prefix if name == "prefix" else renamed,
        )  # fmt: skip

    return folder_here


@EVERY
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients(tiny_llama, folder_here, name, tied):
    folder, batch = tiny_llama(tie_word_embeddings=tied), random_batch()
    theirs = random_peft(llama_of(folder), CONFIGS[name])
    folder_here("random Llamas", name, theirs, load(folder).model, batch["tokens"], batch)


def test_dropout_of_dora_with_one_mask(tiny_llama, tmp_path):
    """In training, what PEFT drops also enters the change of W₀x."""
    folder, path = tiny_llama(attention_bias=True), "model.layers.0.self_attn.q_proj"
    theirs = random_peft(llama_of(folder), use_dora=True, lora_dropout=0.5)
    adapters, model, _ = load_adapter(peft_folder(tmp_path, theirs), load(folder).model)
    node = get(model.base, path) | get(adapters, path)
    module = theirs.train().get_submodule(f"base_model.model.{path}")
    x = np.random.default_rng(0).standard_normal((2, 3, module.in_features), "f4")
    mask = torch.tensor(layers.dropout(np.ones_like(x), 0.5, np.random.default_rng(1)))
    module.lora_dropout["default"].register_forward_hook(lambda _, given, y: given[0] * mask)
    with torch.no_grad():
        expected = module(torch.tensor(x)).numpy()
    ours = dora.apply(layers.linear, x, node, np.random.default_rng(1))
    assert relative(ours, expected) < LOGITS
    assert relative(dora.apply(layers.linear, x, node, None), expected) > 0.01


@pytest.mark.slow
@EVERY
def test_on_the_real_base(smollm2, their_smollm2, prose, folder_here, name):
    """PiSSA in ten of the thirty blocks: PEFT's decomposition of all weights takes a while."""
    config = CONFIGS[name]
    if name == "pissa":
        config = replace(config, layers_to_transform=list(range(0, 30, 3)))
    theirs = random_peft(deepcopy(their_smollm2), config, size=0.001)
    # Points where float32 is good for 1e-4. Five times this prefix draws attention away from the
    # first token: one rounding of every weight then moves its gradient by 8e-5 in place of 6e-6.
    # Three times P-tuning's own rows have a gradient off by 4e-5 there, its own 2e-4.
    encoder = theirs.prompt_encoder["default"] if name in ("prompt", "prefix", "p-tuning") else None
    with torch.no_grad():
        if name in ("prompt", "prefix"):
            encoder.embedding.weight.mul_(0.1 if name == "prompt" else 0.02)
        elif name == "p-tuning":
            for p in encoder.mlp_head[4].parameters():
                p.mul_(3)
    batch = prose_batch(prose, (64, 50))
    folder_here("SmolLM2", name, theirs, smollm2[0], prose[:, :64], batch)


def our_method(name, model):
    """(adapters, model, config) of that method, every number moved away from its start."""
    of_lora = {"dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}
    if name in of_lora:
        config = LoraConfig(target_modules=ALL_LINEAR, **of_lora[name])
    else:
        size = METHODS[name].size
        config = MethodConfig(name, **({size: 5} if size else {}))
    return *our_adapter(model, config), config


@EVERY
def test_our_folders_in_peft(tiny_llama, tmp_path, tokens, same_here, name):
    folder = tiny_llama()
    dense, _ = load(folder)
    adapters, model, config = our_method(name, dense)
    save_adapter(tmp_path, adapters, model, config)
    with quietly():
        theirs = peft.PeftModel.from_pretrained(llama_of(folder), tmp_path).eval()
    same_here("random Llamas", "our folder", name, theirs, adapters, model, dense, tokens)


MERGED = [
    name for name in CONFIGS if name in METHODS and any(hook.merge for hook in METHODS[name].hooks)
]


@pytest.mark.parametrize("name", MERGED)
def test_merged_as_peft_merges(tiny_llama, tmp_path, tokens, same_logits, name):
    folder = tiny_llama(attention_bias=True, mlp_bias=True)
    model, _ = load(folder)
    theirs = random_peft(llama_of(folder), CONFIGS[name])
    adapters = load_adapter(peft_folder(tmp_path, theirs), model).adapters
    merged = minilora.merge(adapters, model)
    expected = their_logits(theirs.merge_and_unload(), tokens)
    same_logits("other methods merged", "PEFT's merge", expected, {}, merged, tokens)


OURS = sorted(METHODS.keys() - {"lora", *CONFIGS})


@pytest.mark.parametrize("name", [*OURS, "loftq"])
def test_peft_refuses_every_method_of_ours(tiny_llama, tmp_path, name):
    """The methods that have no folder of PEFT's, and LoftQ, whose settings PEFT asks for.

    Before that it asks for scipy, which is not installed here.
    """
    folder = tiny_llama()
    model, _ = load(folder)
    if name == "loftq":
        config = LoraConfig(init_lora_weights="loftq")
        adapters, model = minilora.get_peft_model(model, config, 0, "nf4")
    else:
        adapters, model, config = our_method(name, model)
    save_adapter(tmp_path, adapters, model, config)
    with pytest.raises((KeyError, ValueError, TypeError, ImportError)), quietly():
        peft.PeftModel.from_pretrained(llama_of(folder), tmp_path)

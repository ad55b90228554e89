"""The whole family against PEFT: its folders here, ours there, the gradient of every leaf."""

from copy import deepcopy

import numpy as np
import pytest
from autograd import value_and_grad
from comparisons import forward, in_float64, relative
from peft_models import (
    ALL,
    llama_of,
    peft_folder,
    peft_loss,
    prose_batch,
    quietly,
    random_batch,
    their_logits,
)

from minilora import lora, method_format, model, starts
from minilora.checkpoint import load_adapter, save_adapter
from minilora.config import ALL_LINEAR, LoraConfig, MethodConfig
from minilora.methods import METHODS
from minilora.pretrained import load
from minilora.tree import flatten, tree_map

torch = pytest.importorskip("torch", reason="the peers group is not installed")
peft = pytest.importorskip("peft", reason="the peers group is not installed")

HERE, THERE = "PEFT's other methods read here", "our other methods in PEFT"
TASK = {"task_type": "CAUSAL_LM"}
CONFIGS = {
    "dora": lambda: peft.LoraConfig(use_dora=True, target_modules=ALL, r=4, lora_alpha=6, **TASK),
    "pissa": lambda: peft.LoraConfig(
        init_lora_weights="pissa", target_modules=ALL, r=4, lora_alpha=6, **TASK
    ),
    "ia3": lambda: peft.IA3Config(**TASK),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **TASK),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=5, **TASK),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **TASK),
}
EVERY = pytest.mark.parametrize("name", CONFIGS)


def moved_peft(llama, name, size=0.1):
    """PEFT's model of that method, every trained number moved away from its start."""
    torch.manual_seed(1)
    with quietly():
        theirs = peft.get_peft_model(llama, CONFIGS[name]())
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p += size * torch.randn_like(p)
    return theirs.eval()


def their_gradients(theirs, batch):
    """{our path: gradient}, a prefix's as one leaf and P-tuning's layers under our names."""
    peft_loss(theirs, batch).backward()
    found = {}
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            path = name.removeprefix("base_model.model.").replace(".default", "")
            path = path.replace("prompt_encoder.embedding.weight", "prompt_embeddings")
            if "lora_" in path:
                path = path.removesuffix(".weight")
            found[path] = p.grad.numpy()
    return found


def our_gradients(name, trees, batch, config):
    """As `their_gradients`."""
    _, grads = value_and_grad(model.loss)(*trees, batch, config)
    if name == "prefix":
        return method_format.tensors(grads, MethodConfig("prefix"))
    leaves = flatten(grads)
    if name in ("prompt", "p-tuning"):
        leaves = {path.removeprefix("model."): g for path, g in leaves.items()}
    return {
        path.replace("prompt_encoder.embedding.weight", "prompt_embeddings"): g
        for path, g in leaves.items()
    }


def trees_of(theirs, name, base, folder):
    """(adapters, frozen) of what PEFT saved; P-tuning's network, which it drops, beside it."""
    adapters, frozen, _ = load_adapter(peft_folder(folder, theirs), base)
    if name == "p-tuning":
        encoder = theirs.prompt_encoder["default"].state_dict()
        adapters = {"model": {"prompt_encoder": {}}}
        for path, w in encoder.items():
            lora.put(adapters, f"model.prompt_encoder.{path}", w.numpy().copy())
    return adapters, frozen


def relative_errors(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [np.linalg.norm(ours[p] - g) / np.linalg.norm(g) for p, g in theirs.items()]


@pytest.fixture
def same_decomposition(compared):
    """As `same_logits`, for PiSSA: both sides decompose the base's weights anew, PEFT in float32.

    Singular vectors are known to u·σ₁/(σᵣ − σᵣ₊₁) only, and so is what is left of the weights; of
    random matrices the gap is a hundredth of σ₁, so that the noise is a hundred u.
    """

    def same_decomposition(what, against, theirs, adapters, base, tokens, config):
        ours, precise = forward(adapters, base, tokens, config)
        difference, noise = relative(ours, theirs), relative(ours, precise)
        compared("PiSSA's folders both ways: logits", against, difference, 1e-4, noise)

    return same_decomposition


@pytest.fixture
def same_method(compared, same_logits, same_decomposition, tmp_path):
    """same_method(what, name, theirs, base, config, batch): logits, and each leaf's gradient."""

    def same_method(what, name, theirs, base, config, batch):
        adapters, frozen = trees_of(theirs, name, base, tmp_path)
        logits = same_decomposition if name == "pissa" else same_logits
        expected = their_logits(theirs, batch["tokens"])
        logits(HERE, "PEFT", expected, adapters, frozen, batch["tokens"], config)
        expected = their_gradients(theirs, batch)
        ours = our_gradients(name, (adapters, frozen), batch, config)
        precise = our_gradients(name, map(in_float64, (adapters, frozen)), batch, config)
        compared(
            f"{what}: gradient of each leaf of other methods", "PyTorch + PEFT",
            relative_errors(ours, expected), 1e-4, floor=relative_errors(ours, precise),
        )  # fmt: skip

    return same_method


@EVERY
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients(tiny_llama, same_method, name, tied):
    folder = tiny_llama(tie_word_embeddings=tied)
    config, base, _ = load(folder)
    theirs = moved_peft(llama_of(folder), name)
    same_method("random Llamas", name, theirs, base, config, random_batch(256, B=3, T=24))


@pytest.mark.slow
@EVERY
def test_logits_and_gradients_on_the_real_base(smollm2, their_smollm2, prose, same_method, name):
    config, base, _, _ = smollm2
    theirs = moved_peft(deepcopy(their_smollm2), name, size=0.01)
    same_method("SmolLM2", name, theirs, base, config, prose_batch(prose, (128, 100)))


def our_adapter(name, base):
    """(adapters, frozen, config) of that method, every number moved away from its start."""
    rng = np.random.default_rng(2)
    if name in ("dora", "pissa"):
        start = "pissa" if name == "pissa" else True
        config = LoraConfig(
            target_modules=ALL_LINEAR, use_dora=name == "dora", init_lora_weights=start
        )
    else:
        config = MethodConfig(name, num_virtual_tokens=5)
    init = starts.init if name == "pissa" else METHODS[name]
    adapters, frozen = init(base, config, rng)
    moved = tree_map(lambda w: w + np.float32(0.1) * rng.standard_normal(w.shape, "f4"), adapters)
    return moved, frozen, config


@EVERY
def test_our_folders_in_peft(tiny_llama, tmp_path, tokens, same_logits, same_decomposition, name):
    folder = tiny_llama(num_key_value_heads=2)
    config, base, _ = load(folder)
    adapters, frozen, adapter_config = our_adapter(name, base)
    save_adapter(tmp_path, adapters, frozen, adapter_config, folder)
    with quietly():
        theirs = peft.PeftModel.from_pretrained(llama_of(folder), tmp_path).eval()
    expected = their_logits(theirs, tokens)
    logits = same_decomposition if name == "pissa" else same_logits
    logits(THERE, "PEFT", expected, adapters, frozen, tokens, config)
    bare = model.forward({}, base, tokens, config)
    assert np.abs(bare - expected).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_merged_as_peft_merges(tiny_llama, tmp_path, tokens, same_logits, name):
    folder = tiny_llama(attention_bias=True, mlp_bias=True)
    config, base, _ = load(folder)
    theirs = moved_peft(llama_of(folder), name)
    adapters, frozen, _ = load_adapter(peft_folder(tmp_path, theirs), base)
    expected = their_logits(theirs.merge_and_unload(), tokens)
    same_logits(
        "other methods merged", "PEFT's merge", expected, {}, lora.merge(adapters, frozen), tokens,
        config,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["bitfit", "bottleneck"])
def test_peft_refuses_our_own_methods(tiny_llama, tmp_path, name):
    folder = tiny_llama()
    base = load(folder)[1]
    save_adapter(tmp_path, *our_adapter(name, base), folder)
    with pytest.raises((KeyError, ValueError, TypeError)), quietly():
        peft.PeftModel.from_pretrained(llama_of(folder), tmp_path)

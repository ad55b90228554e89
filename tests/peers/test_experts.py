"""The study `experts` against Mixtral of transformers, and PEFT's `target_parameters`."""

import numpy as np
import pytest
from comparisons import in_float64, relative
from peft_models import (
    llama_of,
    random_batch,
    random_peft,
    their_logits,
    transformers_loss,
)

from minilora import Model
from minilora.lessons.helpers.pretraining import llama
from minilora.lessons.studies.lora import experts_sweep
from minilora.model import lm_head
from minilora.tree import arrays, flatten, unflatten

CONFIG = llama(32, 64, 2, 2, 1)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FUSED = ["gate_up_proj", "down_proj"]


@pytest.fixture
def mixtral(random_model):
    """A random Mixtral: two layers of eight experts with eight hidden units each."""
    folder = random_model(
        "Mixtral", hidden_size=32, intermediate_size=8, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        num_local_experts=experts_sweep.EXPERTS, num_experts_per_tok=experts_sweep.TOP_K,
        rms_norm_eps=CONFIG.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
    )  # fmt: skip
    return llama_of(folder)


def ours_of(theirs):
    """The same model: the names and the layout of the tensors are the same."""
    tensors = {name: p.detach().numpy().copy() for name, p in theirs.named_parameters()}
    return Model(CONFIG, unflatten(tensors))


def adapted_modules(theirs):
    """(name, module) of each that has an adapter."""
    return [(name, part) for name, part in theirs.named_modules() if hasattr(part, "lora_A")]


def adapter_of(theirs, of=lambda p: p.detach()):
    """Our tree of the pairs of a PEFT model: their values, or of(p) of each.

    PEFT stores the A of a fused weight as (E·r, in), expert by expert, and its B as (out, r·E),
    rank by rank.
    """
    leaves = {}
    for name, module in adapted_modules(theirs):
        path = name.removeprefix("base_model.model.")
        a, b = (of(part["default"].weight).numpy() for part in (module.lora_A, module.lora_B))
        if hasattr(module, "parameter_name"):
            layer = path.partition(".mlp.")[0]
            path = f"{layer}.mlp.experts.{module.parameter_name.removesuffix('_proj')}"
            a = a.reshape(experts_sweep.EXPERTS, -1, a.shape[-1])
            b = b.reshape(len(b), -1, experts_sweep.EXPERTS).transpose(2, 0, 1)
        leaves |= {f"{path}.lora_A": a.copy(), f"{path}.lora_B": b.copy()}
        leaves |= {f"{path}.lora_scaling": module.scaling["default"], f"{path}.lora_dropout": 0.0}
    return unflatten(leaves)


def logits(adapters, model, tokens):
    base = experts_sweep.overlay(model.base, adapters)
    x = experts_sweep.states(base, model, tokens, np.zeros_like(tokens), [])
    return x @ lm_head(base).T


def test_a_mixture_and_its_adapter(mixtral, tokens, compared, near_gradients):
    model, what, against = ours_of(mixtral), "a mixture of experts", "PEFT, target_parameters"

    def same_logits(what, against, theirs, adapters):
        ours = logits(adapters, model, tokens)
        floor = relative(ours, logits(in_float64(adapters), in_float64(model), tokens))
        difference = relative(ours, their_logits(theirs, tokens))
        compared(f"{what}: logits", against, difference, 1e-5, floor)

    same_logits(what, "transformers, Mixtral", mixtral, {})
    theirs = random_peft(
        mixtral, target_modules=ATTENTION, target_parameters=FUSED, r=2, lora_alpha=4
    )
    adapters = adapter_of(theirs)
    same_logits(f"{what} with an adapter", against, theirs, adapters)

    batch = random_batch(256, *tokens.shape)
    transformers_loss(theirs, batch).backward()
    expected = flatten(arrays(adapter_of(theirs, lambda p: p.grad)))
    assert len(expected) == 2 * 6 * 2
    row = f"{what}: gradient of each factor", against
    near_gradients(*row, expected, experts_sweep.loss, adapters, model, batch)


@pytest.mark.parametrize(
    "targets, adapted",
    [
        ([*ATTENTION, "gate_proj", "up_proj", "down_proj"], ATTENTION),  # names of Llama, not w1, …
        ([*ATTENTION, "w1", "w2", "w3"], [*ATTENTION, *FUSED]),
        ("all-linear", [*ATTENTION, *FUSED, "weight"]),  # "weight" is that of the router
    ],
)
def test_what_target_modules_adapts(mixtral, targets, adapted):
    """As the study says: names that match nothing are ignored if another one matches."""
    theirs = random_peft(mixtral, target_modules=targets, r=2)
    modules = adapted_modules(theirs)
    names = {getattr(part, "parameter_name", name.rpartition(".")[2]) for name, part in modules}
    assert names == set(adapted)

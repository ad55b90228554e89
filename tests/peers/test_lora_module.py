"""The `nn.Module` that lesson 1 shows as text, against `layers.linear`: output and gradients."""

import re
from pathlib import Path

import numpy as np
from peft_models import torch

from minilora import layers
from minilora.layers import value_and_grad

LESSON = Path(__file__).parents[2] / "lessons" / "01_two_small_matrices.py"


def lora_linear():
    """Return the class of the only block of Python in lesson 1."""
    lesson = LESSON.read_text("utf-8")
    (block,) = re.findall(r"^# ```python\n(.*?)^# ```$", lesson, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("#").removeprefix(" ") for line in block.splitlines()]
    names = {}
    exec("\n".join(lines), names)
    return names["LoRALinear"]


def test_the_module_of_lesson_1_starts_at_the_base():
    base = torch.nn.Linear(48, 32)
    layer, x = lora_linear()(base), torch.randn(5, 48)
    assert torch.equal(layer(x), base(x))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]
    bound = layer.A.detach().abs().max().item()
    assert 0.9 / 48**0.5 < bound <= 1.0001 / 48**0.5  # 384 numbers: one is near the bound


def test_the_module_of_lesson_1_computes_what_linear_computes():
    torch.manual_seed(0)
    layer = lora_linear()(torch.nn.Linear(48, 32, dtype=torch.float64), 4, 10).double()
    torch.nn.init.normal_(layer.B)
    x = torch.randn(5, 48, dtype=torch.float64)
    theirs = torch.tanh(layer(x)).sum()
    theirs.backward()
    trained = {"lora_A": layer.A, "lora_B": layer.B}
    numbers = trained | dict(layer.base.named_parameters())
    node = {name: p.detach().numpy() for name, p in numbers.items()}
    node |= {"lora_scaling": 10 / 4, "lora_dropout": 0.0}

    def loss(factors):
        return layers.np.sum(layers.np.tanh(layers.linear(x.numpy(), node | factors)))

    ours, gradient = value_and_grad(loss)({name: node[name] for name in trained})
    assert np.isclose(ours, theirs.item(), rtol=1e-12, atol=0)
    for name, p in trained.items():
        np.testing.assert_allclose(gradient[name], p.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert layer.base.weight.grad is None and layer.base.bias.grad is None

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


def test_the_module_of_lesson_1_is_linear_with_an_adapter():
    torch.manual_seed(0)
    base = torch.nn.Linear(48, 32, dtype=torch.float64)
    layer = lora_linear()(base, 4, 10).double()
    x = torch.randn(5, 48, dtype=torch.float64)
    assert torch.equal(layer(x), base(x)), "B is zero"
    bound = layer.A.detach().abs().max().item()
    assert 0.9 / 48**0.5 < bound <= 1.0001 / 48**0.5  # 192 numbers: one is near the bound

    torch.nn.init.normal_(layer.B)
    theirs = torch.tanh(layer(x)).sum()
    theirs.backward()
    trained = {"lora_A": layer.A, "lora_B": layer.B}
    factors = {name: p.detach().numpy() for name, p in trained.items()}
    node = {name: p.detach().numpy() for name, p in base.named_parameters()}
    node |= {"lora_scaling": 10 / 4, "lora_dropout": 0.0}

    def loss(factors):
        return layers.np.sum(layers.np.tanh(layers.linear(x.numpy(), node | factors)))

    ours, gradient = value_and_grad(loss)(factors)
    assert np.isclose(ours, theirs.item(), rtol=1e-12, atol=0)
    for name, p in trained.items():
        np.testing.assert_allclose(gradient[name], p.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert base.weight.grad is None and base.bias.grad is None

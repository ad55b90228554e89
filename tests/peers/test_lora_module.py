"""The `nn.Module` that lesson 1 shows as text, against `layers.linear`: output and gradients."""

import re

import numpy as np
from lesson_functions import LESSONS
from peft_models import torch

from minilora import layers
from minilora.layers import value_and_grad


def lora_linear():
    """Return the class of the only block of Python in lesson 1."""
    lesson = (LESSONS / "01_two_small_matrices.py").read_text("utf-8")
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
    rng = np.random.default_rng(0)
    (n, out, r), alpha = (48, 32, 4), 10
    layer = lora_linear()(torch.nn.Linear(n, out, dtype=torch.float64), r, alpha).double()
    x, C = rng.standard_normal((5, n)), rng.standard_normal((5, out))
    factors = {"lora_A": rng.standard_normal((r, n)), "lora_B": rng.standard_normal((out, r))}
    with torch.no_grad():
        layer.A.copy_(torch.from_numpy(factors["lora_A"]))
        layer.B.copy_(torch.from_numpy(factors["lora_B"]))
    fixed = {name: p.detach().numpy() for name, p in layer.base.named_parameters()}
    fixed |= {"lora_scaling": alpha / r, "lora_dropout": 0.0}

    def loss(factors):
        return layers.np.sum(C * layers.np.tanh(layers.linear(x, fixed | factors)))

    theirs = (torch.from_numpy(C) * torch.tanh(layer(torch.from_numpy(x)))).sum()
    theirs.backward()
    ours, gradient = value_and_grad(loss)(factors)
    assert np.isclose(ours, theirs.item(), rtol=1e-12, atol=0)
    np.testing.assert_allclose(gradient["lora_A"], layer.A.grad.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient["lora_B"], layer.B.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert layer.base.weight.grad is None and layer.base.bias.grad is None

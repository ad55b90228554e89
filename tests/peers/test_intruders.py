"""Intruders as the study `intruder_dimensions` finds and scales them, against PEFT's function."""

import ast
from pathlib import Path

import numpy as np
import pytest
from peft_models import peft, torch

intruder_module = pytest.importorskip("peft.tuners.lora.intruders", reason="needs peft 0.19")

LESSON = Path(__file__).parents[2] / "lessons/studies/since_2023/intruder_dimensions.py"
R = 4


def lesson_functions():
    """Return the functions of the lesson by name, without running its experiments."""
    tree = ast.parse(LESSON.read_text("utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = {"np": np}
    exec(compile(tree, LESSON, "exec"), found)
    return found


def model_with_adapter(size):
    """Return (PEFT model of one linear layer, the layer, W0): ‖ΔW‖ is `size` times ‖W0‖."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(48, 64, bias=False)).double()
    config = peft.LoraConfig(r=R, target_modules=["0"], init_lora_weights=False)  # B is random, too
    model = peft.get_peft_model(net, config)
    layer = model.base_model.model[0]
    W0 = layer.get_base_layer().weight.data
    B = layer.lora_B["default"].weight.data
    B.mul_(size * W0.norm() / layer.get_delta_weight("default").norm())
    return model, layer, W0.numpy().copy()


@pytest.mark.parametrize("size", [0.05, 1.0])
@pytest.mark.parametrize("factor", [0.75, 0.0])
def test_intruders_are_found_and_scaled_as_in_peft(size, factor):
    lesson = lesson_functions()
    model, layer, W0 = model_with_adapter(size)
    delta = layer.get_delta_weight("default").detach().numpy().astype(np.float64)
    intruder_module.reduce_intruder_dimension(
        model, mitigation_lambda=factor, top_k=10, threshold_epsilon=0.5, logging_sink=None
    )
    theirs = layer.get_delta_weight("intruder_reduced").detach().numpy()
    found = lesson["intruders"](W0, W0 + delta, top=10, epsilon=0.5)
    assert (len(found) > 0) == (size == 1), "only the large update has intruders"
    # PEFT stores the result as an adapter of the same rank, so it keeps only rank r of it
    whole = lesson["scale_down"](W0, W0 + delta, factor) - W0
    U, S, V = np.linalg.svd(whole, full_matrices=False)
    ours = (U[:, :R] * S[:R]) @ V[:R]
    largest = np.abs(delta).max()
    # the adapters are float32 where PEFT casts them, so the error is some 2^-24 per product
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * largest)
    if len(found):
        assert np.abs(theirs - whole).max() > 1e-3 * largest, "the rest of the rank is lost"

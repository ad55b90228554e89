"""Training through the merge: its lesson asserts that the merged model has the same bits."""

from dataclasses import replace

import numpy as np
import pytest
from autograd import numpy as anp
from autograd import value_and_grad
from autograd.extend import defvjp, primitive
from numpy.testing import assert_allclose
from outcomes import refused

from minilora import LoraConfig, get_peft_model, load, nf4
from minilora.lessons.helpers import through_merge


def test_the_gradients_are_those_of_an_explicit_straight_through_estimator():
    rng = np.random.default_rng(0)
    x, w, a, b, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((2, 3, 64), (5, 64), (2, 64), (5, 2), (2, 3, 5))
    )

    @primitive
    def quantized(w):
        return nf4.quantize(w, double_quant=True).dequantize()

    defvjp(quantized, lambda y, w: lambda g: g)

    def with_matrix(leaves):
        x, a, b = leaves
        return anp.sum(g * (x @ quantized(w + 2 * (b @ a)).T))

    def through(leaves):
        x, a, b = leaves
        node = {"weight": w, "lora_A": a, "lora_B": b, "lora_scaling": 2.0, "lora_dropout": 0.0}
        return anp.sum(g * through_merge.linear("nf4-dq", x, node))

    value, expected = value_and_grad(with_matrix)((x, a, b))
    found_value, found = value_and_grad(through)((x, a, b))
    assert_allclose(found_value, value, rtol=1e-4)
    for one, other in zip(found, expected):
        assert_allclose(one, other, rtol=1e-4, atol=1e-4)


PLAIN = LoraConfig(target_modules="all-linear")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(),  # without LoRA, a projection stayed dense, or was not quantized again
        replace(PLAIN, use_dora=True),
        replace(PLAIN, lora_dropout=0.1),
    ],
)
def test_adapters_that_would_not_be_those_of_the_merged_model_are_refused(config):
    started = get_peft_model(load("micro").model, config)
    with refused(r"^model\.layers\.0\..*_proj.*all-linear"):
        through_merge.through(*started, "nf4-dq")


def test_products_in_bfloat16_are_refused():
    """The merged model computes in float32."""
    started = get_peft_model(load("micro", compute_dtype="bfloat16").model, PLAIN)
    with refused("needs `compute_dtype` float32"):
        through_merge.through(*started, "nf4")

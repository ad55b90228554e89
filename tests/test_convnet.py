"""The convolution of the studies is the sum that defines it, and so is its backward pass."""

import numpy as np
import pytest
from autograd.test_util import check_grads
from outcomes import refused

from minilora import TrainConfig
from minilora.lessons.helpers import convnet


def test_a_convolution_is_a_linear_layer_on_patches():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 16, 2))
    kernel = rng.standard_normal((5, 18))  # 5 outputs, 3 · 3 · 2 inputs

    def convolved(x):
        return convnet.layers.matmul(convnet.patches(x, 3, 2, 1), kernel)

    # y[i, j] = Σ W[a, b, c] · x[2i + a − 1, 2j + b − 1, c], at i = 4, j = 6
    by_hand = (kernel.reshape(5, 3, 3, 2) * x[0, 7:10, 11:14]).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(convolved(x)[0, 4, 6], by_hand, rtol=0, atol=1e-13)
    check_grads(convolved, modes=["rev"], order=1)(x)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"keep_best": True}, "`keep_best` has no effect here"),
        ({"learning_rate": 1e30, "iters": 3, "warmup_ratio": 0.0}, "the gradient norm is"),
    ],
)
@np.errstate(all="ignore")
def test_a_setting_that_does_nothing_and_a_run_that_diverges_are_refused(settings, message):
    rng = np.random.default_rng(0)
    base = convnet.network(3, rng)
    batch = rng.standard_normal((4, 16, 16)).astype("f4"), np.array([0, 1, 2, 0])
    with refused(message):
        convnet.fit(base, base, batch, TrainConfig(**settings))

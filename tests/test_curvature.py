"""The largest curvature, against the eigenvalues of a quadratic whose Hessian is known."""

import numpy as np
from models import vector

from minilora.lessons.helpers.curvature import largest_curvature


def test_it_is_the_largest_eigenvalue_in_the_given_units():
    rng = np.random.default_rng(0)
    at = {"a": {"lora_A": rng.standard_normal((2, 5), np.float32)}, "b": np.zeros(4, np.float32)}
    H = rng.standard_normal((14, 14))
    H = H + H.T - 3 * np.eye(14)  # the eigenvalue of the largest magnitude is negative

    def gradient(tree):
        g = H @ vector(tree)
        return {"a": {"lora_A": g[:10].reshape(2, 5)}, "b": g[10:]}

    S = np.diag([1.0] * 10 + [4.0] * 4)
    expected = np.linalg.eigvalsh(S @ H @ S)
    assert -expected[0] > expected[-1]
    found = largest_curvature(gradient, at, {"a.lora_A": 1.0, "b": 4.0}, steps=14)
    assert np.isclose(found, expected[-1], rtol=1e-3)

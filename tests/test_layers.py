"""The reference operations against plain loops. test_model.py has norms, SwiGLU and gradients."""

import math
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
from autograd import make_vjp
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FLOATS, TINY, U32, U64, bits, random_starts, seeds
from toy_models import LLAMA3

from minilora import layers

sizes = st.integers(1, 5)


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


# ------------------------------------------------------------------------------ projections


@settings(max_examples=25)
@given(seeds, sizes, sizes, sizes, st.sampled_from([0.0, 0.4]))
def test_linear_is_the_equation(seed, out, into, r, p):
    x, w, bias, a, b = arrays(seed, (2, 3, into), (out, into), out, (r, into), (out, r))
    node = {
        "weight": w, "bias": bias, "lora_A": a, "lora_B": b, "lora_scaling": 1.5, "lora_dropout": p,
    }  # fmt: skip
    # h = W₀x + (α/r)·BAx + b   (LoRA, Eq. 3), with dropout only of A's input
    z = layers.dropout(x, p, np.random.default_rng(1))
    expected = x @ w.T + 1.5 * z @ (b @ a).T + bias
    # sums of up to thirty products of numbers below five
    found = layers.linear(x, node, np.random.default_rng(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=30**2 * 5**3 * U64)


def test_a_quantized_weight_is_unpacked_once_each_way():
    # QLoRA, Sec. 3: the dense copy lives only inside the product, in both directions.
    x, w = arrays(1, (2, 3, 4), (5, 4))
    dequantize = Mock(return_value=w)
    weight = SimpleNamespace(dequantize=dequantize)
    back, y = make_vjp(lambda x: layers.matmul(x, weight))(x)
    assert dequantize.call_count == 1 and np.array_equal(y, x @ w.T)
    assert np.array_equal(back(y), y @ w) and dequantize.call_count == 2


# ---------------------------------------------------------------------------------- dropout


@FLOATS
def test_dropout_keeps_what_is_drawn_from_p_on(dtype):
    class Drawn:
        def random(self, shape, dtype):
            assert (shape, dtype) == ((4,), np.float32)
            return np.float32([0, 0.5, 0.75, 0.875])

    # [0, 1) has as many numbers below p as p is long; p itself is not one of them
    x = np.array([1, 2, 3, 4], dtype)
    y = layers.dropout(x, 0.75, Drawn())
    assert y.dtype == dtype and y.tolist() == [0, 0, 12, 16]
    assert layers.dropout(x, 0.75, None) is x is layers.dropout(x, 0, Drawn())


def test_every_row_has_a_generator_of_its_own():
    rng = layers.RowRng([[3], [1, 4], [1, 5, 9]])
    drawn = [np.random.default_rng(seed).random((3, 2), np.float32) for seed in rng.seeds]
    assert bits(rng.random((3, 3, 2), np.float32)) == bits(drawn)
    assert layers.row_rng(rng, 5) is rng and layers.row_rng(None, 5) is None
    # a seed or a generator gives every row a seed of 63 random bits
    from_int, from_rng = (layers.row_rng(r, 64).seeds for r in (5, np.random.default_rng(5)))
    assert from_int == from_rng != layers.row_rng(6, 64).seeds
    assert len({seed for (seed,) in from_int}) == 64
    # that 64 rows have none above half of 2⁶³ has the chance 2⁻⁶⁴
    assert [2**62] <= max(from_int) < [2**63]


# ------------------------------------------------------------------------- norm and SwiGLU


@FLOATS
def test_swiglu_far_from_zero(dtype):
    # Nothing bounds a gate, and e⁹⁰ is no float32, e⁸⁰⁰ no float64 any more.
    gate, one = np.array([-800, -90, -50, 50, 90, 800], dtype), np.ones(6, dtype)
    back, y = make_vjp(lambda gate: layers.swiglu(gate, one))(gate)
    # gate·σ(gate) falls short of relu by |gate|·e^−|gate|, at most 50·e⁻⁵⁰ < 1e-19
    np.testing.assert_allclose(y, np.maximum(gate, 0), rtol=4 * U32, atol=1e-19)
    np.testing.assert_allclose(back(one), gate > 0, rtol=4 * U32, atol=1e-19)


# --------------------------------------------------------------------------------- rotation


@FLOATS
def test_the_angles_are_float32_as_checkpoints_are_trained_with(dtype):
    """A larger dtype holds the cosine of the same rounded angle. tests/peers has the bits."""
    frequencies, t = layers.rope_frequencies(TINY), np.array([[0, 1, 777], [100, 2000, 30000]])
    angles = np.float32(t)[..., None] * frequencies
    found = np.stack(layers.rope_cos_sin(t, TINY, dtype))
    assert frequencies.dtype == np.float32 and found.dtype == dtype
    assert np.array_equal(found, [np.cos(angles), np.sin(angles)])


def test_frequencies_for_longer_contexts():
    config = replace(TINY, head_dim=64, rope_theta=500000.0)
    plain, new = map(layers.rope_frequencies, (config, replace(config, rope_scaling=LLAMA3)))
    assert new.dtype == np.float32
    # as Llama 3.1's reference code has it, one wavelength at a time
    for f, got in zip(plain.tolist(), new.tolist(), strict=True):
        wavelength = 2 * math.pi / f
        # 0 above a wavelength of 8192/1, 1 below 8192/4: all three kinds occur
        smooth = min(1, max(0, (8192 / wavelength - 1.0) / (4.0 - 1.0)))
        # `smooth` has an error of 5 roundings of a number up to 4 (over 3), weighed by at most f
        assert abs(got - (1 - smooth) * f / 8 - smooth * f) <= 12 * U32 * f


# -------------------------------------------------------------------------------- attention


windows = st.none() | st.integers(1, 6)


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(0, 4), windows)
def test_a_window_is_the_last_keys_of_those(seed, B, T, past, window):
    """Of the cached keys, and those of the same example that are not later."""
    starts = random_starts(np.random.default_rng(seed), B, T)
    seen = layers.attention_mask(starts, past + T, window)
    assert seen.shape == (B, T, past + T) and seen.dtype == bool
    for b, t, s in np.ndindex(seen.shape):
        own = [*range(past), *range(past + starts[b, t], past + t + 1)]
        assert seen[b, t, s] == (s in own[-(window or 0) :])

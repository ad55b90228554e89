"""Int8: row absmax; and the lessons' LLM.int8: the integer product, and outlier columns."""

import llm_int8
import numpy as np
import pytest
from arrays import KINDS, weights
from hypothesis import given
from hypothesis import strategies as st

from minilora.config import InputError
from minilora.kernels import low_precision
from minilora.kernels import weights as kernel_weights
from minilora.kernels.weights import dense, matmul
from minilora.quant import int8

EPS = 2.0**-24  # the largest relative error of one float32 operation

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)
shapes = st.tuples(st.integers(1, 60), st.integers(1, 200))


@given(seeds, kinds, shapes)
def test_error_is_at_most_half_a_step(seed, kind, shape):
    w = weights(kind, shape, seed)
    q = int8.quantize(w)
    assert q.codes.dtype == np.int8 and q.codes.min() >= -127
    error = np.abs(q.dequantize().astype(np.float64) - w)
    # half of absmax/127; three operations are rounded before the code is chosen, two after it
    absmax = np.abs(w).max(axis=1, keepdims=True).astype(np.float64)
    assert (error <= absmax * (0.5 / 127 + 5 * EPS)).all()


@given(seeds, kinds, shapes)
def test_quantizing_what_was_dequantized_gives_the_same_codes(seed, kind, shape):
    q = int8.quantize(weights(kind, shape, seed))
    np.testing.assert_array_equal(int8.quantize(q.dequantize()).codes, q.codes)


@given(seeds, kinds, shapes)
def test_loop_gives_the_bits_of_the_reference(seed, kind, shape):
    q = int8.quantize(weights(kind, shape, seed))
    np.testing.assert_array_equal(dense(q), q.dequantize())


def test_loop_gives_the_bits_of_the_reference_on_several_threads():
    q = int8.quantize(weights("normal", (501, 333)))
    np.testing.assert_array_equal(dense(q), q.dequantize())


@given(seeds, kinds, shapes)
def test_a_vector_is_multiplied_from_the_codes(seed, kind, shape):
    q = int8.quantize(weights(kind, shape, seed))
    x = weights("normal", (1, shape[1]), seed + 1)[0]
    w = q.codes * (q.absmax[:, None].astype(np.float64) / 127)
    # The scale has two roundings, each product and sum one, the last product one. A scale or a
    # product below float32's range is zero.
    bound = (shape[1] + 8) * EPS * (np.abs(w) @ np.abs(x)) + 200 * np.abs(x).sum() * 2.0**-126
    y = low_precision.int8_matvec(q, x)
    assert y.dtype == np.float32 and (np.abs(y - w @ x) <= bound).all()
    for rows in (x, x[None], x[None, None]):
        assert matmul(rows, q).tobytes() == y.tobytes()


def test_a_single_token_makes_no_dense_weight(monkeypatch):
    q = int8.quantize(weights("normal", (5, 7)))
    monkeypatch.setitem(kernel_weights.READ_ROWS, int8.Int8, None)  # decoding rows would fail
    assert matmul(np.ones((1, 1, 7), np.float32), q).shape == (1, 1, 5)
    with pytest.raises(ValueError, match="shape"):
        low_precision.int8_matvec(q, np.ones(6, np.float32))


def test_golden():
    q = int8.quantize(np.array([[1, -0.5, 0.25, 0], [0, 0, 0, 0], [-254, 127, 1, 3]]))
    # round to even: 63.5 -> 64, 0.5 -> 0, 1.5 -> 2
    assert q.codes.tolist() == [[127, -64, 32, 0], [0, 0, 0, 0], [-127, 64, 0, 2]]
    assert q.absmax.tolist() == [1, 0, 254]
    assert q.nbytes == 12 + 3 * 4 and q.shape == (3, 4) and q.block_size == 4


def test_rows_too_small_to_divide_by_lose_less_than_their_size():
    w = np.full((1, 8), 1e-37, np.float32)
    assert np.abs(int8.quantize(w).dequantize() - w).max() < 1e-37


@given(seeds, st.integers(1, 20), st.integers(1, 20), st.integers(1, 3000))
def test_the_integer_product_is_exact(seed, n, out, d):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-127, 128, (k, d)).astype(np.int8) for k in (n, out))
    expected = a.astype(np.int64) @ b.astype(np.int64).T
    np.testing.assert_array_equal(llm_int8.integer_product(a, b), expected)


def test_the_largest_sum_that_float32_holds():
    a = np.full((1, 3 * llm_int8.EXACT), 127, np.int8)
    assert llm_int8.integer_product(a, a).tolist() == [[3 * llm_int8.EXACT * 127**2]]
    assert llm_int8.EXACT * 127**2 < 2**24 <= (llm_int8.EXACT + 1) * 127**2


def exact(x, q):
    """x Wᵀ in float64 with the dequantized W."""
    return x.astype(np.float64) @ q.dequantize().astype(np.float64).T


def product_bound(x, q, threshold):
    """The largest error of quantizing x: half a step of its row per quantized column."""
    large = np.abs(x) >= threshold
    kept = ~large.any(axis=0)
    step = np.abs(np.where(large, 0, x)).max(axis=-1, keepdims=True) / 127
    w, d = np.abs(q.dequantize().astype(np.float64)), x.shape[-1]
    rounding = 2 * (d + 8) * EPS * (np.abs(x) @ w.T)
    return step / 2 * w[:, kept].sum(axis=1) * (1 + 8 * EPS) + rounding + 1e-30


@given(seeds, st.integers(1, 20), shapes, st.booleans())
def test_matmul_is_the_product_up_to_the_quantization_of_x(seed, n, shape, outliers):
    q = int8.quantize(weights("normal", shape, seed))
    x = weights("normal", (n, shape[1]), seed + 1)
    if outliers:
        x[n // 2, shape[1] // 2] = -60
    error = np.abs(llm_int8.matmul(x, q) - exact(x, q))
    assert (error <= product_bound(x, q, 6.0)).all()


def test_outlier_columns_save_the_rest():
    q = int8.quantize(weights("normal", (64, 256)))
    x = weights("normal", (16, 256), 1)
    x[:, 17] *= 100  # one feature, large in every row, as in large language models
    decomposed, plain = (
        np.abs(llm_int8.matmul(x, q, t) - exact(x, q)).mean() for t in (6.0, np.inf)
    )
    # without it every step is as large as the outlier demands: about 100/3.5 times
    assert plain > 10 * decomposed


def test_a_value_at_the_threshold_is_an_outlier():
    q = int8.quantize(np.eye(2, dtype=np.float32))
    x = np.array([[6.0, 0.011], [0.0, 0.017]], np.float32)  # 0.011 / 6 · 127 would round to 0
    np.testing.assert_allclose(llm_int8.matmul(x, q), x, rtol=4 * EPS)
    assert llm_int8.matmul(x, q, threshold=np.nextafter(np.float32(6), np.float32(7)))[0, 1] == 0


def test_matmul_keeps_leading_axes():
    q = int8.quantize(weights("normal", (5, 12)))
    x = weights("normal", (2, 3, 12), 1)
    y = llm_int8.matmul(x, q)
    assert y.shape == (2, 3, 5) and y.dtype == np.float32
    np.testing.assert_array_equal(y[1, 2], llm_int8.matmul(x[1, 2], q))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    w = weights("normal", (4, 4))
    w[2, 1] = value
    with pytest.raises(InputError, match="NaN or an infinity"):
        int8.quantize(w)

"""Int8: row absmax; and the LLM.int8 of a study, which itself checks its error."""

import numpy as np
from arrays import KINDS, weights
from hypothesis import given
from hypothesis import strategies as st
from models import U32, seeds
from numpy.testing import assert_allclose, assert_array_equal

from minilora.kernels.weights import dense
from minilora.lessons.helpers import llm_int8
from minilora.quant import int8

shapes = st.tuples(st.integers(1, 60), st.integers(1, 200))


@given(seeds, st.sampled_from(KINDS), shapes)
def test_any_matrix(seed, kind, shape):
    w = weights(kind, shape, seed)
    q = int8.quantize(w)
    assert q.codes.dtype == np.int8 and q.codes.min() >= -127
    back = q.dequantize()
    # half of absmax/127; three operations are rounded before the code is chosen, two after it
    absmax = np.abs(w).max(axis=1, keepdims=True).astype(np.float64)
    assert (np.abs(back.astype(np.float64) - w) <= absmax * (0.5 / 127 + 5 * U32)).all()
    assert_array_equal(int8.quantize(back).codes, q.codes)
    assert_array_equal(dense(q), back)  # the compiled loop


def test_golden():
    q = int8.quantize(np.array([[1, -0.5, 0.25, 0], [0, 0, 0, 0], [-254, 127, 1, 3]]))
    # round to even: 63.5 -> 64, 0.5 -> 0, 1.5 -> 2
    assert q.codes.tolist() == [[127, -64, 32, 0], [0, 0, 0, 0], [-127, 64, 0, 2]]
    assert q.absmax.tolist() == [1, 0, 254]
    assert q.nbytes == 12 + 3 * 4 and q.shape == (3, 4)


def test_rows_too_small_to_divide_by_lose_less_than_their_size():
    w = np.full((1, 8), 1e-37, np.float32)
    assert np.abs(int8.quantize(w).dequantize() - w).max() < 1e-37


def test_the_integer_product_is_exact():
    codes = np.random.default_rng(0).integers(-127, 128, (7, 3 * llm_int8.EXACT)).astype(np.int8)
    codes[0] = 127  # the largest sum
    expected = codes.astype(np.int64) @ codes.astype(np.int64).T
    assert_array_equal(llm_int8.integer_product(codes, codes), expected)
    assert llm_int8.EXACT * 127**2 < 2**24 <= (llm_int8.EXACT + 1) * 127**2


def test_a_value_at_the_threshold_is_an_outlier():
    q = int8.quantize(np.eye(2, dtype=np.float32))
    x = np.array([[6.0, 0.011], [0.0, 0.017]], np.float32)  # 0.011 / 6 · 127 would round to 0
    assert_allclose(llm_int8.matmul(x, q), x, rtol=4 * U32)
    assert llm_int8.matmul(x, q, threshold=np.nextafter(np.float32(6), np.float32(7)))[0, 1] == 0

"""Products in bfloat16: the kernel, the reference, and what a model computes with them."""

import warnings
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from autograd import make_vjp
from hypothesis import example, given
from hypothesis import strategies as st
from models import (
    EVERY_BASE,
    TINY,
    adapted,
    fast_model,
    fingerprint,
    on_cores,
    random_batch,
    random_examples,
)
from outcomes import refused

import minilora
from minilora import TrainConfig, kernels, layers
from minilora.config import ALL_LINEAR
from minilora.kernels import bfloat16, threads, weights
from minilora.quant.low_precision import LowPrecision
from minilora.quant.schemes import leaf_in, quantize, with_compute_dtype
from minilora.rounding import from_bfloat16, nearest, to_bfloat16
from minilora.training import gradient_at
from minilora.tree import flatten, tree_map

SMALLEST = 2.0**-126  # the smallest normal number: the instruction makes what is below it zero
SPECIAL = [0.0, -0.0, 1e-40, -1e-45, 1e-38, 3e38, -3.4e38, np.inf, -np.inf, np.nan]
MODEL = fast_model()
sizes = st.integers(1, 40) | st.sampled_from([64, 65, 511, 512, 513, 1025])


def numbers(rng, shape, share):
    """Return normal numbers of which some are special."""
    x = rng.standard_normal(shape).astype(np.float32)
    special = rng.choice(np.float32(SPECIAL), shape)
    return np.where(rng.random(shape) < share, special, x)


# sums of more than one part, in tiles at both edges
@example(20, 50, 1025, 0, 0)
@example(20, 1025, 50, 0, 0)
@given(st.integers(1, 40), sizes, sizes, st.integers(0, 2**32), st.sampled_from([0, 0, 0.01]))
def test_the_products_are_those_of_the_rounded_operands(m, n, k, seed, share):
    """Both products, at any place of a larger result; other columns stay as they are."""
    rng = np.random.default_rng(seed)
    x, w, g = (numbers(rng, shape, share) for shape in ((m, k), (n, k), (m, n)))
    bits = to_bfloat16(w)
    given_bytes = x.tobytes(), g.tobytes()
    first = int(rng.integers(0, 40))
    out = np.full((m, first + n + 3), 7, np.float32)
    for has_bfloat16 in {bfloat16.HAS_BFLOAT16, False}:  # the second is NumPy's product
        with patch.object(bfloat16, "HAS_BFLOAT16", has_bfloat16), np.errstate(all="ignore"):
            bfloat16.matmul(x, bits, out, first)
            dx = bfloat16.matmul_transposed(g, bits)
        assert (out[:, :first] == 7).all() and (out[:, first + n :] == 7).all()
        check(out[:, first : first + n], x, w.T)
        check(dx, g, w)
    assert (x.tobytes(), g.tobytes()) == given_bytes  # the branch of LoRA reads x, too


def check(found, a, b):
    """Compare with float64: a product of two rounded numbers is exact, a sum of k is rounded."""
    a, b = (nearest(m, "bfloat16").astype(np.float64) for m in (a, b))
    with np.errstate(all="ignore"):
        expected = a @ b
        size = np.abs(a) @ np.abs(b)
        sure = size < 2.0**127  # finite, and no partial sum overflows
        # each of the k additions rounds a partial sum of at most `size`; a number below SMALLEST
        # counts as 0, and so does a sum
        small = SMALLEST * (1 + np.abs(a).max(1)[:, None] + np.abs(b).max(0))
        bound = len(b) * (2.0**-23 * size + small)
        assert (np.abs(found - expected)[sure] <= bound[sure]).all()
    # what is not finite in exact arithmetic is not finite here
    assert not np.isfinite(found[~np.isfinite(expected)]).any()


@given(st.integers(0, 2**32 - 1))
@example(0x3F808000)  # a tie
@example(2**32 - 1)  # a NaN to whose bits nothing can be added
def test_rounding_is_that_of_the_reference_which_keeps_nan(bits):
    x = np.array([[bits]], np.uint32).view(np.float32)
    rounded = to_bfloat16(x)
    np.testing.assert_array_equal(bfloat16.to_bfloat16(x), rounded)
    assert np.isnan(from_bfloat16(rounded)) == np.isnan(x)


def test_an_infinite_number_meets_no_padding():
    """An infinity times a zero behind the last term of an odd sum would be NaN."""
    x = np.ones((1, 513), np.float32)
    x[0, 255] = np.inf  # the first part of the sum has 258 terms, the second one 255
    out = np.empty((1, 1), np.float32)
    bfloat16.matmul(x, to_bfloat16(np.ones_like(x)), out)
    assert out == np.inf


def test_wrong_shapes_raise_an_error():
    x = np.zeros((2, 3), np.float32)
    w = np.zeros((4, 5), np.uint16)
    for wrong in (partial(bfloat16.matmul, x, w, x), partial(bfloat16.matmul_transposed, x, w)):
        with pytest.raises(ValueError, match=r"shape|dimension"):
            wrong()


@EVERY_BASE
def test_a_model_computes_as_the_reference(scheme, monkeypatch):
    """Projections, head, loss and gradient; a row alone and a batch; every storage."""
    monkeypatch.setattr(weights, "TILE", 8)  # rows; some weights have more
    in_float32 = quantize(MODEL, scheme)
    with pytest.warns(UserWarning, match=r"^the dense weights of the model are rounded") as said:
        model = with_compute_dtype(in_float32, "bfloat16")
    assert said[0].filename == __file__
    rng = np.random.default_rng(0)
    for path, w in flatten(model.base).items():
        if len(w.shape) == 1:
            assert type(w) is np.ndarray, path
        else:
            assert w.compute_dtype == "bfloat16", path
            for rows in (1, 5):
                x, g = (rng.standard_normal((rows, n)).astype(np.float32) for n in w.shape[::-1])
                dense = nearest(layers.dense(w), "bfloat16")
                check(weights.tiled_matmul(x, w), x, dense.T)
                check(weights.tiled_matmul_backward(g, w), g, dense)
                backward, y = make_vjp(partial(layers.matmul, w=w))(x)
                check(y, x, dense.T)
                check(backward(g), g, dense)
            check(weights.matvec(w, x[0])[None], x[:1], dense.T)  # in tiles, if w is large
    batch = random_batch()
    found, expected, precise = (
        minilora.loss({}, each, batch) for each in (model, model._replace(ops=layers), in_float32)
    )
    # sums in another order change some activations by 2⁻²⁴, and then the rounding of a few by 2⁻⁸
    assert abs(found - expected) < 2.0**-8 * found and found != precise
    with refused("load it again for float32"):
        with_compute_dtype(model, "float32")


def test_numbers_that_bfloat16_holds_are_not_said_to_be_rounded():
    base = tree_map(lambda w: nearest(w, "bfloat16"), MODEL.base)
    with warnings.catch_warnings(action="error"):
        with_compute_dtype(MODEL._replace(base=base), "bfloat16")
    with refused("unknown compute_dtype 'float16'"):
        with_compute_dtype(MODEL, "float16")


def test_the_same_bits_whether_shards_are_computed_at_once_or_in_turn(monkeypatch):
    monkeypatch.setattr(threads, "THREADS", 2)
    model = with_compute_dtype(quantize(MODEL, "nf4-dq"), "bfloat16")
    adapters, _ = adapted(model, target_modules=ALL_LINEAR)
    examples = [[example] for example in random_examples(TINY, 5)]

    def result(parallel_map):
        shards = model._replace(ops=on_cores(2, parallel_map=parallel_map))
        loss, grads, _ = gradient_at(adapters, shards, examples, 0, TrainConfig(batch_size=4))
        return float(loss), fingerprint(grads)

    assert result(threads.parallel_map) == result(map)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_the_loss_takes_the_logit_of_a_target_from_the_same_product(kind):
    """Else log Z and the logit are rounded differently, and a loss near zero is mostly that."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((2, 9, 64), np.float32)
    codes = rng.integers(-127, 128, (256, 64), np.int8)
    head = LowPrecision("Q8_0", codes, rng.random((256, 2), np.float32) / 64)
    head = leaf_in(head.dequantize() if kind == "BF16" else head, "bfloat16")
    logits = h @ layers.dense(head).T
    targets = logits.argmax(-1)
    found, expected = (
        float(ops.cross_entropy(h, head, targets, np.ones((2, 9), np.float32)))
        for ops in (kernels.ops, layers)
    )
    # 64 + 256 additions in float32, of terms that add up to the largest logit in size
    assert abs(found - expected) <= 320 * 2.0**-24 * np.abs(logits).max()

"""The optimized operations against the reference: equal values and gradients.

In float64 the two differ only by rounding. In float32 an optimized operation is compared with the
reference *in float64, on the same numbers*: this bounds its error, not the sum of two errors.
"""

from unittest.mock import patch

import numpy as np
import pytest
from autograd import make_vjp
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FLOATS, U64, attention_inputs, random_starts, seeds
from numpy.testing import assert_allclose, assert_array_equal

from minilora import layers
from minilora.kernels import attention, fused, weights

dtypes = st.sampled_from([np.float32, np.float64])


def value_and_gradients(f, args, g):
    """[f(*args), for each of the arguments the gradient of Σ g∘f]."""
    back, y = make_vjp(lambda args: f(*args))(tuple(args))
    return [y, *back(np.asarray(g, y.dtype))]


def cast(dtype, *arrays):
    return [np.asarray(x).astype(dtype) for x in arrays]


def held_against_plain(name, args, rest, g, dtype, roundings):
    """Assert that each output of the fused `name` is near the plain one in float64.

    args are differentiated, rest are not. The bound: so many roundings of the largest number.
    """
    args = cast(dtype, *args)
    ours, plain = (
        value_and_gradients(lambda *a, ops=ops: getattr(ops, name)(*a, *rest), cast(own, *args), g)
        for ops, own in ((fused, dtype), (layers, np.float64))
    )
    for got, expected in zip(ours, plain, strict=True):
        assert got.shape == expected.shape and np.isfinite(got).all()
        assert got.dtype == dtype or got.ndim == 0
        largest = max(1, np.abs(expected).max())
        assert np.abs(got - expected).max() <= roundings * np.finfo(dtype).eps / 2 * largest


# ---------------------------------------------------------------------------------- RMSNorm


@given(
    seeds, st.sampled_from([(1, 1), (1, 7), (5, 1), (2, 3, 8), (3, 1, 17), (1, 1, 33)]),
    st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([1e-5, 1e-2]), st.integers(0, 2), dtypes,
)  # fmt: skip
def test_rms_norm(seed, shape, size, eps, zeros, dtype):
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((2, *shape))
    w = rng.standard_normal(shape[-1])
    w[:zeros] = 0  # a weight of zero: x̂ cannot be recomputed from y
    # a row has at most 33 terms; ∂L/∂x is the difference of two that are up to 1/√ε larger
    held_against_plain("rms_norm", (size * x, w), (eps,), g, dtype, 3000)


# ----------------------------------------------------------------------------------- SwiGLU


@given(seeds, st.sampled_from([(1, 1), (2, 3, 5), (1, 33), (7, 8)]), st.floats(0.1, 400), dtypes)
def test_swiglu(seed, shape, size, dtype):
    rng = np.random.default_rng(seed)
    gate, up, g = rng.standard_normal((3, *shape))
    gate = gate * size  # σ is constant beyond ±87
    gate[0] *= rng.integers(2)  # gates of zero: up cannot be recomputed from y
    # σ has four roundings, and 1 + a(1 − σ) is the sum of terms up to |a| larger
    with np.errstate(over="ignore"):  # not compiled, e^100 is infinite, and σ zero
        held_against_plain("swiglu", (gate, up), (), g, dtype, 50)


# -------------------------------------------------------------------------------- Attention


@FLOATS
@settings(max_examples=40)
@given(
    attention_inputs(), seeds, st.sampled_from([0.1, 1.0, 6.0, 300.0]),
    st.sampled_from([None, 1, 2, 9]), st.sampled_from([1, 3, 64]),
)  # fmt: skip
def test_attention(dtype, inputs, seed, size, window, queries):
    """It computes `queries` tokens at a time. The exponential of a score of 10⁵ is infinite."""
    q, k, v, angles, starts, hd = inputs
    angles = tuple(cast(dtype, *angles))
    g = np.random.default_rng(seed).standard_normal(q.shape)
    # a score has hd + 6 roundings of its size, so many times p; p is summed over T·G rows
    scores = size**2 * np.abs(q).max() * np.abs(k).max() * hd**0.5
    rest = angles, starts, None, window
    q, k = size * q, size * k
    with patch.object(attention, "QUERIES", queries):
        held_against_plain("attention", (q, k, v), rest, g, dtype, 100 * (hd + 6) * (scores + 1))


def test_segments_outside_their_rows_are_refused():
    """The loops check no bounds."""
    args, (angles, starts) = call("attention")
    for token, start in ((0, -1), (0, 1), (1, 2)):
        wrong = 0 * starts
        wrong[0, token] = start
        with pytest.raises(IndexError, match="segment_starts"):
            fused.attention(*args, angles, wrong)


# ---------------------------------------------------------------------------- Cross-entropy


@FLOATS
@given(
    seeds, st.tuples(*(st.integers(low, high) for low, high in ((1, 3), (1, 5), (1, 9), (2, 19)))),
    st.sampled_from([0, 0.5, 1]), st.sampled_from([0.01, 1, 30, 300]), st.sampled_from([1, 3, 64]),
)  # fmt: skip
def test_cross_entropy(dtype, seed, sizes, share, size, tile):
    """The largest logit can be in any tile; sums before it are rescaled, possibly to zero."""
    (B, T, D, V), rng = sizes, np.random.default_rng(seed)
    hidden, head = size * rng.standard_normal((B, T, D)), rng.standard_normal((V, D))
    targets, mask = rng.integers(V, size=(B, T)), np.float32(rng.random((B, T)) < share)
    mask[rng.integers(B), rng.integers(T)] = 1  # a share of 0: all but one are masked
    # a logit has D roundings of its size, and so, relatively, has p; the gradient of the head is a
    # product of h and p − y, which can be far smaller than p
    largest = np.abs(hidden).max()
    logits = D * largest * np.abs(head).max()
    rest, roundings = (targets, mask), 50 * (logits + 10) * max(1, largest)
    with patch.object(weights, "TILE", tile):
        held_against_plain("cross_entropy", (hidden, head), rest, 1.5, dtype, roundings)


def test_a_masked_row_is_never_looked_at():
    (hidden, head), (targets, mask) = call("cross_entropy")
    spoilt = np.where(mask[..., None] == 0, np.nan, hidden)
    wild = np.where(mask == 0, 10**6, targets)
    loss, dh = value_and_gradients(
        lambda h: fused.cross_entropy(h, head, wild, mask), [spoilt.astype(np.float32)], 1.0
    )
    assert loss == fused.cross_entropy(hidden, head, targets, mask)
    assert (dh[mask == 0] == 0).all() and np.isfinite(dh).all()


# ------------------------------------------------------------------------------- Projections

SHAPES = {"x": (2, 5, 6), "weight": (8, 6), "bias": (8,), "lora_A": (2, 6), "lora_B": (8, 2)}


@given(
    seeds, st.sets(st.sampled_from([*SHAPES]), min_size=1),
    st.sampled_from([[], ["bias"]]), st.sampled_from([[], ["lora_A", "lora_B"]]),
    st.sampled_from([0.0, 0.01, 0.5]),
)  # fmt: skip
def test_linear(seed, traced, bias, factors, p):
    """Any of the arrays may be trained; dropout divides even if it drops no number."""
    rng = np.random.default_rng(seed)
    there = ["x", "weight", *bias, *factors]
    arrays = {name: rng.standard_normal(SHAPES[name]) for name in there}
    settings = {"lora_scaling": 1.5, "lora_dropout": p} if factors else {}
    names = [name for name in there if name in traced] or ["x"]
    g = rng.standard_normal((2, 5, 8))

    def outcome(ops):
        def f(*values):
            node = arrays | settings | dict(zip(names, values))
            return ops.linear(node.pop("x"), node, layers.RowRng([[seed], [1]]))

        return value_and_gradients(f, [arrays[name] for name in names], g)

    for got, expected in zip(outcome(fused), outcome(layers), strict=True):
        # sums of at most 10 terms of size up to ten, each the input of the next
        assert_allclose(got, expected, rtol=0, atol=1e4 * U64)


# ------------------------------------------------------- which arguments, which memory order


def call(name):
    """(the arguments that can be traced, the rest) of a call of the fused operation."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return np.float32(rng.standard_normal(shape))

    if name == "attention":
        angle, q, k, v = (normal(3, 5, width) for width in (2, 16, 8, 8))
        return (q, k, v), ((np.cos(angle), np.sin(angle)), random_starts(rng, 3, 5))
    hidden = normal(2, 5, 4)
    targets, mask = rng.integers(7, size=(2, 5)), np.float32(rng.integers(2, size=(2, 5)))
    return {
        "rms_norm": ((hidden, normal(4)), (1e-5,)),
        "swiglu": ((hidden, normal(2, 5, 4)), ()),
        "cross_entropy": ((hidden, normal(7, 4)), (targets, mask)),
    }[name]


def traceable(name):
    """(f, args): a call f(*args) of the fused operation, of the arguments that can be traced."""
    args, rest = call(name)
    return lambda *args: getattr(fused, name)(*args, *rest), args


NAMES = ("rms_norm", "swiglu", "attention", "cross_entropy")
EACH = pytest.mark.parametrize("name", NAMES)


@EACH
def test_any_of_the_arguments_may_be_traced(name):
    """Nothing is traced below the first adapted projection: with up_proj alone, gate is not."""
    f, args = traceable(name)
    g = np.random.default_rng(0).standard_normal(f(*args).shape)
    _, *together = value_and_gradients(f, args, g)
    for n, arg in enumerate(args):
        of_one = lambda x: f(*args[:n], x, *args[n + 1 :])  # noqa: B023, E731
        assert_array_equal(value_and_gradients(of_one, [arg], g)[1], together[n])


@EACH
def test_the_order_in_memory_does_not_matter(name):
    f, (first, *others) = traceable(name)
    g = np.ones_like(f(first, *others)).T.copy().T  # this too in another order
    for x in (
        np.asfortranarray(first), np.repeat(first, 2, axis=-1)[..., ::2],
        np.broadcast_to(first[:1], first.shape),
    ):  # fmt: skip
        both = (value_and_gradients(f, (y, *others), g) for y in (x, np.ascontiguousarray(x)))
        for found, expected in zip(*both):
            assert_array_equal(found, expected)


@EACH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_never_hidden(name, bad):
    """A diverged run has to be seen in its loss: fast kernels may not assume finite numbers."""
    f, args = traceable(name)
    for n, arg in enumerate(args):
        wrong = arg.copy()
        wrong[..., 0] = bad
        with np.errstate(all="ignore"):
            assert not np.isfinite(f(*args[:n], wrong, *args[n + 1 :])).all()

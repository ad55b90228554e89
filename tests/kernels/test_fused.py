"""The optimized operations against the reference: equal values and gradients.

In float64 the two differ only by rounding. In float32 an optimized operation is compared with the
reference *in float64, on the same numbers*: this bounds its error, not the sum of two errors.
"""

import inspect
import math
import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from autograd import make_vjp
from autograd.test_util import check_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, attention_inputs, bits, compiled_only, random_starts, seeds

from minilora import layers
from minilora.config import ATTENTION, MLP
from minilora.kernels import chunking, fused, fused_attention, fused_loss
from minilora.layers import Context
from minilora.methods.registry import OPERATIONS
from minilora.tree import flatten, overlay, unflatten

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}  # unit roundoff
SAFETY = 2  # the bounds are first order, and the reference in float64 has an error, too

few = settings(max_examples=25)
dtypes = st.sampled_from([np.float32, np.float64])


def value_and_gradients(f, args, g):
    """f(*args) and, for each of the arguments, the gradient of Σ g∘f."""
    back, y = make_vjp(lambda args: f(*args))(tuple(args))
    return y, back(np.asarray(g, y.dtype))


def cast(dtype, *arrays):
    return [np.asarray(x).astype(dtype) for x in arrays]


def held_against_plain(name, args, rest, g, dtype, bounds):
    """Assert that each output of the fused `name` lies within its bound of the plain float64 one.

    args are differentiated, rest are not; bounds: one array or number for y and one per argument.
    """
    args = cast(dtype, *args)
    y, dargs = value_and_gradients(lambda *a: getattr(fused, name)(*a, *rest), args, g)
    exact = cast(np.float64, *args)
    y0, dargs0 = value_and_gradients(lambda *a: getattr(layers, name)(*a, *rest), exact, g)
    for got, expected, bound in zip((y, *dargs), (y0, *dargs0), bounds, strict=True):
        assert got.shape == expected.shape and np.isfinite(got).all()
        assert got.dtype == dtype or got.ndim == 0
        assert (np.abs(got - expected) <= SAFETY * UNIT[dtype] * bound).all()


# ---------------------------------------------------------------------------------- RMSNorm


def rms_norm_bounds(x, w, eps, g):
    """A sum over D terms in the root, its reciprocal, then two products a number."""
    D, rows = x.shape[-1], x.size // x.shape[-1]
    r = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    dot = np.sum(np.abs(g * w * x), axis=-1, keepdims=True)
    dx = r * np.abs(g * w) + np.abs(x) * r**3 / D * dot
    dw = np.sum(np.abs(g * x * r).reshape(-1, D), axis=0)
    return [(D + 6) * np.abs(r * x * w), (4 * D + 10) * dx, (D + rows + 6) * dw]


@st.composite
def rms_norm_inputs(draw):
    shape = draw(st.sampled_from([(1, 1), (1, 7), (5, 1), (2, 3, 8), (3, 1, 17), (1, 1, 33)]))
    rng = np.random.default_rng(draw(seeds))
    x = rng.standard_normal(shape) * 10.0 ** draw(st.integers(-4, 4))
    eps = draw(st.sampled_from([1e-5, 1e-2]))
    w = rng.standard_normal(shape[-1])
    w[: draw(st.integers(0, 2))] = 0  # a weight of zero: x̂ cannot be recomputed from y
    return x, w, eps, rng.standard_normal(shape)


@given(rms_norm_inputs(), dtypes)
def test_rms_norm(inputs, dtype):
    x, w, eps, g = inputs
    x, w, g = cast(np.float64, *cast(dtype, x, w, g))
    eps = float(dtype(eps))
    bounds = rms_norm_bounds(x, w, eps, g)
    held_against_plain("rms_norm", (x, w), (eps,), g, dtype, bounds)


# ----------------------------------------------------------------------------------- SwiGLU


def swiglu_bounds(gate, up, g, dtype):
    """σ has the two units of the last place of `exp`, that is four of roundoff, and two more.

    The exponent of the reference, of size |a|, is rounded in float64. Where 1 − σ or 1 + a(1 − σ)
    cancels, the error stays that of its terms. Beyond ±87 the kernel's exponential is constant,
    which changes the result by |a|·e^−87 at most: below 2^-100 for |a| < 10⁶.
    """
    s = 1 / (1 + np.exp(-np.clip(gate, -700, 700)))
    y, da = np.abs(gate * s * up), np.abs(g * up) * s * (1 + np.abs(gate))
    twin = (1 + np.abs(gate)) * UNIT[np.float64] / UNIT[dtype]
    tiny = 2.0**-100 * (1 + np.abs(g)) * (1 + np.abs(up)) / UNIT[np.float32]
    db = np.abs(g * gate * s)
    return [(12 + twin) * y + tiny, (24 + 2 * twin) * da + tiny, (12 + twin) * db + tiny]


@given(seeds, st.sampled_from([(1, 1), (2, 3, 5), (1, 33), (7, 8)]), st.floats(0.1, 40), dtypes)
def test_swiglu(seed, shape, size, dtype):
    rng = np.random.default_rng(seed)
    gate, up, g = cast(np.float64, *cast(dtype, *rng.standard_normal((3, *shape))))
    gate = np.clip(gate * size, -80, 80).astype(dtype).astype(np.float64)
    held_against_plain("swiglu", (gate, up), (), g, dtype, swiglu_bounds(gate, up, g, dtype))


@compiled_only
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swiglu_far_from_zero(dtype):
    gate = np.array([-1e6, -200, -90, -87, 87, 90, 200, 1e6], dtype)
    one = np.ones_like(gate)
    y, (da, db) = value_and_gradients(fused.swiglu, (gate, one), one)
    np.testing.assert_allclose(y, np.maximum(gate, 0), rtol=4 * UNIT[dtype], atol=2.0**-100)
    np.testing.assert_allclose(da, gate > 0, rtol=4 * UNIT[dtype], atol=2.0**-100)
    np.testing.assert_allclose(y, db, rtol=8 * UNIT[dtype])  # as g = up = 1


# -------------------------------------------------------------------------------- Attention


def attention_bounds(q, k, v, hd, g):
    """Largest errors, from the sizes of the inputs alone.

    A score, no larger than S, errs by hd + 6 roundings of S (turned twice, scaled, summed), so p
    errs by twice that and by the softmax's own T + 8. Σ_s p = 1 bounds y and Σ_s|∂L/∂S| by twice
    the largest |∂L/∂P| ≤ hd·|g|·|v|; keys and values add up T·G rows of it. Turning adds √2.
    """
    T, heads, kv = q.shape[1], q.shape[-1] // hd, k.shape[-1] // hd
    q, k, v, g = (np.abs(x).max() for x in (q, k, v, g))
    S = 2 * math.sqrt(hd) * q * k
    of_p = 2 * (hd + 6) * (S + 1) + T + 8
    rows, dp = T * heads // kv, hd * g * v
    ds = 2 * dp * (2 * of_p + 2 * hd + T + 8) * math.sqrt(2 / hd)
    return [v * (of_p + T), ds * k * 2, rows * ds * q * 2, rows * g * (of_p + rows)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=40)
@given(attention_inputs(), seeds, st.sampled_from([0.1, 1.0, 6.0]))
def test_attention(dtype, inputs, seed, size):
    q, k, v, angles, starts, hd = inputs
    q, k, v = cast(np.float64, *cast(dtype, size * q, size * k, v))
    angles = tuple(cast(dtype, *angles))
    g = np.random.default_rng(seed).standard_normal(q.shape).astype(dtype)
    bounds = attention_bounds(q, k, v, hd, g)
    held_against_plain("attention", (q, k, v), (angles, starts), g, dtype, bounds)


def some_attention(seed=0, B=3, T=5, kv=2, groups=2, hd=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((B, T, n * hd)).astype(dtype) for n in (kv * groups, kv, kv))
    starts, angle = random_starts(rng, B, T), rng.standard_normal((B, T, hd // 2))
    return q, k, v, (np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)), starts


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_with_large_scores_is_a_choice(dtype):
    # scores of ±10⁴ and more: eˢ itself would overflow, the softmax is one-hot
    q, k, v, _, starts = some_attention(dtype=dtype)
    still = (np.ones((3, 5, 2), dtype), np.zeros((3, 5, 2), dtype))
    y, grads = value_and_gradients(
        lambda *a: fused.attention(*a, still, starts), (300 * q, 300 * k, v), np.ones_like(q)
    )
    assert np.isfinite(y).all() and all(np.isfinite(d).all() for d in grads)
    scores = np.einsum("btkgd,bskd->bkgts", q.reshape(3, 5, 2, 2, 4), k.reshape(3, 5, 2, 4))
    scores = np.where(layers.attention_mask(starts, 5)[:, None, None], scores, -np.inf)
    best = np.take_along_axis(
        v.reshape(3, 1, 5, 2, 4).transpose(0, 3, 1, 2, 4),
        scores.argmax(-1).reshape(3, 2, 1, -1)[:, :, 0, :, None][:, :, None], axis=3,
    )  # fmt: skip
    best = best.reshape(3, 2, 2, 5, 4).transpose(0, 3, 1, 2, 4).reshape(3, 5, 16)
    np.testing.assert_array_equal(y, best)


def test_attention_in_chunks_is_the_same(monkeypatch):
    q, k, v, angles, starts = some_attention()
    g = np.random.default_rng(1).standard_normal(q.shape)

    def run():
        y, grads = value_and_gradients(lambda *a: fused.attention(*a, angles, starts), (q, k, v), g)
        return [bits(x) for x in (y, *grads)]

    whole = run()
    for floats in (1, 250):  # one row of the batch at a time; two, and a rest of one
        monkeypatch.setattr(fused_attention, "SCORE_FLOATS", floats)
        assert run() == whole


@pytest.mark.parametrize("tokens", [1, 2, 3, 64])
def test_attention_of_some_tokens_at_a_time_is_the_same(monkeypatch, tokens):
    q, k, v, angles, _ = some_attention(T=7, dtype=np.float64)
    starts = np.array([[0, 0, 0, 0, 0, 0, 0], [0, 0, 2, 2, 2, 5, 5], [0, 1, 2, 3, 4, 5, 6]])
    monkeypatch.setattr(fused_attention, "QUERIES", tokens)
    outcomes = [
        value_and_gradients(lambda q, k, v, f=f: f(q, k, v, angles, starts), (q, k, v), q + 1)
        for f in (fused.attention, layers.attention)
    ]
    for got, expected in zip(*((y, *grads) for y, grads in outcomes)):
        # sums of at most 7 + 4 terms of size one to ten, and the softmax's few roundings
        np.testing.assert_allclose(got, expected, rtol=0, atol=1000 * UNIT[np.float64])


def test_chunks_cover_everything_once():
    assert chunking.chunks(0, 3, 10) == []
    for n in range(1, 9):
        for floats in (1, 3, 100, 1000):
            parts = [np.arange(n)[c] for c in chunking.chunks(n, floats, 100)]
            assert np.concatenate(parts).tolist() == list(range(n))
            sizes = [len(p) for p in parts]
            assert max(sizes) - min(sizes) <= 1
            # as few as can be: within the limit but for the row that does not divide evenly
            assert max(sizes) == 1 or (max(sizes) - 1) * floats <= 100
            assert len(parts) == min(n, -(-n * floats // 100))


# ---------------------------------------------------------------------------- Cross-entropy


@st.composite
def cross_entropy_inputs(draw):
    B, T, D, V = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 5), (1, 9), (2, 19)))
    rng = np.random.default_rng(draw(seeds))
    hidden, head = rng.standard_normal((B, T, D)), rng.standard_normal((V, D))
    mask = (rng.random((B, T)) < draw(st.sampled_from([0, 0.5, 1]))).astype(np.float32)
    mask[rng.integers(B), rng.integers(T)] = 1  # 0: all but one are masked
    return hidden * draw(st.sampled_from([0.01, 1, 30])), head, rng.integers(V, size=(B, T)), mask


def cross_entropy_bounds(hidden, head, mask):
    """A logit, no larger than Z, errs by D roundings of Z, and so, relatively, does e^logit.

    c = m/Σm; |p − y| ≤ 1, and a row of it adds up to at most 2.
    """
    (V, D), n = head.shape, mask.sum()
    h, e = np.abs(hidden).max(), np.abs(head).max()
    of_p = 2 * (D + 1) * (D * h * e + 1) + V + 12
    return [of_p, 2 * e * (of_p + V) / n, h * (of_p + n)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(cross_entropy_inputs())
def test_cross_entropy(dtype, inputs):
    hidden, head, targets, mask = inputs
    bounds = cross_entropy_bounds(hidden, head, mask)
    held_against_plain("cross_entropy", (hidden, head), (targets, mask), 1.0, dtype, bounds)


def some_cross_entropy(dtype=np.float32):
    rng = np.random.default_rng(3)
    hidden, head = cast(dtype, rng.standard_normal((2, 5, 4)), rng.standard_normal((7, 4)))
    return hidden, head, rng.integers(7, size=(2, 5)), np.float32(rng.integers(2, size=(2, 5)))


def test_a_masked_row_is_never_looked_at():
    hidden, head, targets, mask = some_cross_entropy()
    spoilt = np.where(mask[..., None] == 0, np.nan, hidden)
    wild = np.where(mask == 0, 10**6, targets)
    loss, (dh,) = value_and_gradients(
        lambda h: fused.cross_entropy(h, head, wild, mask), [spoilt.astype(np.float32)], 1.0
    )
    assert loss == fused.cross_entropy(hidden, head, targets, mask)
    assert (dh[mask == 0] == 0).all() and np.isfinite(dh).all()


@pytest.mark.parametrize("floats", [1, 7 * 2 + 6])
def test_cross_entropy_in_chunks(monkeypatch, floats):
    hidden, head, targets, mask = some_cross_entropy(np.float64)

    def run():
        f = lambda *a: fused.cross_entropy(*a, targets, mask)  # noqa: E731
        y, grads = value_and_gradients(f, (hidden, head), 1.0)
        return [y, *grads]

    whole = run()
    monkeypatch.setattr(fused_loss, "LOGIT_FLOATS", floats)
    for a, b in zip(run(), whole):
        # the chunks' parts of ∂L/∂E are added in another order: ten terms of size one
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * UNIT[np.float64])


@pytest.mark.parametrize("tile", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_cross_entropy_tile_by_tile(monkeypatch, tile, size):
    """The largest logit can be in any tile; sums before it are rescaled, possibly to zero."""
    hidden, head, targets, mask = some_cross_entropy(np.float64)
    hidden, mask[0, 0] = hidden * size, 1
    monkeypatch.setattr(fused_loss, "TILE", tile)
    outcomes = [
        value_and_gradients(lambda *a, f=f: f(*a, targets, mask), (hidden, head), 1.0)
        for f in (fused.cross_entropy, layers.cross_entropy)
    ]
    for got, expected in zip(*((y, *grads) for y, grads in outcomes)):
        # a logit, a sum of 4 terms up to size·10, has 5 roundings; p errs by as much of itself
        np.testing.assert_allclose(got, expected, rtol=0, atol=200 * size**2 * UNIT[np.float64])


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_one_argument_has_its_dtype(which):
    # the loss is float64, its gradient must not be: it would double the backward pass
    hidden, head, targets, mask = some_cross_entropy()
    args = [hidden, head]

    def f(x):
        return fused.cross_entropy(*args[:which], x, *args[which + 1 :], targets, mask)

    assert make_vjp(f)(args[which])[0](np.float64(1)).dtype == np.float32


def test_cross_entropy_with_large_logits_is_finite():
    hidden, head = np.float32([[[3e4], [-3e4]]]), np.float32([[1], [-1], [0]])
    f = lambda h: fused.cross_entropy(h, head, np.array([[1, 1]]), np.ones((1, 2)))  # noqa: E731
    loss, (dh,) = value_and_gradients(f, [hidden], 1.0)
    # a mean of 6·10⁴ and 0; and of 1 − (−1) and 0, where e⁻⁸⁷ changes nothing
    assert loss == 3e4
    np.testing.assert_allclose(dh.ravel(), [1, 0], rtol=0, atol=2.0**-100)


# --------------------------------------------------------------------- whole sublayers with LoRA


def some_sublayer(kind, adapted, seed=4, dtype=np.float64, quantize=None):
    """(x, trained, frozen, rope and starts) of a sublayer with LoRA on `adapted`."""
    rng, D, F, r = np.random.default_rng(seed), 6, 9, 2
    shapes = {"q_proj": (8, D), "k_proj": (4, D), "v_proj": (4, D), "o_proj": (D, 8)}
    if kind == "mlp":
        shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    trained, frozen = {}, {}
    for name, (n, m) in shapes.items():
        w = rng.standard_normal((n, m)).astype(dtype)
        frozen[name] = {"weight": quantize(w) if quantize else w}
        if name in adapted:
            A, B = rng.standard_normal((r, m)), rng.standard_normal((n, r))
            trained[name] = {"lora_A": A.astype(dtype), "lora_B": B.astype(dtype)}
            frozen[name] |= {"lora_scaling": 1.5, "lora_dropout": 0.0}
    x = rng.standard_normal((2, 5, D)).astype(dtype)
    *_, rope, starts = some_attention(B=2, T=5, dtype=dtype)
    return x, trained, frozen, (rope, starts)


def outcome(ops, kind, x, trained, frozen, rest, x_traced=True, rng=None, **fields):
    """The output, ∂L/∂x if it is traced, and the gradient of each factor, in order."""
    g = np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    leaves = flatten(trained)
    ctx = Context(replace(TINY, head_dim=4, **fields), ops, *rest, rng=rng)

    def f(arrays):
        *factors, x_ = arrays if x_traced else (*arrays, x)
        node = overlay(frozen, unflatten(dict(zip(leaves, factors))))
        return getattr(ops, kind)(x_, node, ctx)

    back, y = make_vjp(f)((*leaves.values(), x) if x_traced else tuple(leaves.values()))
    return [y, *back(g)]


SUBLAYERS = {"self_attention": ATTENTION, "mlp": MLP}


@pytest.mark.parametrize("x_traced", [True, False])
@pytest.mark.parametrize(
    ("kind", "adapted"),
    [(kind, some) for kind, names in SUBLAYERS.items()
     for n in range(1, len(names) + 1) for some in combinations(names, n)],
)  # fmt: skip
def test_a_sublayer_equals_the_reference(kind, adapted, x_traced):
    """With LoRA on any of its projections, and with an input that autograd traces or not."""
    inputs = some_sublayer(kind, adapted)
    fast, plain = (outcome(ops, kind, *inputs, x_traced) for ops in (fused, layers))
    for got, expected in zip(fast, plain, strict=True):
        # some sums of at most 9 terms of size up to ten, each the input of the next
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e4 * UNIT[np.float64])


CHANGES = {  # changes that make a sublayer more than plain LoRA
    "a frozen bias": lambda trained, frozen, name: frozen[name].update(bias=np.arange(6.0)),
    "a trained bias": lambda trained, frozen, name: trained[name].update(bias=np.arange(6.0)),
    "a trained weight": lambda trained, frozen, name: trained[name].update(
        weight=2 * frozen[name]["weight"]
    ),
    "dropout": lambda trained, frozen, name: frozen[name].update(lora_dropout=0.5),
    # even if no number is dropped, all are divided by 1 − p
    "a small dropout": lambda trained, frozen, name: frozen[name].update(lora_dropout=0.01),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "name"), [("self_attention", "o_proj"), ("mlp", "down_proj")])
def test_a_sublayer_with_more_than_lora_equals_the_reference(kind, name, change):
    x, trained, frozen, rest = some_sublayer(kind, (name,))
    CHANGES[change](trained, frozen, name)
    more = {"rng": layers.RowRng([[0], [1]])} if "dropout" in change else {}
    fast, plain = (outcome(ops, kind, x, trained, frozen, rest, **more) for ops in (fused, layers))
    for got, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e4 * UNIT[np.float64])


@pytest.mark.parametrize("window", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("norms", [False, True])
def test_attention_with_a_window_and_normed_heads_equals_the_reference(window, norms):
    x, trained, frozen, rest = some_sublayer("self_attention", ATTENTION)
    for name in ("q_norm", "k_norm") if norms else ():
        frozen[name], trained[name] = ({"weight": np.arange(1.0, 5) / n} for n in (3, 2))
    inputs = ("self_attention", x, trained, frozen, rest)
    fast, plain, every = (
        outcome(ops, *inputs, rms_norm_eps=0.1, sliding_window=width, qk_norm=norms)
        for ops, width in ((fused, window), (layers, window), (layers, None))
    )
    for got, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e4 * UNIT[np.float64])
    longest = np.max(np.arange(5) - rest[1]) + 1  # of the segments
    assert np.array_equal(plain[0], every[0]) == (window is None or window >= longest)


def test_the_hidden_units_are_not_kept():
    _, trained, frozen, _ = some_sublayer("mlp", ("down_proj",), dtype=np.float32)
    wide = np.random.default_rng(0).standard_normal((4096, 6)).astype(np.float32)
    for name in ("gate_proj", "up_proj"):
        frozen[name]["weight"] = wide
    frozen["down_proj"]["weight"] = wide.T
    trained["down_proj"]["lora_A"] = np.ones((2, 4096), np.float32)
    x = np.ones((2, 192, 6), np.float32)
    hidden = 2 * 192 * 4096 * 4  # bytes
    tracemalloc.start()
    ctx = Context(TINY, fused, None, None)
    down = frozen["down_proj"] | trained["down_proj"]

    def f(factors):
        return fused.mlp(
            x, frozen | {"down_proj": down | dict(zip(("lora_A", "lora_B"), factors))}, ctx
        )

    vjp, _ = make_vjp(f)((down["lora_A"], down["lora_B"]))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 2 * hidden <= kept < 2.1 * hidden, vjp  # gate and up


def test_the_two_implementations_have_the_same_signatures():
    for name in OPERATIONS:
        names = []
        for function in (getattr(layers, name), getattr(fused, name)):
            function = getattr(function, "fun", function)  # what autograd's primitive wraps
            parameters = inspect.signature(function).parameters
            names.append([n for n in parameters if n != "matmul"])  # of `layers.linear`
        assert names[0] == names[1], name


# ---------------------------------------------------------------- finite differences, layout


@few
@given(rms_norm_inputs(), attention_inputs(), cross_entropy_inputs())
def test_finite_differences(norm, attention, entropy):
    check = lambda f, *args: check_grads(f, modes=["rev"], order=1)(*args)  # noqa: E731
    x, w, _, g = norm
    x = x / np.abs(x).max()  # the step of the difference is fixed, so must be the size
    check(lambda x, w: fused.rms_norm(x, w, 1e-2), x, w)
    check(fused.swiglu, 3 * x, g)
    *qkv, angles, starts, _ = attention
    check(lambda q, k, v: fused.attention(q, k, v, angles, starts), *qkv)
    hidden, head, targets, mask = entropy
    hidden = hidden / np.abs(hidden).max()
    check(lambda h, e: fused.cross_entropy(h, e, targets, mask), hidden, head)


# ------------------------------------------------------- which arguments, which memory order


def call(name):
    """(the arguments that can be traced, the rest) of a call of the fused operation."""
    q, k, v, angles, starts = some_attention()
    hidden, head, targets, mask = some_cross_entropy()
    return {
        "rms_norm": ((hidden, np.float32([1, 2, 3, 4])), (1e-5,)),
        "swiglu": ((hidden, hidden[::-1]), ()),
        "attention": ((q, k, v), (angles, starts)),
        "cross_entropy": ((hidden, head), (targets, mask)),
    }[name]


EACH = pytest.mark.parametrize("name", ["rms_norm", "swiglu", "attention", "cross_entropy"])


@EACH
def test_any_of_the_arguments_may_be_followed(name):
    # Nothing is traced below the first adapted projection: with up_proj alone, the gate is not.
    args, rest = call(name)
    g = np.random.default_rng(0).standard_normal(getattr(fused, name)(*args, *rest).shape)
    _, together = value_and_gradients(lambda *a: getattr(fused, name)(*a, *rest), args, g)
    for n in range(1, len(args)):
        for chosen in combinations(range(len(args)), n):

            def f(*followed, chosen=chosen):
                full = list(args)
                for i, value in zip(chosen, followed):
                    full[i] = value
                return getattr(fused, name)(*full, *rest)

            _, grads = value_and_gradients(f, [args[i] for i in chosen], g)
            for i, grad in zip(chosen, grads, strict=True):
                np.testing.assert_array_equal(grad, together[i])


def other_layouts(x):
    """The same numbers in another order of memory."""
    yield np.asfortranarray(x)
    yield np.repeat(x, 2, axis=-1)[..., ::2]
    yield np.broadcast_to(x[:1], x.shape)


@EACH
def test_the_order_in_memory_does_not_matter(name):
    (first, *others), rest = call(name)
    f = lambda *a: getattr(fused, name)(*a, *rest)  # noqa: E731
    for x in other_layouts(first):
        results = []
        for same in (x, np.ascontiguousarray(x)):
            np.full(x.size, np.nan, np.float32)  # stale memory must not look right
            g = np.ones_like(f(same, *others)).T.copy().T  # this too in another order
            results.append([f(same, *others), *value_and_gradients(f, (same, *others), g)[1]])
        for a, b in zip(*results):
            np.testing.assert_array_equal(a, b)


def test_nan_and_infinity_are_never_hidden():
    # A diverged run has to be seen in its loss; `fast` kernels may reorder, not assume finiteness.
    for bad in (np.nan, np.inf):
        hidden, head, targets, _ = some_cross_entropy()
        mask = np.ones((2, 5), np.float32)
        with np.errstate(invalid="ignore"):
            hidden[1, 2, 0] = bad
            assert not np.isfinite(fused.cross_entropy(hidden, head, targets, mask))
            assert not np.isfinite(fused.rms_norm(hidden, np.ones(4, np.float32), 1e-5)[1, 2]).all()
            assert not np.isfinite(fused.swiglu(hidden, hidden)[1, 2, 0])
            q, k, v, angles, starts = some_attention()
            k[1, 0, 0] = bad
            assert not np.isfinite(fused.attention(q, k, v, angles, starts * 0)[1]).all()

"""The reference operations against an oracle in plain loops, and against finite differences.

`check_grads` compares a random directional derivative with a central difference of step 1e-6: in
float64 that errs by about 1e-12 (cut-off) plus 1e-10 (rounding), far below its tolerance of 1e-6.
"""

import math
from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, make_vjp
from autograd.test_util import check_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, attention_inputs, bits, random_starts, seeds

from minilora import layers, nf4

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoff

few = settings(max_examples=25)
sizes = st.integers(1, 5)


def gradients_agree(f, *args):
    check_grads(f, modes=["rev"], order=1)(*args)


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


# ------------------------------------------------------------------------------ projections


def lora_node(rng, out, into, r):
    return {"lora_A": rng.standard_normal((r, into)), "lora_B": rng.standard_normal((out, r))}


@few
@given(seeds, sizes, sizes, sizes, st.floats(0.1, 4))
def test_linear_is_the_equation(seed, out, into, r, scaling):
    # h = W₀x + (α/r)·BAx + b   (LoRA, Eq. 3), one number at a time
    rng = np.random.default_rng(seed)
    x, w, b = arrays(seed, (2, 3, into), (out, into), out)
    node = lora_node(rng, out, into, r)
    frozen = {"weight": w, "bias": b, "lora_scaling": scaling, "lora_dropout": 0.0}
    h = layers.linear(x, frozen | node)
    assert h.shape == (2, 3, out)
    for *at, o in np.ndindex(2, 3, out):
        terms = [w[o, i] * x[*at, i] for i in range(into)] + [b[o]]
        for k, i in np.ndindex(r, into):
            terms.append(scaling * node["lora_B"][o, k] * node["lora_A"][k, i] * x[*at, i])
        # A sum of n products errs by at most n units of roundoff of the sum of their sizes; the
        # longest way of a number to h is through `into` and r terms, the scaling, and three sums.
        bound = (into + r + 4) * U64 * math.fsum(map(abs, terms))
        assert abs(h[*at, o] - math.fsum(terms)) <= bound


@few
@given(seeds, sizes, sizes, sizes, st.sampled_from([0.0, 0.4]))
def test_gradient_of_a_projection(seed, out, into, r, p):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((2, 3, into)), rng.standard_normal((out, into))
    node = {**lora_node(rng, out, into, r), "bias": rng.standard_normal(out)}
    frozen = {"weight": w, "lora_scaling": 1.5, "lora_dropout": p}
    # the mask is drawn anew from the same seed: the function is the same at each evaluation
    gradients_agree(
        lambda x, t: layers.linear(x, {**frozen, **t}, np.random.default_rng(1)), x, node
    )
    gradients_agree(lambda x, w: layers.linear(x, {"weight": w}), x, w)
    gradients_agree(layers.matmul, x, w)
    gradients_agree(lambda x: layers.matmul(x, w), x)


class Counted:
    """A quantized weight that counts how often it is dequantized."""

    def __init__(self, w):
        self.w, self.shape, self.calls = w, w.shape, 0

    def dequantize(self):
        self.calls += 1
        return self.w


def test_a_quantized_weight_is_unpacked_once_each_way():
    # QLoRA, Sec. 3: the dense copy lives only inside the product, in both directions.
    x, w = arrays(1, (2, 3, 4), (5, 4))
    counted = Counted(w)
    gradients_agree(lambda x: layers.matmul(x, counted), x)
    counted.calls = 0
    back, y = make_vjp(lambda x: layers.matmul(x, counted))(x)
    assert counted.calls == 1
    np.testing.assert_array_equal(y, x @ w.T)
    np.testing.assert_array_equal(back(y), y @ w)
    assert counted.calls == 2


@given(seeds, sizes, sizes)
def test_a_product_with_codes_is_the_product_with_what_they_stand_for(seed, out, into):
    x, w = (a.astype(np.float32) for a in arrays(seed, (2, into), (out, into)))
    q = nf4.quantize(w, 16)
    assert bits(layers.matmul(x, q)) == bits(layers.matmul(x, q.dequantize()))


# ---------------------------------------------------------------------------------- dropout


@given(st.floats(0, 0.99), seeds, st.sampled_from([np.float32, np.float64]))
def test_dropout_zeroes_or_scales(p, seed, dtype):
    x = np.ones((7, 5), dtype)
    y = layers.dropout(x, p, np.random.default_rng(seed))
    assert y.dtype == dtype
    kept = np.float32(1) / np.float32(1 - p)
    assert np.isin(y, [0, kept]).all()
    assert (p > 0) or (y == 1).all()
    assert layers.dropout(x, p, None) is x and layers.dropout(x, 0, np.random.default_rng(0)) is x


def test_dropout_keeps_the_mean():
    n, p = 100_000, 0.3
    y = layers.dropout(np.ones(n), p, np.random.default_rng(0))
    # n draws of variance p/(1−p): six standard deviations are one chance in 5·10⁸
    assert abs(y.mean() - 1) < 6 * math.sqrt(p / (1 - p) / n)
    assert abs((y == 0).mean() - p) < 6 * math.sqrt(p * (1 - p) / n)


def test_dropout_is_on_the_adapters_branch_only():
    x, w, a = arrays(2, (4, 6), (5, 6), (2, 6))
    frozen = {"weight": w, "lora_scaling": 1.0, "lora_dropout": 0.5}
    b = np.zeros((5, 2))
    y = layers.linear(x, frozen | {"lora_A": a, "lora_B": b}, np.random.default_rng(0))
    np.testing.assert_array_equal(y, x @ w.T)
    b = np.ones((5, 2))
    y = layers.linear(x, frozen | {"lora_A": a, "lora_B": b}, np.random.default_rng(0))
    z = layers.dropout(x, 0.5, np.random.default_rng(0))  # of the input, before A
    np.testing.assert_allclose(y, x @ w.T + z @ a.T @ b.T, rtol=0, atol=100 * U64)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_rows_numbers_depend_on_its_own_seed(seeds):
    rng = layers.RowRng(seeds)
    drawn = rng.random((len(seeds), 3, 2), np.float32)
    assert drawn.dtype == np.float32 and drawn.shape == (len(seeds), 3, 2)
    for seed, row in zip(seeds, drawn):
        np.testing.assert_array_equal(row, np.random.default_rng(seed).random((3, 2), np.float32))
    assert rng.random((len(seeds), 1), np.float64).dtype == np.float64
    assert rng.child(7).seeds == [[*seed, 7] for seed in seeds]
    assert layers.row_rng(rng, 5) is rng and layers.row_rng(None, 5) is None


def test_a_seed_or_a_generator_gives_every_row_a_seed_of_its_own():
    from_int, from_rng = (layers.row_rng(r, 64).seeds for r in (5, np.random.default_rng(5)))
    assert from_int == from_rng != layers.row_rng(6, 64).seeds
    assert len({seed for (seed,) in from_int}) == 64  # a list of one whole number per row
    assert all(type(seed) is int and 0 <= seed < 2**63 for (seed,) in from_int)
    # 63 random bits: that 64 rows have none above half of that has the chance 2⁻⁶⁴
    assert max(from_int) >= [2**62]


def test_what_dropout_keeps_is_what_is_drawn_from_p_on():
    class Drawn:
        def random(self, shape, dtype):
            assert (shape, dtype) == ((4,), np.float32)
            return np.float32([0, 0.25, 0.5, 0.75])

    # [0, 1) has as many numbers below p as p is long; p itself is not one of them
    y = layers.dropout(np.array([1.0, 2.0, 3.0, 4.0]), 0.5, Drawn())
    np.testing.assert_array_equal(y, [0, 0, 6, 8])


# ------------------------------------------------------------------------- norm and SwiGLU


@few
@given(seeds, sizes, sizes, st.floats(0, 1))
def test_rms_norm(seed, n, width, eps):
    x, w = arrays(seed, (n, width), width)
    y = layers.rms_norm(x, w, eps)
    for i in range(n):
        r = 1 / math.sqrt(math.fsum(x[i] * x[i]) / width + eps)
        np.testing.assert_allclose(y[i], r * x[i] * w, rtol=(width + 6) * U64)
    gradients_agree(lambda x, w: layers.rms_norm(x, w, eps + 1e-3), x, w)


@few
@given(seeds, sizes)
def test_swiglu(seed, width):
    gate, up = arrays(seed, (2, width), (2, width))
    y = layers.swiglu(5 * gate, up)
    exact = [5 * a / (1 + math.exp(-5 * a)) * b for a, b in zip(gate.flat, up.flat)]
    # a relative error of the exponent's argument a comes out as |a| times as much
    np.testing.assert_allclose(y.ravel(), exact, rtol=(8 + 5 * np.abs(gate).max()) * U64)
    gradients_agree(layers.swiglu, gate, up)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swiglu_far_from_zero(dtype):
    # Nothing bounds a gate, and e⁹⁰ is no float32, e⁸⁰⁰ no float64 any more.
    gate, one = np.array([-800, -90, -50, 50, 90, 800], dtype), np.ones(6, dtype)
    relu = np.maximum(gate, 0)
    # gate·σ(gate) falls short of relu by |gate|·e^−|gate|, at most 50·e⁻⁵⁰ < 1e-19
    np.testing.assert_allclose(layers.swiglu(gate, one), relu, rtol=4 * U32, atol=1e-19)
    slope = elementwise_grad(lambda a: layers.swiglu(a, one))(gate)
    np.testing.assert_allclose(slope, relu / np.abs(gate), rtol=4 * U32, atol=1e-19)


# --------------------------------------------------------------------------------- rotation


def angle_bound(angle, theta):
    """How far off the cosine of an angle t·θ^(−y) may be that is computed in float32.

    In units of roundoff: the exponent's rounding counts ln θ fold, θ's own once, power two,
    division and product one each, all relative to the angle; then two for the cosine itself.
    """
    return U32 * ((5 + math.log(theta)) * angle + 2)


@given(st.integers(0, 3000), st.sampled_from([2, 4, 6, 64]), st.floats(100, 1e6))
def test_the_angle_is_the_papers(t, hd, theta):
    config = replace(TINY, head_dim=hd, rope_theta=theta)
    cos, sin = layers.rope_cos_sin(np.array([[t]]), config, np.float64)
    exact = np.array([t * theta ** (-2 * j / hd) for j in range(hd // 2)])
    assert cos.shape == sin.shape == (1, 1, hd // 2)
    assert (np.abs(cos[0, 0] - np.cos(exact)) <= angle_bound(exact, theta)).all()
    assert (np.abs(sin[0, 0] - np.sin(exact)) <= angle_bound(exact, theta)).all()


@given(st.sampled_from([2, 4, 6, 10, 64, 96]), st.sampled_from([10000.0, 500000.0, 1000003.0]))
def test_the_frequencies_bits(hd, theta):
    """Each step rounded to float32 once, and the power is taken in float64."""
    config, f32 = replace(TINY, head_dim=hd, rope_theta=theta), lambda x: float(np.float32(x))
    got = layers.rope_frequencies(config)
    expected = [f32(1 / f32(theta ** f32(2 * j / hd))) for j in range(hd // 2)]
    assert got.dtype == np.float32 and got.tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_angles_are_float32_as_checkpoints_are_trained_with(dtype):
    # a larger dtype holds the cosine of the same rounded angle
    t = np.array([[0, 1, 777], [100, 2000, 30000]])
    angles = np.float32(t)[..., None] * layers.rope_frequencies(TINY)
    assert angles.dtype == np.float32 and angles.shape == (2, 3, TINY.head_dim // 2)
    for got, f in zip(layers.rope_cos_sin(t, TINY, dtype), (np.cos, np.sin), strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, f(angles))
    assert [x.dtype for x in layers.rope_cos_sin(t, TINY)] == [np.float32] * 2


def test_embed_looks_up_and_counts_from_the_start_of_the_segment():
    (rows,), tokens = arrays(4, (5, 3)), np.array([[4, 0, 4], [1, 2, 3]])
    starts, frozen = np.array([[0, 0, 2], [0, 1, 1]]), {"embed_tokens": {"weight": rows}}
    ctx = layers.Context(TINY, layers, None, starts)
    x, positions, same = layers.embed(tokens, frozen, ctx)
    np.testing.assert_array_equal(x, [[rows[t] for t in row] for row in tokens])
    assert positions.tolist() == [[0, 1, 0], [0, 0, 1]] and same is starts
    cache = layers.LayerCache()
    cache.length = 5
    _, positions, _ = layers.embed(tokens, frozen, ctx._replace(cache=cache))
    assert positions.tolist() == [[5, 6, 5], [5, 5, 6]]


@few
@given(seeds, st.sampled_from([2, 4, 6]))
def test_rotation_is_a_complex_product_of_the_two_halves(seed, hd):
    x, angle = arrays(seed, (2, 3, 2, hd), (2, 3, hd // 2))
    y = layers.apply_rope(x, np.cos(angle), np.sin(angle))
    z = (x[..., : hd // 2] + 1j * x[..., hd // 2 :]) * np.exp(1j * angle)[:, :, None]
    np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], -1), rtol=0, atol=40 * U64)
    gradients_agree(lambda x: layers.apply_rope(x, np.cos(angle), np.sin(angle)), x)


@few
@given(seeds, st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_score_depends_on_the_distance_only(seed, t, s, shift):
    q, k = (x.reshape(1, 1, 1, 6) for x in arrays(seed, 6, 6))

    def score(t, s):
        at = [layers.rope_cos_sin(np.array([[p]]), TINY, np.float64) for p in (t, s)]
        return float(np.sum(layers.apply_rope(q, *at[0]) * layers.apply_rope(k, *at[1])))

    # Two scores of two turned vectors each; an error of cosine and sine moves a vector by at most
    # √2 of its length times as much.
    bound = 4 * math.sqrt(2) * angle_bound(80, TINY.rope_theta) * np.linalg.norm(q)
    assert abs(score(t, s) - score(t + shift, s + shift)) <= bound * np.linalg.norm(k)


def test_linear_stretching_is_slower_time():
    stretched = replace(TINY, rope_scaling={"rope_type": "linear", "factor": 4.0})
    np.testing.assert_array_equal(
        layers.rope_frequencies(stretched), layers.rope_frequencies(TINY) / 4
    )


def test_llama3_stretching():
    # as Llama 3.1's reference code has it, one wavelength at a time
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = replace(TINY, head_dim=64, rope_theta=500000.0)
    new = layers.rope_frequencies(replace(config, rope_scaling=scaling))
    kinds = set()
    for f, got in zip(layers.rope_frequencies(config).tolist(), new.tolist()):
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4.0:
            kinds.add("fast")
            expected = f
        elif wavelength > 8192 / 1.0:
            kinds.add("slow")
            expected = f / 8.0
        else:
            kinds.add("between")
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * f / 8.0 + smooth * f
        # `smooth` has an error of 5 roundings of a number up to 4 (over 3), weighed by at most f
        assert abs(got - expected) <= 12 * U32 * f
    assert kinds == {"fast", "slow", "between"} and new.dtype == np.float32


# -------------------------------------------------------------------------------- attention


def attention_by_loops(q, k, v, angles, starts, hd):
    """One head, one token, one key at a time, in float64."""
    (B, T, width), heads, kv = q.shape, q.shape[-1] // hd, k.shape[-1] // hd
    phase = np.asarray(angles[0], float) + 1j * np.asarray(angles[1], float)

    def turned(x, b, t, h):
        a = x[b, t, h * hd : (h + 1) * hd]
        return (a[: hd // 2] + 1j * a[hd // 2 :]) * phase[b, t]

    y = np.zeros((B, T, width))
    for b, t, h in np.ndindex(B, T, heads):
        g, keys = h // (heads // kv), range(starts[b, t], t + 1)
        turned_q = turned(q, b, t, h)
        scores = [(turned_q * turned(k, b, s, g).conj()).real.sum() / math.sqrt(hd) for s in keys]
        weights = [math.exp(score - max(scores)) for score in scores]
        for s, weight in zip(keys, weights):
            value = v[b, s, g * hd : (g + 1) * hd]
            y[b, t, h * hd : (h + 1) * hd] += weight / math.fsum(weights) * value
    return y


@settings(max_examples=40)
@given(attention_inputs())
def test_attention_by_loops(inputs):
    q, k, v, angles, starts, hd = inputs
    exact = attention_by_loops(*inputs)
    # A score is a sum of hd products, no larger in size than S; p = eˢ/Σeˢ is off by twice the
    # score's error, relatively, and by the sum's T roundings; y is a mean of v weighed by p.
    S = 2 * math.sqrt(hd) * np.abs(q).max() * np.abs(k).max()
    bound = 2 * (hd + q.shape[1] + 6) * U64 * (1 + S) * np.abs(v).max()
    np.testing.assert_allclose(layers.attention(q, k, v, angles, starts), exact, rtol=0, atol=bound)


@few
@given(attention_inputs())
def test_gradient_of_attention(inputs):
    *qkv, angles, starts, _ = inputs
    gradients_agree(lambda q, k, v: layers.attention(q, k, v, angles, starts), *qkv)


def test_visible():
    starts = np.array([[0, 0, 2, 2]])
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(layers.attention_mask(starts, 4)[0], np.array(expected, bool))
    # the last two of four tokens, when the first two are in a cache
    np.testing.assert_array_equal(
        layers.attention_mask(np.zeros((1, 2), int), 4)[0], [[1, 1, 1, 0], [1] * 4]
    )


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(0, 4))
def test_what_a_token_sees_after_others_in_a_cache(seed, B, T, past):
    starts = random_starts(np.random.default_rng(seed), B, T)
    seen = layers.attention_mask(starts, past + T)
    assert seen.shape == (B, T, past + T) and seen.dtype == bool
    for b, t, s in np.ndindex(B, T, past + T):
        own = starts[b, t] <= s - past <= t  # keys of the same example that are not later
        assert seen[b, t, s] == (s < past or own)


@given(seeds, st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_the_cache_holds_the_keys_and_values_in_the_order_of_the_tokens(seed, sizes):
    cache, rng = layers.LayerCache(), np.random.default_rng(seed)
    assert cache.length == 0
    k, v = rng.standard_normal((2, 2, sum(sizes), 3, 4))
    for n in sizes:
        part, at = slice(cache.length, cache.length + n), cache.length + n
        keys, values = cache.extend(k[:, part], v[:, part])
        assert cache.length == at
        for got, held, given_ in ((keys, cache.k, k), (values, cache.v, v)):
            assert held is got
            np.testing.assert_array_equal(got, given_[:, :at])


windows = st.none() | st.integers(1, 6)


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(0, 4), windows)
def test_a_window_is_the_last_keys_of_those(seed, B, T, past, window):
    starts = random_starts(np.random.default_rng(seed), B, T)
    every = layers.attention_mask(starts, past + T)
    seen = layers.attention_mask(starts, past + T, window)
    for b, t, s in np.ndindex(every.shape):
        last = range(past + t + 1)[-(window or 0) :]  # the token's own key and those before it
        assert seen[b, t, s] == (every[b, t, s] and s in last)


@given(seeds, st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 4))
def test_the_cache_keeps_what_a_window_needs(seed, sizes, window):
    cache, at = layers.LayerCache(), 0
    k, v = np.random.default_rng(seed).standard_normal((2, 2, sum(sizes), 3, 4))
    for n in sizes:
        keys, values = cache.extend(k[:, at : at + n], v[:, at : at + n], window)
        at += n
        first = max(0, at - n - window)
        for got, held, given_ in ((keys, cache.k, k), (values, cache.v, v)):
            np.testing.assert_array_equal(got, given_[:, first:at])
            np.testing.assert_array_equal(held, given_[:, max(0, at - window) : at])
        assert cache.length == at


@few
@given(attention_inputs(), windows, st.data())
def test_attention_token_by_token_with_a_cache(inputs, window, data):
    q, k, v, angles, starts, hd = inputs
    starts = np.zeros_like(starts)
    T, cache, parts, at = q.shape[1], layers.LayerCache(), [], 0
    while at < T:
        n = data.draw(st.integers(1, T - at))
        now = slice(at, at + n)
        rope = tuple(x[:, now] for x in angles)
        parts.append(
            layers.attention(q[:, now], k[:, now], v[:, now], rope, starts[:, now], cache, window)
        )  # fmt: skip
        at += n
        assert cache.length == at
    whole = layers.attention(q, k, v, angles, starts, window=window)
    # the same sums of hd products and of T terms, perhaps in another order: see above
    S = 2 * math.sqrt(hd) * np.abs(q).max() * np.abs(k).max()
    bound = 4 * (hd + T + 6) * U64 * (1 + S) * np.abs(v).max()
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=bound)


def context(rope, starts, cache=None, **fields):
    """The context of a sublayer whose heads have the width of the angles."""
    config = replace(TINY, head_dim=2 * rope[0].shape[-1], **fields)
    return layers.Context(config, layers, rope, starts, cache)


def test_a_sublayer_hands_on_its_cache():
    rng = np.random.default_rng(0)
    shapes = {"q_proj": (8, 6), "k_proj": (4, 6), "v_proj": (4, 6), "o_proj": (6, 8)}
    frozen = {name: {"weight": rng.standard_normal(shape)} for name, shape in shapes.items()}
    x, starts, cache = rng.standard_normal((1, 5, 6)), np.zeros((1, 5), int), layers.LayerCache()
    rope = layers.rope_cos_sin(np.arange(5)[None], replace(TINY, head_dim=4), np.float64)
    whole = layers.self_attention(x, frozen, context(rope, starts))
    for t in range(5):
        now, at = slice(t, t + 1), tuple(a[:, t : t + 1] for a in rope)
        y = layers.self_attention(x[:, now], frozen, context(at, starts[:, now], cache))
        # numbers of size ten or so, through four sums of at most eight terms
        np.testing.assert_allclose(y, whole[:, now], rtol=0, atol=1e4 * U64)
    assert cache.length == 5


def normed_sublayer(seed, hd=4):
    """(x, q_norm, k_norm, frozen, rope, starts) of a sublayer whose heads are normalized."""
    rng, shapes = (
        np.random.default_rng(seed),
        {"q_proj": (2 * hd, 6), "k_proj": (hd, 6), "v_proj": (hd, 6), "o_proj": (6, 2 * hd)},
    )
    frozen = {name: {"weight": rng.standard_normal(shape)} for name, shape in shapes.items()}
    x, q_norm, k_norm = rng.standard_normal((2, 5, 6)), *rng.standard_normal((2, hd))
    frozen |= {"q_norm": {"weight": q_norm}, "k_norm": {"weight": k_norm}}
    starts = random_starts(rng, 2, 5)
    rope = layers.rope_cos_sin(np.arange(5) - starts, replace(TINY, head_dim=hd), np.float64)
    return x, q_norm, k_norm, frozen, rope, starts


@few
@given(seeds)
def test_each_head_of_q_and_k_is_normalized_before_the_rotation(seed):
    x, q_norm, k_norm, frozen, rope, starts = normed_sublayer(seed)
    q, k, v = (x @ frozen[f"{n}_proj"]["weight"].T for n in "qkv")
    for h in range(3):  # two heads of q, one of k; every head with the weight of all
        part, w = (q[..., 4 * h : 4 * h + 4], q_norm) if h < 2 else (k, k_norm)
        part *= w / np.sqrt(np.mean(part**2, axis=-1, keepdims=True) + 0.1)
    mixed = layers.attention(q, k, v, rope, starts) @ frozen["o_proj"]["weight"].T
    got = layers.self_attention(x, frozen, context(rope, starts, rms_norm_eps=0.1, qk_norm=True))
    # numbers of size ten or so, through five sums of at most eight terms
    np.testing.assert_allclose(got, mixed, rtol=0, atol=1e4 * U64)


@few
@given(seeds, windows)
def test_gradient_of_the_norms_of_the_heads(seed, window):
    x, q_norm, k_norm, frozen, *rest = normed_sublayer(seed)
    ctx = context(*rest, rms_norm_eps=0.1, sliding_window=window, qk_norm=True)

    def f(x, q_norm, k_norm):
        trained = {"q_norm": {"weight": q_norm}, "k_norm": {"weight": k_norm}}
        return layers.self_attention(x, frozen | trained, ctx)

    gradients_agree(f, x, q_norm, k_norm)


# ---------------------------------------------------------------------------- cross-entropy


@few
@given(seeds, sizes, sizes, st.integers(2, 7))
def test_cross_entropy(seed, T, width, vocab):
    hidden, head, _ = arrays(seed, (2, T, width), (vocab, width), 1)
    rng = np.random.default_rng(seed)
    targets, mask = rng.integers(vocab, size=(2, T)), rng.integers(2, size=(2, T)).astype(float)
    mask[1, T - 1] = 1
    terms = []
    for at in zip(*np.nonzero(mask)):
        z = [math.fsum(hidden[at] * row) for row in head]
        terms.append(math.log(math.fsum(map(math.exp, z))) - z[targets[at]])
    loss = layers.cross_entropy(hidden, head, targets, mask)
    # the logits' own sums, then a sum over the vocabulary and one over the rows
    size = 1 + np.abs(hidden).max() * np.abs(head).max() * width
    assert abs(loss - math.fsum(terms) / len(terms)) < (width + vocab + len(terms) + 8) * U64 * size
    gradients_agree(lambda h, e: layers.cross_entropy(h, e, targets, mask), hidden, head)


def test_cross_entropy_of_a_uniform_guess_is_the_logarithm_of_the_vocabulary():
    hidden, head = np.zeros((1, 3, 4), np.float32), np.ones((7, 4), np.float32)
    loss = layers.cross_entropy(hidden, head, np.array([[0, 3, 6]]), np.ones((1, 3), np.float32))
    assert abs(loss - math.log(7)) < 4 * U32 * math.log(7)


# ----------------------------------------------------------------------------------- gradients


@few
@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_value_and_grad_passes_everything_on_and_keeps_the_paths(seed, a, b):
    w, v = arrays(seed, 3, (2, 2))
    tree = {"x": {"w": w, "y": {"v": v}}}

    def f(tree, a, *, b):
        return a * anp.sum(tree["x"]["w"] ** 2) + b * anp.sum(tree["x"]["y"]["v"])

    value, grads = layers.value_and_grad(f)(tree, a, b=b)
    bound = 12 * U64 * (abs(a) * (w * w).sum() + abs(b) * np.abs(v).sum())
    assert abs(value - (a * (w * w).sum() + b * v.sum())) <= bound
    np.testing.assert_allclose(grads["x"]["w"], 2 * a * w, rtol=4 * U64)
    np.testing.assert_array_equal(grads["x"]["y"]["v"], np.full((2, 2), b))
    assert grads.keys() == {"x"} and grads["x"].keys() == {"w", "y"}


@few
@given(seeds)
def test_a_checkpoint_has_the_gradient_of_what_it_recomputes(seed):
    x, w, v = arrays(seed, (2, 3), (3, 3), 3)

    def block(x, tree):
        return anp.tanh(x @ tree["a"]["w"]) * tree["v"] + x

    def kept(x, w, v):
        return block(x, {"a": {"w": w}, "v": v})

    def recomputed(x, w, v):
        return layers.checkpoint(block, x, {"a": {"w": w}, "v": v})

    np.testing.assert_array_equal(recomputed(x, w, v), kept(x, w, v))
    gradients_agree(recomputed, x, w, v)
    gradients_agree(lambda w, v: recomputed(x, w, v), w, v)  # autograd traces nothing below it
    gradients_agree(lambda w: recomputed(x, w, v), w)
    gradients_agree(lambda x: recomputed(x, w, v), x)
    gradients_agree(lambda x, v: recomputed(x, w, v), x, v)

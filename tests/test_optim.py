"""AdamW and Muon against plain loops over numbers, clipping, schedules, and rounding."""

import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import fingerprint, read_only, seeds

from minilora.config import InputError, TrainConfig
from minilora.methods.muon import muon, muon_init, orthogonalize
from minilora.optim import (
    adamw,
    adamw_init,
    clip,
    get_lr,
    global_norm,
    round_to,
    to_bfloat16,
)
from minilora.tree import flatten, named_leaves, tree_map, unflatten

U32, U64 = 2.0**-24, 2.0**-53


def random_tree(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    tree = {
        "a": {"lora_A": rng.standard_normal((2, 3))},
        "norm": {"weight": rng.standard_normal(4)},
    }
    return tree_map(lambda w: w.astype(dtype), tree)


# ------------------------------------------------------------------------------------ AdamW


def adam_by_hand(theta, gradients, rate, b1, b2, eps, decay):
    """Loshchilov and Hutter 2019, Algorithm 2, for one number; lines as there."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g  # 7
        v = b2 * v + (1 - b2) * g**2  # 8
        m_hat = m / (1 - b1**t)  # 9
        v_hat = v / (1 - b2**t)  # 10
        # 12, with λ multiplied by the rate, as torch has it
        theta = theta - rate * (m_hat / (math.sqrt(v_hat) + eps) + decay * theta)
    return theta


betas = st.sampled_from([0.0, 0.5, 0.9, 0.999])


@given(seeds, betas, betas, st.sampled_from([1e-8, 1e-3]), st.sampled_from([0.0, 0.1, 3.0]))
def test_adamw_is_the_papers(seed, b1, b2, eps, decay):
    config = TrainConfig(adam_beta1=b1, adam_beta2=b2, adam_eps=eps, weight_decay=decay)
    rates = {"a.lora_A": 0.01, "norm.weight": 0.002}
    start = params = random_tree(seed)
    gradients = [random_tree([seed, t]) for t in range(7)]
    state = adamw_init(params)
    for g in gradients:
        params, state = adamw(params, g, state, rates, config)
    assert state["step"] == 7
    for path, got in named_leaves(params):
        for at in np.ndindex(got.shape):
            expected = adam_by_hand(
                flatten(start)[path][at], [flatten(g)[path][at] for g in gradients],
                rates[path], b1, b2, eps, decay,
            )  # fmt: skip
            # Seven steps of some ten roundings, of a number and of seven updates no larger than
            # the rate times 1/√(1 − β₂) ≤ 32 each; 1 − β₂ᵗ cancels three digits.
            size = abs(flatten(start)[path][at]) + 7 * 32 * rates[path]
            assert abs(got[at] - expected) <= 7 * 10 * 1000 * U64 * size


def test_adamw_reads_what_it_is_given_and_writes_something_new():
    params, grads = (read_only(random_tree(seed, np.float32)) for seed in (0, 1))
    state = adamw_init(params)
    read_only({"m": state["m"], "v": state["v"]})
    rates = dict.fromkeys(flatten(params), 0.1)
    new, after = adamw(params, grads, state, rates, TrainConfig(weight_decay=0.1))
    assert fingerprint(params) != fingerprint(new) and state["step"] == 0
    for tree in (new, after["m"], after["v"]):
        assert flatten(tree).keys() == flatten(params).keys()
        assert all(w.dtype == np.float32 for _, w in named_leaves(tree))


def test_the_first_step_is_the_rate_whatever_the_gradients_size():
    # m̂ = g and v̂ = g², so the step is η·g/(|g| + ε)
    params, g = {"w": np.zeros(4)}, {"w": np.array([1e-5, -1e-2, 1.0, -1e4])}
    new, _ = adamw(params, g, adamw_init(params), {"w": 0.1}, TrainConfig())
    np.testing.assert_allclose(new["w"], [-0.1, 0.1, -0.1, 0.1], rtol=1.001e-8 / 1e-5)


def test_decay_is_decoupled():
    # Without a gradient a weight shrinks by 1 − ηλ, whatever Adam's moments would have made of
    # λθ; a leaf whose rate is zero stays as it is.
    config = TrainConfig(weight_decay=0.5)
    params = {"w": np.array([1.0, -1e3, 1e-3]), "still": np.ones(2)}
    zero = tree_map(np.zeros_like, params)
    new, state = adamw(params, zero, adamw_init(params), {"w": 0.1, "still": 0.0}, config)
    np.testing.assert_array_equal(new["w"], params["w"] * (1 - 0.1 * 0.5))
    np.testing.assert_array_equal(new["still"], 1)
    assert not state["m"]["w"].any() and not state["v"]["w"].any()


# ------------------------------------------------------------------------------------ Muon

A0, BIAS, HEAD = "model.layers.0.mlp.up_proj.lora_A", "model.layers.0.mlp.up_proj.bias", "lm_head"
SHAPES = {A0: (2, 5), A0.replace("lora_A", "lora_B"): (4, 2), BIAS: (4,), f"{HEAD}.weight": (3, 2)}


def muon_tree(seed):
    rng = np.random.default_rng(seed)
    return unflatten({path: rng.standard_normal(shape) for path, shape in SHAPES.items()})


@given(seeds, st.integers(1, 8), st.integers(1, 8), st.sampled_from((1e-3, 1.0, 1e3)))
def test_orthogonalizing_brings_the_singular_values_near_one(seed, out, into, size):
    """The singular vectors stay, and each singular value goes through the polynomial."""
    rng, rank = np.random.default_rng(seed), min(out, into)
    u, _ = np.linalg.qr(rng.standard_normal((out, rank)))
    v, _ = np.linalg.qr(rng.standard_normal((into, rank)))
    s = size * rng.uniform(1 / 3, 1, rank)
    found = orthogonalize(u * s @ v.T)
    values = u.T @ found @ v
    assert (np.diag(values) > 0.6).all() and (np.diag(values) < 1.25).all()
    s = s / (np.linalg.norm(s) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    # an iteration multiplies an error by at most 3.4445, and five by 485; each adds some hundred
    # roundings of numbers near one
    bound = 500 * 5 * 100 * U64
    np.testing.assert_allclose(values, np.diag(s), rtol=0, atol=bound)
    np.testing.assert_allclose(found, u * s @ v.T, rtol=0, atol=bound)


def matmul_by_hand(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def orthogonalized_by_hand(m):
    """Jordan et al. 2024, `zeropower_via_newtonschulz5`, in lists of lists."""
    if len(m) > len(m[0]):
        m = [list(row) for row in zip(*m)]
        return [list(row) for row in zip(*orthogonalized_by_hand(m))]
    norm = math.sqrt(sum(x * x for row in m for x in row)) + 1e-7
    x = [[number / norm for number in row] for row in m]
    for _ in range(5):
        gram = matmul_by_hand(x, [list(row) for row in zip(*x)])
        square = matmul_by_hand(gram, gram)
        both = [
            [-4.775 * g + 2.0315 * s for g, s in zip(grams, squares)]
            for grams, squares in zip(gram, square)
        ]
        moved = matmul_by_hand(both, x)
        x = [[3.4445 * a + b for a, b in zip(old, new)] for old, new in zip(x, moved)]
    return x


def muon_by_hand(w, gradients, rate, decay):
    """A matrix after the steps: momentum 0.95 with Nesterov, and the scale √max(1, out/in)."""
    momentum = np.zeros_like(w)
    scale = math.sqrt(max(1, w.shape[0] / w.shape[1]))
    w = w.copy()
    for g in gradients:
        for at in np.ndindex(w.shape):
            momentum[at] = 0.95 * momentum[at] + g[at]
        update = orthogonalized_by_hand((0.95 * momentum + g).tolist())
        for i, j in np.ndindex(w.shape):
            w[i, j] = w[i, j] * (1 - rate * decay) - rate * scale * update[i][j]
    return w


@given(seeds, st.sampled_from([0.0, 0.1, 3.0]))
def test_muon_is_a_plain_loop(seed, decay):
    config = TrainConfig(optimizer="muon", weight_decay=decay)
    rates = {path: 0.01 * (n + 1) for n, path in enumerate(SHAPES)}
    start = params = read_only(muon_tree(seed))
    gradients = [read_only(muon_tree([seed, t])) for t in range(3)]
    state = muon_init(params)
    for g in gradients:
        params, state = muon(params, g, state, rates, config)
    assert state["step"] == 3 and flatten(params).keys() == SHAPES.keys()
    for path in SHAPES:
        if "lora" in path:
            of_path = [flatten(g)[path] for g in gradients]
            expected = muon_by_hand(flatten(start)[path], of_path, rates[path], decay)
            # see above; the weights are below 8, and each step rounds them a few times
            atol = 3 * (500 * 5 * 100 * rates[path] + 8 * 10) * U64
            np.testing.assert_allclose(flatten(params)[path], expected, rtol=0, atol=atol)


def test_muon_takes_steps_of_adamw_where_a_leaf_is_no_matrix_of_a_layer():
    config, rates = TrainConfig(optimizer="muon", weight_decay=0.1), dict.fromkeys(SHAPES, 0.01)
    params, gradients = muon_tree(0), [muon_tree(1), muon_tree(2)]
    others = {BIAS, f"{HEAD}.weight"}

    def part(tree):
        return unflatten({path: w for path, w in flatten(tree).items() if path in others})

    state, expected = muon_init(params), part(params)
    expected_state = adamw_init(expected)
    assert flatten(state["momentum"]).keys() == SHAPES.keys() - others
    for g in gradients:
        params, state = muon(params, g, state, rates, config)
        of_others = {path: rates[path] for path in others}
        expected, expected_state = adamw(expected, part(g), expected_state, of_others, config)
    assert fingerprint(part(params)) == fingerprint(expected)
    for name in ("m", "v"):
        assert fingerprint(state[name]) == fingerprint(expected_state[name])


# --------------------------------------------------------------------------------- clipping


@given(seeds, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clip(seed, size, most):
    grads = tree_map(lambda g: size * g, random_tree(seed))
    flat = np.concatenate([g.ravel() for _, g in named_leaves(grads)])
    clipped, norm = clip(grads, most)
    exact = math.sqrt(math.fsum(flat**2))
    assert math.isclose(norm, exact, rel_tol=20 * U64) and norm == global_norm(grads)
    if exact + 1e-6 <= most:
        assert clipped is grads
        return
    # torch's factor, most/(norm + 1e-6), and one direction for all leaves
    new = np.concatenate([g.ravel() for _, g in named_leaves(clipped)])
    np.testing.assert_allclose(new, flat * (most / (exact + 1e-6)), rtol=30 * U64)
    assert np.linalg.norm(new) <= most


def test_clip_keeps_dtypes_and_shows_what_is_not_finite():
    clipped, _ = clip(random_tree(0, np.float32), 1e-3)
    assert all(g.dtype == np.float32 for _, g in named_leaves(clipped))
    for bad in (np.nan, np.inf):
        with np.errstate(invalid="ignore"):
            assert not math.isfinite(clip({"w": np.float32([1, bad])}, 1.0)[1])


# -------------------------------------------------------------------------------- schedules

schedules = st.sampled_from(["constant", "linear", "cosine"])
ratios = st.sampled_from([0.0, 0.03, 0.06, 0.1, 0.5, 0.99])


def make_adapter_config(schedule, iters, ratio, rate=2e-4):
    schedule = "".join([*schedule])  # another object than the literal
    return TrainConfig(lr_schedule=schedule, iters=iters, warmup_ratio=ratio, learning_rate=rate)


@given(schedules, st.integers(1, 400), ratios)
def test_the_schedules_ends(schedule, iters, ratio):
    config = make_adapter_config(schedule, iters, ratio)
    rates = [get_lr(step, config) for step in range(iters)]
    warmup = math.ceil(ratio * iters)
    # The first step of a warm-up has rate zero; the one after the warm-up has all of it.
    assert rates[0] == (0 if warmup else config.learning_rate)
    if warmup < iters:
        assert rates[warmup] == config.learning_rate == max(rates)
        assert rates[-1] > 0  # the last step still moves: zero would come one step later
        end = get_lr(iters, config)
        assert end == (config.learning_rate if schedule == "constant" else 0)
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    falling = list(pairwise(rates[warmup:]))
    if schedule == "constant":
        assert all(a == b for a, b in falling)
    else:
        assert all(a > b for a, b in falling)


@given(st.integers(2, 200), ratios)
def test_the_schedules_shape(iters, ratio):
    warmup = math.ceil(ratio * iters)
    if warmup >= iters:
        return
    linear, cosine = (make_adapter_config(s, iters, ratio, 1.0) for s in ("linear", "cosine"))
    at = np.array([get_lr(s, linear) for s in range(warmup, iters + 1)])
    np.testing.assert_allclose(np.diff(at), -1 / (iters - warmup), rtol=0, atol=4 * U64)
    at = np.array([get_lr(s, cosine) for s in range(warmup, iters + 1)])
    np.testing.assert_allclose(at + at[::-1], 1, rtol=0, atol=8 * U64)  # a half turn, symmetric
    if warmup > 1:
        up = [get_lr(s, cosine) for s in range(warmup + 1)]
        np.testing.assert_allclose(np.diff(up), 1 / warmup, rtol=0, atol=4 * U64)


@given(schedules, st.integers(1, 1000), ratios, st.floats(1e-6, 1.0))
def test_the_schedules_bits_are_transformers(schedule, iters, ratio, rate):
    config, warmup = make_adapter_config(schedule, iters, ratio, rate), math.ceil(ratio * iters)
    for step in (*range(0, iters, 1 + iters // 50), iters, iters + 1, iters + 2):
        done = (step - warmup) / max(1, iters - warmup)
        factor = {
            "constant": 1.0,
            "linear": max(0.0, (iters - step) / max(1, iters - warmup)),
            "cosine": max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * done))),
        }[schedule]
        if step < warmup:
            factor = step / max(1, warmup)
        assert get_lr(step, config) == rate * factor


# --------------------------------------------------------------------------- adapter's dtype

floats = hnp.arrays(np.float32, 5, elements=st.floats(-6e4, 6e4, width=32))


def bfloat16(x):
    """The nearest number of eight bits, ties to the even one, by trying both neighbours."""
    word = struct.unpack("<I", struct.pack("<f", x))[0]
    low, high = (
        struct.unpack("<f", struct.pack("<I", w << 16))[0] for w in (word >> 16, (word >> 16) + 1)
    )
    below, above = abs(float(x) - low), abs(high - float(x))
    even = low if word >> 16 & 1 == 0 else high
    return even if below == above else (low if below < above else high)


# halfway between two neighbours of eight bits, or one step of float32 to either side
near_ties = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 0x7F7E), st.integers(0x7FFF, 0x8001)), min_size=1
).map(lambda xs: np.uint32([s << 31 | high << 16 | low for s, high, low in xs]).view(np.float32))


@given(floats | near_ties)
def test_rounding_to_bfloat16(x):
    y = round_to({"w": x}, "bfloat16")["w"]
    assert y.dtype == np.float32
    assert y.tolist() == [bfloat16(v) for v in x]
    assert (np.abs(y - x) <= np.abs(x) * 2.0**-8 + 2.0**-134).all()  # eight bits, or the last one


def test_a_tie_goes_to_the_even_number():
    x = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, -1 - 3 * 2.0**-8])
    even = [1, 1 + 2.0**-6, -1, -1 - 2.0**-6]
    assert round_to({"w": x}, "bfloat16")["w"].tolist() == even
    x = np.float32([1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, -1 - 3 * 2.0**-11])
    even = [1, 1 + 2.0**-9, -1, -1 - 2.0**-9]
    assert round_to({"w": x}, "float16")["w"].tolist() == even
    above = np.nextafter(np.float32(1 + 2.0**-8), np.float32(2))
    upper = to_bfloat16(np.float32([1, -1, 1 + 2.0**-8, above]))
    assert upper.dtype == np.uint16 and upper.tolist() == [0x3F80, 0xBF80, 0x3F80, 0x3F81]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float64_is_rounded_too(dtype):
    w = np.array([[1 + 2.0**-7, 0.3], [-5.5, 1e-3]])
    expected = round_to({"w": w.astype(np.float32)}, dtype)["w"]
    got = round_to({"w": w.T}, dtype)["w"]  # in another order of memory
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.T, expected)


@given(floats)
def test_rounding_to_float16(x):
    y = round_to({"w": x}, "float16")["w"]
    assert y.dtype == np.float32 and (y == x.astype(np.float16)).all()


@given(floats, st.sampled_from(["bfloat16", "float16", "float32"]))
def test_rounding_twice_is_rounding_once(x, dtype):
    once = round_to({"w": x}, dtype)
    assert fingerprint(round_to(once, dtype)) == fingerprint(once)
    if dtype == "float32":
        assert once["w"] is x


def test_a_number_too_large_for_the_dtype_is_refused():
    with pytest.raises(InputError, match="float16 cannot hold"):
        round_to({"w": np.float32([1, 7e4])}, "float16")
    # 65504 is the largest number; from 65520 on, numbers round to infinity
    assert round_to({"w": np.float32([65519])}, "float16")["w"] == 65504
    for dtype, bad in (("float16", 65520), ("bfloat16", np.finfo(np.float32).max)):
        tree = {"a": {"w": np.float32([1, bad])}}
        with pytest.raises(InputError, match=f"a.w has a number that {dtype} cannot hold"):
            round_to(tree, dtype)

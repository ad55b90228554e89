"""AdamW and Muon against plain loops over numbers, clipping, and rounding."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import U64, read_only, seeds, vector
from numpy.testing import assert_allclose, assert_array_equal
from outcomes import refused

from minilora.config import TrainConfig
from minilora.methods.muon import orthogonalize
from minilora.optim import OPTIMIZERS, clip, get_lr, global_norm
from minilora.rounding import round_to, to_bfloat16
from minilora.tree import flatten, named_leaves, tree_map, unflatten

A = "model.layers.0.mlp.up_proj.lora_A"
B = "model.layers.0.mlp.up_proj.lora_B"
SHAPES = {
    A: (2, 5), B: (4, 2), "model.layers.0.mlp.up_proj.bias": (4,), "lm_head.weight": (3, 2),
    "model.layers.0.mlp.down_proj.ia3_l": (1, 4),  # a vector
}  # fmt: skip
RATES = {path: 0.01 * n for n, path in enumerate(SHAPES, 1)}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return read_only(unflatten({path: rng.standard_normal(s) for path, s in SHAPES.items()}))


# ----------------------------------------------------------------------------------- steps


def adam_by_hand(theta, gradients, rate, b1, b2, eps, decay):
    """Loshchilov and Hutter 2019, Algorithm 2, for one leaf; lines as there."""
    m, v = 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g  # 7
        v = b2 * v + (1 - b2) * g**2  # 8
        m_hat = m / (1 - b1**t)  # 9
        v_hat = v / (1 - b2**t)  # 10
        # 12, with λ multiplied by the rate, as torch has it
        theta = theta - rate * (m_hat / (np.sqrt(v_hat) + eps) + decay * theta)
    return theta


def muon_by_hand(w, gradients, rate, decay):
    """Momentum 0.95 with Nesterov, and the scale √max(1, out/in)."""
    momentum, scale = 0.0, math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
    for g in gradients:
        momentum = 0.95 * momentum + g
        w = w * (1 - rate * decay) - rate * scale * orthogonalize(0.95 * momentum + g)
    return w


betas = st.sampled_from([0.0, 0.5, 0.9, 0.999])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@given(seeds, betas, betas, st.sampled_from([1e-8, 1e-3]), st.sampled_from([0.0, 0.1, 3.0]))
def test_adamw_is_the_papers_and_muon_takes_its_place_for_the_matrices_of_the_layers(
    optimizer, seed, b1, b2, eps, decay
):
    config = TrainConfig(
        optimizer=optimizer, adam_beta1=b1, adam_beta2=b2, adam_eps=eps, weight_decay=decay
    )
    init, step = OPTIMIZERS[optimizer]
    params = random_tree(seed)
    leaves, state = flatten(params), init(params)
    gradients = [random_tree([seed, t]) for t in range(7)]
    for g in gradients:
        params, state = step(params, g, state, RATES, config)
    assert state["step"] == 7
    for path, got in named_leaves(params):
        w, rate, of_path = leaves[path], RATES[path], [flatten(g)[path] for g in gradients]
        if optimizer == "muon" and path in (A, B):
            expected = muon_by_hand(w, of_path, rate, decay)
        else:
            expected = adam_by_hand(w, of_path, rate, b1, b2, eps, decay)
        # Seven steps of some ten roundings, of a number and of seven updates no larger than
        # the rate times 1/√(1 − β₂) ≤ 32 each; 1 − β₂ᵗ cancels three digits.
        size = np.abs(w) + 7 * 32 * rate
        assert (np.abs(got - expected) <= 7 * 10 * 1000 * U64 * size).all()


@given(seeds, st.integers(1, 8), st.integers(1, 8), st.sampled_from((1e-3, 1.0, 1e3)))
def test_orthogonalizing_brings_the_singular_values_near_one(seed, out, into, size):
    """The singular vectors stay, and each singular value goes through the polynomial."""
    rng, rank = np.random.default_rng(seed), min(out, into)
    u, v = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in (out, into))
    s = rng.uniform(1 / 3, 1, rank)
    found = orthogonalize(size * u * s @ v.T)
    s /= np.linalg.norm(s) + 1e-7 / size
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    assert (s > 0.6).all() and (s < 1.25).all()
    # an iteration multiplies an error by at most 3.4445, and five by 485; each adds some hundred
    # roundings of numbers near one
    assert_allclose(found, u * s @ v.T, rtol=0, atol=500 * 5 * 100 * U64)


# --------------------------------------------------------------------------------- clipping


@given(seeds, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clip(seed, size, most):
    grads = tree_map(lambda g: size * g, random_tree(seed))
    clipped, norm = clip(grads, most)
    exact = math.sqrt(math.fsum(vector(grads) ** 2))
    assert math.isclose(norm, exact, rel_tol=20 * U64) and norm == global_norm(grads)
    if exact + 1e-6 <= most:
        assert clipped is grads
        return
    # torch's factor, most/(norm + 1e-6), and one direction for all leaves
    new = vector(clipped)
    assert_allclose(new, vector(grads) * (most / (exact + 1e-6)), rtol=30 * U64)
    assert np.linalg.norm(new) <= most


# -------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    "schedule, half, end", [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_a_schedule_warms_up_and_goes_down_to_its_end(schedule, half, end):
    """tests/peers has the bits of transformers' schedulers."""
    config = TrainConfig(lr_schedule=schedule, iters=10, warmup_ratio=0.2, learning_rate=1.0)
    found = [get_lr(step, config) for step in (0, 1, 2, 6, 10)]
    assert found == pytest.approx([0, 0.5, 1, half, end], abs=1e-9)
    assert get_lr(12, config) >= 0 and get_lr(1, replace(config, iters=2)) == 1


# --------------------------------------------------------------------------- adapter's dtype


def bfloat16(x):
    """The nearest number of eight bits, ties to the even one, as Python rounds to whole numbers."""
    _, exponent = math.frexp(x)
    unit = max(exponent - 8, -133)  # the smallest number is 2⁻¹³³
    return math.ldexp(round(math.ldexp(x, -unit)), unit)


# eight bits; halfway between two neighbours of them; one step of float32 away
near_ties = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 0x7F7E), st.sampled_from((0, 1, 0x7FFF, 0x8000, 0x8001))
    ),
    min_size=1,
).map(lambda xs: np.uint32([s << 31 | high << 16 | low for s, high, low in xs]).view(np.float32))


@given(near_ties)
def test_rounding_to_bfloat16(x):
    # float64 is rounded too, in any order of memory
    for x in (x, np.stack([x, x]).astype(np.float64).T):
        y = round_to({"w": x}, "bfloat16")["w"]
        assert y.dtype == np.float32 and y.tolist() == np.vectorize(bfloat16)(x).tolist()
        assert to_bfloat16(x).dtype == np.uint16
        assert_array_equal(to_bfloat16(x), to_bfloat16(y))


def test_a_number_too_large_for_the_dtype_is_refused():
    # 65504 is the largest number; from 65520 on, numbers round to infinity
    assert round_to({"w": np.float32([65519])}, "float16")["w"] == 65504
    for dtype, bad in (("float16", 65520), ("bfloat16", np.finfo(np.float32).max)):
        tree = {"a": {"w": np.float32([1, bad])}}
        with refused(f"a.w has a number that {dtype} cannot hold"):
            round_to(tree, dtype)

"""Generation: the cache changes only the cost; samples follow the requested distribution."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import (
    PATHS,
    TINY,
    U64,
    adapted,
    close,
    configs,
    empty_caches,
    fast_model,
    quantized,
    random_model,
    seeds,
)
from numpy.testing import assert_allclose
from outcomes import refused

import minilora
from minilora import generate, generation
from minilora.generation import sample
from minilora.model import Model, hidden_states, with_adapters


@PATHS
@given(configs(), seeds, st.sets(st.integers(1, 4)), st.booleans())
def test_the_cache_gives_the_states_of_the_whole_sequence(ops, config, seed, splits, four_bit):
    model = random_model(config, seed, np.float64, ops=ops)
    model = with_adapters(*adapted(quantized(model) if four_bit else model, seed))
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(2, 5))
    caches = empty_caches(config)
    whole = hidden_states(model, tokens, 0 * tokens)
    parts = [
        hidden_states(model, part, 0 * part, caches)
        for part in np.split(tokens, sorted(splits), axis=1)
    ]
    close(np.concatenate(parts, axis=1), whole)  # the same sums in another order
    for cache in caches:  # it keeps what a window needs
        assert (cache.k.shape[1], cache.length) == (min(5, config.sliding_window or 5), 5)


@given(seeds)
def test_greedy_generation_is_the_argmax_of_the_whole_sequence(seed):
    model, tokens = fast_model(TINY, seed, np.float64), [1, 2, 3]
    for token in generate({}, model, [1, 2, 3], max_tokens=6):
        assert token == np.argmax(minilora.forward({}, model, [tokens])[0, -1])
        tokens.append(token)
    assert len(tokens) == 9


# --------------------------------------------------------------------------------- sampling


class Drawing:
    """A generator that stores the distribution of each draw, and returns the most probable."""

    def choice(self, kept, p):
        self.kept, self.p = kept.tolist(), p
        return kept[0]


def test_top_p_that_is_reached_exactly_keeps_no_further_token():
    """The smallest set with Σ p ≥ top_p (Holtzman et al. 2020, Eq. 2), as in transformers."""
    rng = Drawing()
    sample(np.zeros(8), 1.0, 0.625, rng)  # 5/8, which a float holds exactly
    assert rng.kept == [0, 1, 2, 3, 4]


# multiples of 1/8: a difference of two of them is exact in float32; many of them are equal
eighths = st.one_of(
    st.lists(st.integers(-240, 240), min_size=1, max_size=9),
    st.lists(st.integers(-2, 2), min_size=20, max_size=40),
).map(lambda numbers: np.float32(numbers) / 8)


@given(eighths, st.floats(0.05, 20), st.floats(0, 1, exclude_min=True) | st.just(1.0))
def test_what_is_drawn_from_is_the_nucleus_of_softmax_at_the_temperature(logits, temp, top_p):
    rng = Drawing()
    token = sample(logits, temp, top_p, rng)
    z = [float(a - logits.max()) / temp for a in logits]
    weights = np.array([math.exp(a) for a in z])
    order = np.argsort(-weights, kind="stable").tolist()
    reached = np.cumsum(weights[order]) / math.fsum(weights)
    # The temperature's division errs by U64 of z, and so e^z by |z|·U64 of itself; two sums of V
    # terms, an exponential and two divisions follow. Only that near to top_p may the set differ.
    bound = (2 * len(z) + 6 + max(map(abs, z))) * U64
    least, most = (int((reached < top_p + e).sum()) + 1 for e in (-bound, bound))
    assert type(token) is int and token == order[0]
    assert rng.kept == order[: len(rng.kept)] and least <= len(rng.kept) <= most
    expected = weights[rng.kept] / math.fsum(weights[rng.kept])
    # e^z that is no normal number any more has an absolute error instead
    assert_allclose(rng.p, expected, rtol=2 * bound, atol=1e-300)


@given(eighths)
def test_without_a_temperature_nothing_is_drawn(logits):
    token = sample(logits, 0, 0.5, None)
    assert type(token) is int and token == logits.tolist().index(logits.max())


def test_a_seed_is_the_generator_of_it():
    model = random_model(TINY, 2)
    same, again, other = (
        list(generate({}, model, [1], max_tokens=10, temp=2.0, rng=rng))
        for rng in (5, np.random.default_rng(5), 6)
    )
    assert same == again != other


@pytest.mark.parametrize(
    "option, bad",
    [
        ("temp", (-1e-9, math.nan)),
        ("top_p", (0.0, 1 + 2 * U64, math.nan)),
        ("max_tokens", (0, 1.5)),
    ],
)
def test_the_ranges_of_the_options(option, bad):
    model = random_model()
    for value in bad:
        with refused(f"`{option}` must .* got {value}"):
            next(generate({}, model, [1], **{option: value}))
    with refused("prompt is empty"):
        next(generate({}, model, []))
    with refused("`top_p` has no effect with `temp` 0: give a `temp`"):
        next(generate({}, model, [1], top_p=0.5))


# --------------------------------------------------------------------------------- the loop

EMPTY = Model(TINY, {"model": {"layers": {}}})  # its base is not read


def scripted(monkeypatch, logits):
    """A model with the same logits at every position, and the list of its inputs."""
    calls = []

    def hidden_states(model, tokens, starts, caches):
        calls.append((tokens.tolist(), starts.tolist()))
        return np.zeros((*tokens.shape, 1))

    monkeypatch.setattr(generation, "hidden_states", hidden_states)
    monkeypatch.setattr(
        generation, "logits", lambda x, model: np.tile(np.float32(logits), (*x.shape[:-1], 1))
    )
    return calls


def test_the_prompt_is_read_once_and_then_one_token_at_a_time(monkeypatch):
    calls = scripted(monkeypatch, [0, 1, 3, 2])
    assert list(generate({}, EMPTY, [3, 1, 1], max_tokens=4)) == [2] * 4
    assert calls == [([[3, 1, 1]], [[0, 0, 0]])] + 3 * [([[2]], [[0]])]


def test_the_usual_options(monkeypatch):
    """256 times the most probable token; with a temperature, samples of all tokens."""
    scripted(monkeypatch, [0, 3, 0, 0])
    assert list(generate({}, EMPTY, [1])) == [1] * 256
    # a token of probability 1/(e³ + 3) = 0.043 in each of 256 draws: none has the chance 1e-5
    assert {*generate({}, EMPTY, [1], temp=1.0, rng=0)} == {0, 1, 2, 3}


@pytest.mark.parametrize("end, length", [((), 3), ((0,), 3), ((0, 1, 2), 0)])
def test_any_of_the_end_tokens_stops(monkeypatch, end, length):
    scripted(monkeypatch, [0, 3])
    model = EMPTY._replace(config=replace(TINY, eos_token_id=end))
    assert list(generate({}, model, [1], max_tokens=3)) == [1] * length

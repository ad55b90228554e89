"""Generation: the cache changes only the cost; samples follow the requested distribution."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, adapted, configs, quantized, random_base, seeds

import minilora
from minilora import generate, generation, layers, model
from minilora.config import ALL_LINEAR, InputError
from minilora.generation import sample
from minilora.kernels import fused
from minilora.layers import LayerCache
from minilora.tree import tree_map

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoff


@given(configs(), seeds, st.integers(1, 4), st.sampled_from((layers, fused)), st.booleans())
def test_the_cache_gives_the_states_of_the_whole_sequence(config, seed, split, ops, four_bit):
    base = random_base(config, seed)
    adapters, frozen = adapted(quantized(base) if four_bit else base, seed)
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(2, 5))
    starts = np.zeros_like(tokens)
    cache = [LayerCache() for _ in range(config.num_hidden_layers)]
    params = model.parameters(adapters, frozen, ops)
    whole = model.hidden_states(params, tokens, starts, config, ops)
    parts = []
    for part in np.split(tokens, [split], axis=1):
        parts.append(
            model.hidden_states(params, part, starts[:, : part.shape[1]], config, ops, cache)
        )
    # The same sums in another order. What a rounding does, one of every weight shows, for a norm
    # near zero makes it larger by up to 1/√ε = 316; and sums of up to 17 terms in each of two
    # results have some 32 where a weight has one.
    dense = minilora.merge(adapters, frozen, np.float64)
    exact, rng = (
        model.hidden_states(dense, tokens, starts, config, layers),
        np.random.default_rng(seed),
    )
    noise = 0.0
    for _ in range(4):
        rounded = tree_map(lambda w: w * (1 + U32 * rng.standard_normal(w.shape)), dense)
        moved = model.hidden_states(rounded, tokens, starts, config, layers) - exact
        noise = np.maximum(noise, np.abs(moved).max())
    assert np.abs(np.concatenate(parts, axis=1) - whole).max() <= 32 * noise


@given(seeds)
def test_greedy_generation_is_the_argmax_of_the_whole_sequence(seed):
    base = random_base(TINY, seed)
    tokens = [1, 2, 3]
    for token in generate({}, base, tokens[:3], TINY, max_tokens=6):
        logits = minilora.forward({}, base, np.array([tokens]), TINY)[0, -1]
        # a near tie may fall either way: the sums are taken in another order
        assert logits[token] >= logits.max() - 1e-4
        tokens.append(token)
    assert len(tokens) == 9


def test_it_stops_before_the_end_token():
    base = random_base(TINY, 1)
    free = list(generate({}, base, [1, 2], TINY, max_tokens=8))
    stopping = replace(TINY, eos_token_id=(free[3],))
    assert list(generate({}, base, [1, 2], stopping, max_tokens=8)) == free[: free.index(free[3])]


def test_drawing_follows_softmax_at_the_temperature():
    logits, n, temp = np.float32([0, 1, 2, -1]), 20_000, 0.7
    rng = np.random.default_rng(0)
    drawn = np.bincount([sample(logits, temp, 1.0, rng) for _ in range(n)], minlength=4) / n
    p = np.exp(logits / temp) / np.exp(logits / temp).sum()
    # four standard deviations of a share of n draws
    assert (np.abs(drawn - p) < 4 * np.sqrt(p * (1 - p) / n)).all()


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.7, 2), (0.95, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    logits = np.log(np.float32([0.2, 0.6, 0.15, 0.05]))
    rng = np.random.default_rng(0)
    order = [1, 0, 2, 3]
    drawn = {sample(logits, 1.0, top_p, rng) for _ in range(2000)}
    assert drawn == set(order[:kept])


# probabilities that a float holds exactly, and sums of them that equal top_p exactly
EXACT = [
    ([0.25] * 4, 0.25, 1), ([0.25] * 4, 0.5, 2), ([0.25] * 4, 0.75, 3), ([0.125] * 8, 0.625, 5),
    ([0.5, 0.5, 0.0], 0.5, 1), ([0.5, 0.25, 0.25], 0.5, 1), ([0.5, 0.25, 0.25], 0.75, 2),
]  # fmt: skip


@pytest.mark.parametrize(("p", "top_p", "kept"), EXACT)
def test_top_p_that_is_reached_exactly_keeps_no_further_token(p, top_p, kept):
    """The smallest set with Σ p ≥ top_p (Holtzman et al. 2020, Eq. 2), as in transformers."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(p))
    rng = Drawing()
    sample(logits, 1.0, 1.0, rng)
    if rng.p.tolist() != [value for value in p if value]:
        pytest.skip("this exponential function does not return 0.5 exactly")
    sample(logits, 1.0, top_p, rng)
    assert rng.kept == list(range(kept))


def test_the_same_seed_draws_the_same_text():
    base = random_base(TINY, 2)
    a, b = (
        list(generate({}, base, [1], TINY, max_tokens=10, temp=1.0, rng=np.random.default_rng(5)))
        for _ in range(2)
    )
    assert a == b


class Drawing:
    """A generator that stores the distribution of each draw, and returns the most probable."""

    def choice(self, kept, p):
        self.kept, self.p = kept.tolist(), p
        return kept[0]


# multiples of 1/8: a difference of two of them is exact in float32; many of them are equal
eighths = st.one_of(
    st.lists(st.integers(-240, 240), min_size=1, max_size=9),
    st.lists(st.integers(-2, 2), min_size=20, max_size=40),
).map(lambda numbers: np.float32(numbers) / 8)


@given(eighths, st.floats(0.05, 20), st.floats(0, 1, exclude_min=True) | st.just(1.0))
def test_what_is_drawn_from_is_the_nucleus_of_softmax_at_the_temperature(logits, temp, top_p):
    rng = Drawing()
    token = sample(logits, temp, top_p, rng)
    z = [(float(a) - float(logits.max())) / temp for a in logits]
    weights = [math.exp(a) for a in z]
    order = sorted(range(len(z)), key=lambda i: (-weights[i], i))
    reached = np.cumsum([weights[i] for i in order]) / math.fsum(weights)
    # The temperature's division errs by U64 of z, and so e^z by |z|·U64 of itself; two sums of V
    # terms, an exponential and two divisions follow. Only that near to top_p may the set differ.
    bound = (2 * len(z) + 6 + max(map(abs, z))) * U64
    least, most = (int((reached < top_p + e).sum()) + 1 for e in (-bound, bound))
    assert type(token) is int and token == order[0]
    assert rng.kept == order[: len(rng.kept)] and least <= len(rng.kept) <= most
    kept = math.fsum(weights[i] for i in rng.kept)
    expected = [weights[i] / kept for i in rng.kept]
    # e^z that is no normal number any more has an absolute error instead
    np.testing.assert_allclose(rng.p, expected, rtol=2 * bound, atol=1e-300)


@given(eighths)
def test_without_a_temperature_nothing_is_drawn(logits):
    token = sample(logits, 0, 0.5, None)
    assert type(token) is int and token == logits.tolist().index(logits.max())


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("temp", (0.0, 5e-2, 2.0), (-1e-9, -0.5, -2.0, math.nan)),
        ("top_p", (1e-9, 0.5, 1.0), (0.0, -1e-9, -0.5, -2.0, 1 + 2 * U64, 1.5, 3.0, math.nan)),
        ("max_tokens", (1, 2), (0, -1)),
    ],
)
def test_the_ranges_of_the_options(option, good, bad):
    base = random_base(TINY)
    for value in good:
        options = {"max_tokens": 1, "temp": 0.5, option: value}
        assert len(list(generate({}, base, [1], TINY, rng=0, **options))) == options["max_tokens"]
    for value in bad:
        with pytest.raises(InputError, match=f"`{option}` must .* got {value}"):
            next(generate({}, base, [1], TINY, rng=0, **{option: value}))


def test_an_empty_prompt_is_refused():
    with pytest.raises(InputError, match="a prompt is empty"):
        next(generate({}, random_base(TINY), [], TINY))


@pytest.mark.parametrize("prompt", ["Ada", np.zeros((1, 3), int), [1.0, 2.0], [[1, 2]]])
def test_a_prompt_is_a_list_of_ids(prompt):
    with pytest.raises(InputError, match=r"a prompt must be a list of token ids, got .*: encode"):
        next(generate({}, random_base(TINY), prompt, TINY))


EMPTY = {"model": {"layers": {}}}  # a base that is not read


def scripted(monkeypatch, logits):
    """A model with the same logits at every position, and the list of its inputs."""
    calls = []

    def hidden_states(params, tokens, starts, config, ops, cache):
        calls.append((tokens.tolist(), starts.tolist(), cache))
        return np.zeros((*tokens.shape, 1))

    monkeypatch.setattr(generation.model, "hidden_states", hidden_states)
    monkeypatch.setattr(
        generation.model, "logits", lambda x, *rest: np.tile(np.float32(logits), (*x.shape[:-1], 1))
    )
    return calls


def test_the_prompt_is_read_once_and_then_one_token_at_a_time(monkeypatch):
    calls = scripted(monkeypatch, [0, 1, 3, 2])
    assert list(generation.generate({}, EMPTY, [3, 1, 1], TINY, layers, max_tokens=4)) == [2] * 4
    assert [tokens for tokens, _, _ in calls] == [[[3, 1, 1]], [[2]], [[2]], [[2]]]
    assert [starts for _, starts, _ in calls] == [[[0, 0, 0]], [[0]], [[0]], [[0]]]
    caches = [cache for _, _, cache in calls]
    assert all(cache is caches[0] for cache in caches)
    assert len(set(map(id, caches[0]))) == TINY.num_hidden_layers


def test_a_longer_prompt_is_read_while_a_shorter_one_is_continued(monkeypatch):
    calls = scripted(monkeypatch, [0, 1, 3, 2])
    prompts = [[3, 1, 1, 0], [1, 3]]
    found = minilora.generate_batch([{}, {}], EMPTY, prompts, TINY, max_tokens=3)
    assert found == [[2, 2, 2], [2, 2, 2]]
    read = [tokens for tokens, _, _ in calls]
    assert read == [[[3, 1], [1, 3]], [[1], [2]], [[0], [2]], [[2], [2]], [[2], [2]]]
    scripted(monkeypatch, [0, 1, 3, 2])
    stop = replace(TINY, eos_token_id=(2,))
    assert minilora.generate_batch([{}, {}], EMPTY, prompts, stop) == [[], []]


def test_the_usual_options(monkeypatch):
    """256 times the most probable token; with a temperature, samples of all tokens."""
    scripted(monkeypatch, [0, 3, 0, 0])
    assert list(generation.generate({}, EMPTY, [1], TINY, layers)) == [1] * 256
    # a token of probability 1/(e³ + 3) = 0.043 in each of 256 draws: none has the chance 1e-5
    drawn = set(generation.generate({}, EMPTY, [1], TINY, layers, temp=1.0, rng=0))
    assert drawn == {0, 1, 2, 3}


def test_any_of_the_end_tokens_stops(monkeypatch):
    for end, length in (((), 3), ((0,), 3), ((1,), 0), ((0, 1), 0), ((1, 0), 0)):
        scripted(monkeypatch, [0, 3])
        config = replace(TINY, eos_token_id=end)
        found = list(generation.generate({}, EMPTY, [1], config, layers, max_tokens=3))
        assert len(found) == length


def test_dropout_is_not_active():
    """An adapter with dropout generates what it generates without, alone and in a batch."""
    base, prompts = random_base(TINY), [[1, 2, 3], [4, 5]]
    found = []
    for p in (0.0, 0.9):
        adapters, frozen = adapted(base, target_modules=ALL_LINEAR, lora_dropout=p)
        alone = [
            list(generate(adapters, frozen, prompt, TINY, max_tokens=9, temp=1.0, rng=0))
            for prompt in prompts
        ]
        for each in ([adapters, adapters], [adapters, {}]):
            batch = minilora.generate_batch(
                each, base, prompts, TINY, max_tokens=9, temp=1.0, rng=0
            )
            alone.append(batch)
        found.append(alone)
    assert found[0] == found[1]


def test_a_seed_is_the_generator_of_it():
    base, options = random_base(TINY, 2), {"max_tokens": 10, "temp": 2.0}
    drawn = [
        list(generate({}, base, [1], TINY, rng=rng, **options))
        for rng in (5, np.random.default_rng(5), 6)
    ]
    assert drawn[0] == drawn[1] != drawn[2]

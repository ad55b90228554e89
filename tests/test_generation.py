"""Generation: the cache changes nothing but the cost; draws follow the distribution asked for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, adapted, configs, quantized, random_base, seeds

import minilora
from minilora import generate, layers, lora, model
from minilora.generation import sample
from minilora.kernels import fused
from minilora.layers import LayerCache
from minilora.tree import tree_map

U32 = 2.0**-24  # unit roundoff


@given(configs(), seeds, st.integers(1, 4), st.sampled_from((layers, fused)), st.booleans())
def test_the_cache_gives_the_states_of_the_whole_sequence(config, seed, split, ops, four_bit):
    base = random_base(config, seed)
    adapters, frozen = adapted(quantized(base) if four_bit else base, seed)
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(2, 5))
    starts = np.zeros_like(tokens)
    cache = [LayerCache() for _ in range(config.num_hidden_layers)]
    whole = model.hidden_states(adapters, frozen, tokens, starts, config, ops)
    parts = []
    for part in np.split(tokens, [split], axis=1):
        parts.append(
            model.hidden_states(
                adapters, frozen, part, starts[:, : part.shape[1]], config, ops, cache=cache
            )
        )
    # The same sums in another order. What a rounding does, one of every weight shows, for a norm
    # near zero makes it larger by up to 1/√ε = 316; and sums of up to 17 terms in each of two
    # results have some 32 where a weight has one.
    dense = lora.merge(adapters, frozen, np.float64)
    exact, rng = (
        model.hidden_states({}, dense, tokens, starts, config, layers),
        np.random.default_rng(seed),
    )
    noise = 0.0
    for _ in range(4):
        rounded = tree_map(lambda w: w * (1 + U32 * rng.standard_normal(w.shape)), dense)
        moved = model.hidden_states({}, rounded, tokens, starts, config, layers) - exact
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


def test_the_same_seed_draws_the_same_text():
    base = random_base(TINY, 2)
    a, b = (
        list(generate({}, base, [1], TINY, max_tokens=10, temp=1.0, rng=np.random.default_rng(5)))
        for _ in range(2)
    )
    assert a == b

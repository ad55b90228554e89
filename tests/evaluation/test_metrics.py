"""Scores against slow oracles: the loss, greedy decoding, and calibration counted one by one."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import TINY, adapted, as_dtype, configs, fast_model, random_examples, seeds, up_to
from numpy.testing import assert_allclose
from outcomes import refused

from minilora import forward
from minilora.batching import Example
from minilora.evaluation import metrics, plot
from minilora.evaluation.metrics import calibration_error, evaluate

U32 = 2.0**-24


def slow_scores(adapters, model, examples):
    """(nll, probabilities, target) of every target token, one example at a time, float64."""
    adapters = as_dtype(adapters, np.float64)
    model = model._replace(base=as_dtype(model.base, np.float64))
    for tokens, mask, _ in examples:
        logits = forward(adapters, model, [tokens[:-1]])[0]
        for z, target, counts in zip(logits, tokens[1:], mask[1:]):
            if counts:
                p = np.exp(z - z.max())
                p /= p.sum()
                yield -math.log(p[target]), p, target


@settings(max_examples=12)
@given(configs(), seeds, up_to(9), st.integers(8, 60))
def test_every_score_by_its_definition(config, seed, n, tokens):
    # √ε of 0.3 keeps every norm, and so the error of float32, within a factor of ten or so
    config = replace(config, rms_norm_eps=0.1)
    # no score has dropout: with p = 0.9, hardly a number would stay the same
    adapters, model = adapted(fast_model(config, seed), seed, lora_dropout=0.9)
    examples = random_examples(config, n, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "TOKENS", tokens)
        patch.setattr(metrics, "LOGIT_FLOATS", n * config.vocab_size // 2)  # also less than one
        patch.setattr(metrics, "calibration_error", lambda *bins: bins)
        scores = evaluate(adapters, model, examples)
        parts = metrics.batches(examples)
        sizes = [len(part) * max(len(e.tokens) - 1 for e in part) for part in parts]
    assert max(sizes) <= tokens  # a row alone has at most 8 targets
    nll, p, target = map(np.array, zip(*slow_scores(adapters, model, examples)))
    # Float32 logits, of size Z, have up to 3·12 sums of some ten terms above them.
    Z = np.abs(np.log(p)).max()
    bound = 360 * 10 * U32 * max(1.0, Z)
    assert abs(scores["loss"] - nll.mean()) < bound
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-14)
    assert scores["tokens"] == len(nll)
    confidence, hit = map(np.sort, scores["ece"])  # shorter examples come first
    assert_allclose(confidence, np.sort(p.max(axis=1)), rtol=0, atol=bound)
    assert hit.tolist() == np.sort(p.argmax(axis=1) == target).tolist()
    brier = np.sum((p - np.eye(config.vocab_size)[target]) ** 2, axis=1)
    assert abs(scores["brier"] - brier.mean()) < 4 * bound


@given(seeds)
def test_exact_match_is_what_greedy_decoding_says(seed):
    """Rows of greedy decoding, of which some have another token; targets and answers are random.

    Tokens of the answer that are targets as well are compared. Without an answer, all targets are.
    """
    rng, model, V = np.random.default_rng(seed), fast_model(seed=3), TINY.vocab_size
    examples, matches, targets = [], 0, 0
    n = 12  # rows; few of them show that a token of the answer is no target
    for _ in range(n):
        tokens = rng.integers(V, size=2).tolist()
        for _ in range(rng.integers(2, 6)):
            likeliest = forward({}, model, [tokens])[0, -1].argmax()
            tokens.append(int(likeliest + (rng.random() < 0.1)) % V)
        hits = forward({}, model, [tokens[:-1]])[0].argmax(axis=-1) == tokens[1:]
        mask, answer = rng.random((2, len(tokens))) < rng.choice([0, 0.5, 1], (2, 1))
        has_answer = rng.random() < 0.7
        examples.append(Example(tokens, mask.tolist(), answer.tolist() if has_answer else None))
        compared = (mask & answer if has_answer else mask)[1:]
        matches += compared.any() and hits[compared].all()
        targets += mask[1:].sum()
    assume(targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "TOKENS", rng.integers(6, 30))
        scores = evaluate({}, model, examples)
    assert (scores["exact_match"], scores["tokens"]) == (matches / n, targets)


def test_no_token_changes_the_scores_of_another():
    """However far apart their logits are."""
    z = np.float32([[0, 1, 2], [-999, -998, -997]])
    for name, (one, other) in metrics._scores(z, [1, 1]).items():
        assert one == other and np.isfinite(one), name


def test_examples_without_a_target_have_no_scores():
    for examples in ([], [Example([1, 2, 3], [1, 0, 0])] * 2):
        with refused("no token of the examples is a target"):
            evaluate({}, fast_model(), examples)


# ------------------------------------------------------------------------------ the figure


def test_panels_are_row_by_row_and_have_texts_and_legends_of_their_own(tmp_path):
    names, path = [*"abcd"], tmp_path / "a.png"
    with plot.figure(path, names, "y", names, columns=2, rows=2) as panels:
        left, right, below, _ = panels
        left.plot([0, 1], label="a")
        right.plot([0, 1], label="b")
        below.plot([0, 1])
        own = right.legend(loc="upper left")
    first, second, third, _ = (axes.get_position() for axes in panels)
    assert first.x1 < second.x0 and first.y0 == second.y0 and third.y1 < first.y0
    assert [(axes.get_xlabel(), axes.get_title("left")) for axes in panels] == [*zip(names, names)]
    assert left.figure.get_figwidth() == 6.4
    assert left.get_legend() and right.get_legend() is own and not below.get_legend()
    # without the version of matplotlib, the same figure has the same bytes
    assert b"Software" not in path.read_bytes()


def test_a_curve_is_smoothed_by_means_of_whole_windows():
    assert plot.smooth([1, 2, 4, 8], 2) == [1, 1.5, 3, 6]


# ------------------------------------------------------------------------------ calibration


def slow_calibration_error(confidence, hit):
    """Guo et al. 2017, Eq. 3: bin m of M = 15 is the interval ((m − 1)/M, m/M] (their Sec. 2)."""
    confidence, error = np.float64(confidence), 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


# also the edges of the bins, each of which belongs to the lower one
edges = up_to(15).map(lambda m: np.float32(m / 15))


@given(
    hnp.arrays(np.float32, up_to(60), elements=st.floats(0, 1, width=32, exclude_min=True) | edges),
    seeds,
)
@example(np.float32([0.9, 1]), 8)  # the last two bins; only the first answer is a hit
def test_calibration_error(confidence, seed):
    hit = np.random.default_rng(seed).random(confidence.size) < 0.5
    assert calibration_error(confidence, hit) == pytest.approx(
        slow_calibration_error(confidence, hit), abs=1e-13
    )


def test_the_calibration_of_numbers_that_are_not_finite():
    assert np.isnan(calibration_error(np.float32([0.5, np.nan]), np.array([True, False])))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_progress_is_shown_where_it_is_written_to_a_terminal(stream, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name == stream)
    for quiet in (False, True):
        with metrics.progress_bar(1, quiet) as bar:
            assert bar.disable == (quiet or stream == "stdout")
    monkeypatch.setitem(sys.modules, "ipykernel", None)  # as in a notebook
    with metrics.progress_bar(1, False) as bar:
        assert not bar.disable

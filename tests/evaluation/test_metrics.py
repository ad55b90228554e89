"""Scores against slow oracles: the loss, greedy decoding, and calibration counted one by one."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import TINY, adapted, as_dtype, configs, random_base, random_examples, seeds

import minilora
from minilora.batching import Example, collate
from minilora.config import ALL_LINEAR, InputError
from minilora.evaluation import metrics, progress
from minilora.evaluation.metrics import calibration_error, evaluate

U32 = 2.0**-24

few = settings(max_examples=20)


def slow_scores(adapters, base, examples, config):
    """(nll, probabilities, target, row) of every target token, one example at a time, float64."""
    adapters, base = as_dtype(adapters, np.float64), as_dtype(base, np.float64)
    for row, (tokens, mask, _) in enumerate(examples):
        logits = minilora.forward(adapters, base, np.array([tokens[:-1]]), config)[0]
        for z, target, counts in zip(logits, tokens[1:], mask[1:]):
            if counts:
                p = np.exp(z - z.max())
                p /= p.sum()
                yield -math.log(p[target]), p, target, row


@few
@given(configs(), seeds, st.integers(1, 9))
def test_every_score_by_its_definition(config, seed, n):
    # √ε of 0.3 keeps every norm, and so the error of float32, within a factor of ten or so
    config = replace(config, rms_norm_eps=0.1)
    adapters, base = adapted(random_base(config, seed), seed)
    examples = random_examples(config, n, seed)
    scores = evaluate(adapters, base, examples, config)
    nll, p, target, row = zip(*slow_scores(adapters, base, examples, config))
    # Float32 logits, of size Z, have up to 3·12 sums of some ten terms above them.
    Z = max(np.abs(np.log(q)).max() for q in p)
    bound = 360 * 10 * U32 * max(1.0, Z)
    assert abs(scores["loss"] - math.fsum(nll) / len(nll)) < bound
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-14)
    assert scores["tokens"] == len(nll)
    brier = [sum((q - (k == t)) ** 2 for k, q in enumerate(pk)) for pk, t in zip(p, target)]
    assert abs(scores["brier"] - math.fsum(brier) / len(brier)) < 4 * bound
    if all(np.diff(np.sort(pk))[-1] > bound for pk in p):  # no tie for the likeliest
        hits = [pk.argmax() == t for pk, t in zip(p, target)]
        exact = [all(h for h, r in zip(hits, row) if r == i) for i in range(n)]
        assert scores["exact_match"] == sum(exact) / n


def test_dropout_is_not_active():
    examples, found = random_examples(TINY, 7), []
    for p in (0.0, 0.9):
        adapters, base = adapted(random_base(TINY), lora_dropout=p)
        found.append(evaluate(adapters, base, examples, TINY))
    assert found[0] == found[1]


def test_the_loss_is_the_models():
    adapters, base = adapted(random_base(TINY))
    examples = random_examples(TINY, 7)
    loss = minilora.loss(adapters, base, collate([[e] for e in examples]), TINY)
    # both are means, in float64, of float32 terms near ln 11; batches differ in shape
    assert evaluate(adapters, base, examples, TINY)["loss"] == pytest.approx(loss, rel=300 * U32)


def test_no_score_and_no_output_has_dropout():
    """With p = 0.9, hardly a number would stay the same."""
    base, examples, tokens = random_base(TINY), random_examples(TINY, 7), np.arange(6)[None]
    found = []
    for p in (0.0, 0.9):
        adapters, _ = adapted(base, target_modules=ALL_LINEAR, lora_dropout=p)
        batch = collate([[e] for e in examples])
        found.append(
            [
                evaluate(adapters, base, examples, TINY),
                minilora.forward(adapters, base, tokens, TINY).tolist(),
                float(minilora.loss(adapters, base, batch, TINY)),
                list(minilora.generate(adapters, base, [1, 2], TINY, max_tokens=8)),
                minilora.generate_batch([adapters] * 2, base, [[1, 2], [3]], TINY, max_tokens=8),
            ]
        )
    assert found[0] == found[1]


def test_evaluation_shows_how_much_is_done_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)  # a line at once
    monkeypatch.setattr(metrics, "TOKENS", 8)  # two rows per batch
    rows = [Example([1, 2, 3, 4], [1] * 4)] * 8
    evaluate({}, random_base(TINY), rows, TINY)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"evaluating 8 rows: {percent} %" for percent in (25, 50, 75)
    ]
    assert all(re.search(r", 00:0\d left$", line) for line in lines)
    evaluate({}, random_base(TINY), rows, TINY, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_evaluating_nothing_is_an_error():
    with pytest.raises(InputError, match="no examples to evaluate"):
        evaluate({}, random_base(TINY), [], TINY)


def test_exact_match_is_what_greedy_decoding_says():
    # Rows that greedy decoding made are matched; the same with one token changed are not.
    base = random_base(TINY, 3)
    rows = greedy_examples(base, 6)
    assert evaluate({}, base, rows, TINY)["exact_match"] == 1
    for at in range(3, 7):
        tokens = list(rows[0].tokens)
        tokens[at] = (tokens[at] + 1) % TINY.vocab_size
        wrong = [Example(tokens, rows[0].mask), *rows[1:]]
        assert evaluate({}, base, wrong, TINY)["exact_match"] == 5 / 6
    # what the mask leaves out need not be likely
    prompt = [Example([5, *rows[0].tokens[1:]], [0, 0, 0, 0, 0, 0, 1])]
    assert evaluate({}, base, prompt, TINY)["tokens"] == 1


def greedy_examples(base, n, prompt=3, answer=4):
    """Return n examples: random prompts, and the answers that greedy decoding gives to them."""
    rng, examples = np.random.default_rng(0), []
    for _ in range(n):
        tokens = rng.integers(TINY.vocab_size, size=prompt).tolist()
        for _ in range(answer):
            tokens.append(int(minilora.forward({}, base, np.array([tokens]), TINY)[0, -1].argmax()))
        examples.append(Example(tokens, [0] * prompt + [1] * answer))
    return examples


def test_exact_match_compares_the_answer_also_if_the_loss_counts_the_prompt():
    base = random_base(TINY, 3)
    masked = greedy_examples(base, 6)
    whole = [Example(e.tokens, [1] * 7, e.mask) for e in masked]
    scores = evaluate({}, base, whole, TINY)
    assert scores["exact_match"] == 1 and scores["tokens"] == 6 * 6
    # the same targets without an answer: every token of the prompt would have to be the likeliest
    plain = evaluate({}, base, [Example(e.tokens, e.mask) for e in whole], TINY)
    assert plain["exact_match"] == 0 and plain["loss"] == scores["loss"]
    for at in range(3, 7):
        tokens = list(whole[0].tokens)
        tokens[at] = (tokens[at] + 1) % TINY.vocab_size
        wrong = [whole[0]._replace(tokens=tokens), *whole[1:]]
        assert evaluate({}, base, wrong, TINY)["exact_match"] == 5 / 6


def test_a_row_whose_answer_was_cut_off_is_no_match():
    base = random_base(TINY, 3)
    masked = greedy_examples(base, 2)
    no_answer = Example(masked[0].tokens[:3], [1] * 3, [0] * 3)
    no_target = Example(masked[0].tokens[:3], [0] * 3)
    for lost in (no_answer, no_target):
        assert evaluate({}, base, [masked[1], lost], TINY)["exact_match"] == 1 / 2


def test_examples_without_a_target_have_no_scores(monkeypatch):
    base, silent = random_base(TINY), Example([1, 2, 3], [1, 0, 0])
    with pytest.raises(InputError, match="there are no examples to evaluate"):
        evaluate({}, base, [], TINY)
    with pytest.raises(InputError, match="no token of the examples is a target"):
        evaluate({}, base, [silent] * 2, TINY)
    monkeypatch.setattr(metrics, "TOKENS", 3)  # so that one batch has no target at all
    other = Example([1, 2, 3, 4], [1, 1, 1, 1])
    alone, both = (evaluate({}, base, examples, TINY) for examples in ([other], [silent, other]))
    assert both["loss"] == alone["loss"] and both["tokens"] == 3


def test_scores_do_not_depend_on_order_or_chunks(monkeypatch):
    adapters, base = adapted(random_base(TINY))
    examples = random_examples(TINY, 12)
    whole = evaluate(adapters, base, examples, TINY)
    monkeypatch.setattr(metrics, "LOGIT_FLOATS", 3 * TINY.vocab_size)
    monkeypatch.setattr(metrics, "TOKENS", 12)
    for rows in (examples, examples[::-1]):
        again = evaluate(adapters, base, rows, TINY)
        assert again.keys() == whole.keys()
        for name, value in whole.items():
            assert again[name] == pytest.approx(value, rel=300 * U32, abs=300 * U32), name


@given(seeds, st.integers(1, 30), st.integers(8, 60))
def test_batches_hold_every_row_once_and_are_small(seed, n, tokens):
    examples = [Example(e.tokens, [1] * len(e.tokens)) for e in random_examples(TINY, n, seed)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "TOKENS", tokens)
        parts = list(map(collate, metrics.batches(examples)))
    # a row alone may be as long as it likes; the longest here has 8 targets
    assert all(part["tokens"].size <= tokens for part in parts)
    rows = [
        (tokens[: int(sum(mask))].tolist(), targets[: int(sum(mask))].tolist())
        for part in parts
        for tokens, targets, mask in zip(part["tokens"], part["targets"], part["mask"])
    ]
    assert sorted(rows) == sorted((e.tokens[:-1], e.tokens[1:]) for e in examples)


# ------------------------------------------------------------------------------ calibration


def slow_calibration_error(confidence, hit):
    """Guo et al. 2017, Eq. 3: bin m of M = 15 is the interval ((m − 1)/M, m/M] (their Sec. 2)."""
    answers, error = list(zip(confidence.tolist(), hit.tolist())), 0.0
    for m in range(1, 16):
        inside = [(c, h) for c, h in answers if (m - 1) / 15 < c <= m / 15]
        if inside:
            accuracy = sum(h for _, h in inside) / len(inside)
            mean_confidence = sum(c for c, _ in inside) / len(inside)
            error += len(inside) / len(answers) * abs(accuracy - mean_confidence)
    return error


edges = st.integers(1, 15).map(lambda m: m / 15)


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0.01, 1) | edges), seeds)
def test_calibration_error(confidence, seed):
    hit = np.random.default_rng(seed).random(confidence.size) < 0.5
    assert calibration_error(confidence, hit) == pytest.approx(
        slow_calibration_error(confidence, hit), abs=1e-13
    )


@pytest.mark.parametrize("m", range(1, 16))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one(m, dtype):
    """The gaps of a right and a wrong answer cancel in one bin, and add up in two bins."""
    edge = dtype(m / 15)
    if float(edge) > m / 15:  # as float32, it lies above the edge of the definition
        edge = np.nextafter(edge, dtype(0))
    right_or_wrong = np.array([True, False])
    below = np.array([edge, edge - dtype(0.01)])
    gap = abs(1 - float(below.sum(dtype=np.float64))) / 2
    assert calibration_error(below, right_or_wrong) == pytest.approx(gap, abs=1e-14)
    if m < 15:
        above = np.array([edge, edge + dtype(0.01)])
        gap = (1 - float(above[0]) + float(above[1])) / 2
        assert calibration_error(above, right_or_wrong) == pytest.approx(gap, abs=1e-14)


def test_calibration_of_the_extremes():
    ones, half = np.ones(8, np.float32), np.full(8, 0.5, np.float32)
    assert calibration_error(ones, ones > 0) == 0
    assert calibration_error(ones, ones < 0) == 1
    assert calibration_error(half, np.arange(8) % 2 == 0) == 0
    assert calibration_error(half, ones > 0) == 0.5
    # over- and underconfidence in two bins do not cancel
    mixed = np.float64([0.9] * 5 + [0.5] * 5)
    assert calibration_error(mixed, np.arange(10) >= 5) == pytest.approx((0.9 + 0.5) / 2)


def test_a_certain_model_has_brier_zero_and_a_wrong_one_two():
    logits = np.float32([[200, 0, 0], [200, 0, 0]])
    nll, hit, confidence, brier = metrics._scores(logits, np.array([0, 1]))
    assert nll.tolist() == [0, 200] and hit.tolist() == [True, False]
    assert confidence.tolist() == [1, 1] and brier.tolist() == [0, 2]

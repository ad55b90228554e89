"""The training loop: arrays it does not modify, reproducible bits, early stopping, its state."""

import io
import math
import warnings
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    as_dtype,
    fast_model,
    fingerprint,
    quantized,
    random_examples,
    random_model,
    read_only,
    seeds,
    spying,
    untimed,
)
from outcomes import refused
from tqdm import tqdm

import minilora
from minilora import kernels, layers, train, training
from minilora.batching import Example, batch_at, collate
from minilora.config import ALL_LINEAR, TrainConfig
from minilora.evaluation import loop, metrics
from minilora.evaluation.loop import better, doubts, should_stop
from minilora.kernels import threads
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.model import loss as model_loss
from minilora.optim import get_lr, global_norm
from minilora.quant.schemes import SCHEMES
from minilora.rounding import round_to
from minilora.training import (
    Best,
    State,
    gradient_at,
    learning_rates,
    num_targets,
    split_batch,
    start,
    steps,
)
from minilora.tree import arrays, flatten, get, named_leaves, num_parameters, tree_map, unflatten

U32 = 2.0**-24
EXAMPLES, VALID = random_examples(TINY, 9, seed=1), random_examples(TINY, 4, seed=2)
ROWS = [[example] for example in EXAMPLES]
SMALL = TrainConfig(
    iters=6, batch_size=2, learning_rate=0.02, max_seq_length=9, steps_per_eval=2, seed=3,
)  # fmt: skip
# everything that a run can carry from step to step
RICH = replace(
    SMALL, grad_accumulation_steps=2, weight_decay=0.1, max_grad_norm=0.3, packing=True,
    early_stopping_patience=9, adapter_dtype="bfloat16", gradient_checkpointing=True,
)  # fmt: skip


def setting(dropout=0.2, model=None, ops=kernels.ops, **lora_fields):
    """(adapters, model) with dropout, norms, biases and a head."""
    model = random_model(TINY, ops=ops) if model is None else model
    adapters, model = adapted(model, lora_dropout=dropout, **lora_fields)
    return also_train(adapters, model.base, ("norm", "bias", "head")), model


def run(config, valid=VALID, state=None, **kwargs):
    """[(state, records) of each step] of a run from the same start, or from a state.

    A state, which another thread may be writing to a file, becomes read-only.
    """
    adapters, model = setting(**kwargs)
    state, done = state or start(adapters, config), []
    for state, records in minilora.run(state, model, EXAMPLES, config, valid):
        read_only(as_tree(state))
        done.append((state, records))
    return done


def as_tree(state):
    return state._asdict() | {"best": state.best._asdict()}


def mark(state):
    """A hash of every byte of a state."""
    return fingerprint(as_tree(state))


def history_of(done):
    return [row for _, records in done for row in records]


# ------------------------------------------------------------------------ freeze, repetition


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frozen_leaves_are_never_written(scheme):
    model = quantized(fast_model(), scheme)
    adapters, model = setting(model=model, target_modules=ALL_LINEAR)
    before = fingerprint(model.base), fingerprint(adapters)
    config = replace(RICH, iters=3, weight_decay=1.0)
    trained, _ = train(adapters, model, EXAMPLES, config, VALID)
    assert before == (fingerprint(model.base), fingerprint(adapters))
    for path, w in named_leaves(arrays(trained)):  # and every trained one is
        assert (w != flatten(adapters)[path]).any(), path
        assert w.dtype == np.float32 and w.shape == flatten(adapters)[path].shape


@pytest.mark.parametrize("config", [SMALL, RICH], ids=["small", "rich"])
def test_resuming_at_any_step_gives_the_same_bytes(config):
    whole = run(config)
    for k, state in enumerate([None, *(state for state, _ in whole)]):
        later = run(config, state=state)
        assert untimed(history_of(whole[:k] + later)) == untimed(history_of(whole))
        assert [mark(a) for a, _ in later] == [mark(b) for b, _ in whole[k:]]
    assert mark(run(replace(config, seed=4))[-1][0]) != mark(whole[-1][0])
    for state, _ in whole:  # the numbers of the dtype of the adapters
        trained = arrays(state.adapters)
        assert fingerprint(round_to(trained, config.adapter_dtype)) == fingerprint(trained)


@pytest.mark.parametrize("adapters", [{}, {"model": {}}, {"lm_head": {"lora_scaling": 1.0}}])
def test_an_adapter_without_parameters_is_not_trained(adapters):
    model = random_model(TINY)
    with refused("has no parameters to train: create it with get_peft_mod"):
        train(adapters, model, random_examples(TINY, 3), TrainConfig(iters=1), quiet=True)


def test_neither_evaluation_nor_recomputing_changes_the_run():
    seen, config = [], replace(SMALL, gradient_checkpointing=True)
    expected = mark(run(SMALL)[-1][0])
    for other, valid in (
        (SMALL, ()), (replace(SMALL, steps_per_eval=1), VALID), (config, VALID)
    ):  # fmt: skip
        assert mark(run(other, valid)[-1][0]) == expected
    gradient_at(*setting(ops=spying(layers, seen)), ROWS, 0, config)
    assert sum(name == "swiglu" for name, _ in seen) == 2 * TINY.num_hidden_layers


# ----------------------------------------------------------------------------- accumulation


def on_cores(cores, ops=kernels.ops):
    """`ops` that compute a step in shards for this number of cores."""
    changed = {"THREADS": cores, "parallel_map": threads.parallel_map}
    return SimpleNamespace(**{**vars(ops), **changed})


@settings(max_examples=12)
@given(seeds, st.integers(2, 4), st.integers(1, 3))
def test_accumulation_equals_the_large_batch(seed, n, size):
    # examples of 1 to 8 targets: a mean of the micro-batches' means would be another number
    adapters, model = setting(model=random_model(TINY, 0, np.float64, ops=on_cores(2)), dropout=0.0)
    adapters = as_dtype(adapters, np.float64)
    examples = [[e] for e in random_examples(TINY, 12, seed)]
    config = replace(SMALL, batch_size=size, grad_accumulation_steps=n)
    loss, grads, rows = gradient_at(adapters, model, examples, 1, config)
    assert rows == batch_at(examples, 1, n * size, config.seed)
    expected, expected_grads = value_and_grad(model_loss)(adapters, model, collate(rows))
    # all is float64 but the weights m/Σm, which round to 2⁻²⁴ of the part of a row; a part can be
    # some ten times larger than the sum
    assert loss == pytest.approx(float(expected), rel=100 * U32)
    largest = max(np.abs(g).max() for _, g in named_leaves(expected_grads))
    for path, g in named_leaves(grads):
        expected = flatten(expected_grads)[path]
        np.testing.assert_allclose(g, expected, rtol=0, atol=100 * U32 * largest)


def test_shares_are_dealt_out_in_turn():
    """Neighbours of a batch are of like length if it is packed; dealing spreads them."""
    assert split_batch([*range(7)], 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert split_batch([1, 2], 5) == [[1], [2]]


def test_a_row_without_a_target_takes_no_part():
    """Its mean would be 0/0; alone in its share it is left out. Masks may be arrays."""
    adapters, model = setting(dropout=0.0, ops=layers)
    tokens, mask = EXAMPLES[1].tokens, np.array(EXAMPLES[1].mask)
    silent = Example([1, 2, 3], [1, 0, 0])  # the first token is never a target
    assert num_targets([silent, Example(tokens, mask)]) == num_targets([EXAMPLES[1]])
    config = replace(SMALL, batch_size=1)
    alone = gradient_at(adapters, model, [[EXAMPLES[1]]], 0, config)
    rows, config = [[silent], [Example(tokens, mask)]], replace(SMALL, batch_size=2)
    both = gradient_at(adapters, model._replace(ops=on_cores(2, layers)), rows, 0, config)
    assert both[0] == alone[0]
    assert fingerprint(both[1]) == fingerprint(alone[1])  # float32, too
    # in the share of another row it only adds padding: some sums of float32 have more zeros
    assert gradient_at(adapters, model, rows, 0, config)[0] == pytest.approx(alone[0], rel=1e-6)
    with refused("the batch of step 1"):
        train(adapters, model, [silent] * 3, SMALL)
    with refused("there are no examples to train on"):
        next(steps(start(adapters, SMALL), model, [], SMALL))


def test_one_share_for_the_reference_and_for_a_large_tree(monkeypatch):
    """With the reference, the batch is not split; a large gradient is in memory once."""
    seen = []
    monkeypatch.setattr(training, "split_batch", lambda rows, n: seen.append(n) or [rows])
    size = num_parameters(setting()[0])
    for ops, few in ((on_cores(2), size), (layers, size), (on_cores(2), size - 1)):
        monkeypatch.setattr(training, "MAX_PARALLEL_PARAMETERS", few)
        gradient_at(*setting(ops=ops), ROWS, 0, SMALL)
    assert seen == [2, 1, 1]
    assert kernels.ops.THREADS == threads.THREADS


@pytest.mark.parametrize(
    "ops, cores, batch_size",
    [(layers, 1, 6), (layers, 2, 3), (kernels.ops, 1, 1), (kernels.ops, 4, 3)],
)
def test_a_rows_masks_depend_on_its_position_alone(monkeypatch, ops, cores, batch_size):
    """It does not depend on the cores, the micro-batches, the padding, or the implementation."""
    monkeypatch.setattr(threads, "THREADS", cores)
    adapters, model = setting(dropout=0.5, ops=on_cores(cores, ops))
    rows, drawn = ROWS[:6], set()
    monkeypatch.setattr(
        training, "batch_at", lambda rows, step, size, seed: rows[step * size : (step + 1) * size]
    )
    random = layers.RowRng.random

    def recorded(rng, shape, dtype):
        drawn.update(map(tuple, rng.seeds))
        return random(rng, shape, dtype)

    monkeypatch.setattr(layers.RowRng, "random", recorded)
    config = replace(SMALL, batch_size=batch_size, grad_accumulation_steps=6 // batch_size)
    loss, _, _ = gradient_at(adapters, model, rows, 0, config)
    # seed, step, row; layer; q_proj and v_proj
    assert drawn == {(3, 0, *key) for key in product(range(6), range(2), (0, 2))}
    # the six rows as one batch, with their seeds: each of its sums has at most 100 terms, and
    # float32 rounds each of them to 2⁻²⁴ of its size
    row_rng = layers.RowRng([[3, 0, row] for row in range(6)])
    whole = model_loss(adapters, model._replace(ops=layers), collate(rows), row_rng)
    assert loss == pytest.approx(float(whole), rel=1e-5)


# ------------------------------------------------------------------------------ what a step is


def test_history_says_what_happened():
    config = replace(SMALL, iters=5, max_grad_norm=0.05, val_batches=1)
    done = run(config, dropout=0.0)
    history = history_of(done)
    assert [row["step"] for row in history if "loss" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in history if "eval_loss" in row] == [2, 4, 5]
    assert untimed(train(*setting(dropout=0.0), EXAMPLES, config, VALID)[1]) == untimed(history)
    adapters, model = setting(dropout=0.0)
    for i, (state, (row, *evaluations)) in enumerate(done):
        rows = batch_at(ROWS, i, 2, config.seed)
        loss, grads = value_and_grad(model_loss)(adapters, model, collate(rows))
        assert row["learning_rate"] == get_lr(i, config)
        assert row["tokens"] == sum(len(e.tokens) - 1 for (e,) in rows)
        assert row["peak_rss_mb"] > 1
        assert row["loss"] == pytest.approx(float(loss), rel=4 * U32)
        norm = global_norm(grads)
        assert row["grad_norm"] == pytest.approx(norm, rel=100 * U32) and norm > 0.05  # unclipped
        if i == 0:  # Adam saw the clipped one
            clipped = global_norm(state.moments["m"]) / (1 - config.adam_beta1)
            assert clipped == pytest.approx(0.05, rel=1e-6 / norm + 100 * U32)
        adapters = state.adapters
        for evaluation in evaluations:
            scores = metrics.evaluate(adapters, model, VALID[:2])  # one batch
            assert evaluation["eval_loss"] == scores["loss"]


def test_the_bare_loop_times_its_steps(monkeypatch):
    times = iter([5.0, 5.123456, 3.0, 10.5])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(times))
    (adapters, model), config = setting(ops=layers), replace(SMALL, iters=2)
    records = [record for _, record in steps(start(adapters, config), model, EXAMPLES, config)]
    assert [record["seconds"] for record in records] == [0.1235, 7.5]


def test_packing_trains_on_the_same_tokens():
    config = replace(SMALL, packing=True, max_seq_length=30, batch_size=1, iters=4)
    every = sum(len(e.tokens) - 1 for e in EXAMPLES)
    _, history = train(*setting(), EXAMPLES, config, VALID)
    sequences = -(-every // 29)
    assert sum(row["tokens"] for row in history[:sequences] if "tokens" in row) == every
    config = replace(config, batch_size=sequences + 1)
    says = f"it has {sequences + 1}, and there are only {sequences}"
    with pytest.warns(UserWarning, match=says) as said:
        run(replace(config, iters=2, warmup_ratio=0))
    assert {w.filename for w in said} == {__file__}  # the line of the loop over `minilora.run`


LORA_NAMES = ("lora_A", "lora_B", "lora_magnitude_vector")


@given(st.integers(1, 13), st.floats(0.1, 1.0), st.sampled_from([0.5, 1.0, 16.0]), st.booleans())
def test_the_rate_of_every_leaf(depth, decay, ratio, factors):
    """η·λ^(layers above it)·(LoRA+'s ratio for B)·(the scale of other leaves)."""
    heads = "model.norm.weight", "lm_head.weight", "score.weight"
    above = {"model.embed_tokens.weight": depth, **dict.fromkeys(heads, 0)}
    for i in range(depth):
        for name in ("bias", *LORA_NAMES) if factors else ("bias",):
            above[f"model.layers.{i}.self_attn.q_proj.{name}"] = depth - 1 - i
    config = TrainConfig(
        layer_lr_decay=decay, loraplus_lr_ratio=ratio, also_train_lr_scale=0.125
    )  # fmt: skip
    rates = learning_rates(0.25, config, unflatten(above))
    for path, layers_above in above.items():
        # powers of two, as the ratio is: their products are exact
        scale = 0.125 if factors and ".lora_" not in path else 1.0
        scale *= ratio if path.endswith("lora_B") else 1.0
        assert rates[path] == 0.25 * scale * decay**layers_above
    assert learning_rates(0.25, config, {"lm_head": {"weight": 0}}) == {"lm_head.weight": 0.25}


# --------------------------------------------------------------------------------- stopping


def test_early_stopping_keeps_the_best_and_says_so(monkeypatch, capsys):
    losses = iter(2 * [3.0, 2.0, 2.5, 2.0, 2.1])
    result = {"exact_match": 0.0}
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: result | {"loss": next(losses)})
    config = replace(SMALL, iters=20, steps_per_eval=1, early_stopping_patience=3)
    done = run(config)
    last = done[-1][0]
    # equal is not better: the third in a row without a better one is step 5
    assert len(done) == 5 and fingerprint(last.kept) == fingerprint(done[1][0].adapters)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        "early stopping at step 5 of 20: the last 3 evaluations did not lower the held-out loss",
        "kept: step 2, the trained step with the lowest held-out loss, 2.0000",
    ]
    trained, _ = train(*setting(), EXAMPLES, config, VALID)
    assert fingerprint(trained) == fingerprint(last.kept)
    capsys.readouterr()
    loop.print_end(last, replace(config, iters=5))  # that was the last step anyway
    assert capsys.readouterr().out.startswith("kept: step 2")
    # a stopped run stays stopped, and a finished one finished
    assert run(config, state=last) == run(SMALL, state=run(SMALL, ())[-1][0]) == []


def test_settings_that_fit_the_examples_or_have_no_effect_are_noticed():
    unmasked = [Example([1, 2, 3], [1, 1, 1], [0, 0, 1])]
    with refused("`mask_prompt` is true, but not all examples are masked"):
        train(*setting(), unmasked, replace(SMALL, mask_prompt=True))
    with refused("`mask_prompt` is true, but not all examples are masked"):
        train(*setting(), EXAMPLES, replace(SMALL, mask_prompt=True), unmasked)
    assert [*map(loop.is_masked, (*unmasked, *EXAMPLES[:1]))] == [False, True]
    assert loop.is_masked(Example([1, 2, 3], np.array([0, 0, 1]), [0, 0, 1]))
    with pytest.warns(UserWarning, match="the only step has the learning rate 0"):
        train(*setting(), unmasked, replace(SMALL, iters=1))


def test_a_step_that_repeats_sequences_is_warned_of():
    for packing, tail in ((False, ""), (True, ", or `max_seq_length`")):
        config = replace(SMALL, batch_size=3, grad_accumulation_steps=2, packing=packing)
        assert not [*doubts(config, 6)]
        assert [*doubts(config, 5)] == [
            "each step repeats sequences: it has 6, and there are only 5: "
            f"lower `batch_size` or `grad_accumulation_steps`{tail}"
        ]


def test_a_run_says_if_it_has_too_few_evaluations():
    """An evaluation stops a run, or is not the best, only after others and before the last step."""
    for iters, every, patience in product(range(1, 9), range(1, 5), range(4)):
        evaluated = [step for step in range(1, iters + 1) if step % every == 0 or step == iters]
        config = TrainConfig(
            iters=iters, steps_per_eval=every, early_stopping_patience=patience, warmup_ratio=0
        )
        said = [*doubts(replace(config, keep_best=True), 9)]
        assert bool(said) == (iters in evaluated[: patience + 1])
        name = f"`early_stopping_patience` {patience}" if patience else "`keep_best`"
        assert not said or f": {len(evaluated)}, too few for {name}: " in said[0]
        assert not [*doubts(replace(config, early_stopping_patience=0), 9)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [1e-10, 1e-6, 1e-2])
def test_steps_that_rounding_undoes_are_warned_of(dtype, rate):
    adapters, model = adapted(random_model(TINY))
    config = replace(SMALL, iters=1, warmup_ratio=0, learning_rate=rate, adapter_dtype=dtype)
    with warnings.catch_warnings(record=True, action="always") as said:
        before = arrays(start(adapters, config).adapters)
    after, _ = train(adapters, model, EXAMPLES, config)
    same = [np.mean(a == get(after, path)) for path, a in named_leaves(before)]
    # one warning for all leaves, which points to the call of `start`
    assert [w.filename for w in said] == [__file__] * int(max(same) > 0.5), same
    ways = ["float32 adapters" in str(w.message) for w in said]
    assert ways == [dtype != "float32"] * len(said)


def test_quiet_prints_nothing(capsys):
    (adapters, model), config = setting(), replace(SMALL, keep_best=True)
    train(adapters, model, EXAMPLES, config, VALID, quiet=True)
    assert capsys.readouterr() == ("", "")
    train(adapters, model, EXAMPLES, config, VALID)
    assert capsys.readouterr().out.count("held-out loss") == 4  # three evaluations, and the best


def test_the_bars_of_a_resumed_run_and_of_its_evaluations_are_full_at_the_end(monkeypatch):
    bars, quiets = [], []

    def bar(total, quiet, **options):
        quiets.append(quiet)
        bars.append(tqdm(total=total, file=io.StringIO(), **options | {"delay": 0}))
        return bars[-1]

    for module in (loop, metrics):
        monkeypatch.setattr(module, "progress_bar", bar)
    monkeypatch.setattr(metrics, "TOKENS", 10)  # in several batches
    (adapters, model), config = setting(), replace(SMALL, iters=3)
    state, _ = next(minilora.run(start(adapters, config), model, EXAMPLES, config))
    bars.clear()
    for _ in minilora.run(state, model, EXAMPLES, config, VALID):
        pass
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(1, 3, 3), (0, 4, 4), (0, 4, 4)]
    quiets.clear()
    list(minilora.run(state, model, EXAMPLES, config, VALID, quiet=True))
    assert quiets == [True] * 3
    loop.show(bars[0], {"step": 1, "loss": 0.5, "tokens": 3, "seconds": 0.0})  # rounded to zero
    assert bars[0].postfix == "loss 0.500, 30000 tokens/s with prompts"


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), max_size=9), st.integers(0, 4),
    st.booleans(),
)  # fmt: skip
def test_the_bookkeeping_of_the_best_evaluation(losses, patience, keep_best):
    config = replace(SMALL, early_stopping_patience=patience, keep_best=keep_best)
    best, seen = Best(), []
    for i, loss in enumerate(losses):
        state = State({"w": i}, {"step": 7 + i})
        best = better(state._replace(best=best), loss, config)
        after = state._replace(best=best)
        seen.append(loss)
        if not (patience or keep_best):
            assert best == Best() and not should_stop(best, patience)
            assert (after.kept, after.kept_step) == ({"w": i}, 7 + i)
            continue
        finite = [x for x in seen if x == x]
        lowest = min(finite, default=math.inf)
        at = seen.index(lowest) if finite else None
        worse = i + 1 if at is None else i - at  # evaluations since the first of the best
        kept = i if at is None else at
        expected = (0, None) if at is None else (7 + at, {"w": at})
        assert best == (lowest, *expected, worse)
        assert (after.kept, after.kept_step) == ({"w": kept}, 7 + kept)
        assert should_stop(best, patience) == (0 < patience <= worse)


def test_a_run_that_cannot_be_is_refused_before_its_first_step():
    adapters, model = setting()
    for field, value in ("keep_best", True), ("early_stopping_patience", 2):
        config = replace(SMALL, **{field: value})
        with refused(f"`{field}` needs held-out rows, but there are none"):
            next(minilora.run(start(adapters, config), model, EXAMPLES, config))
    muon = replace(SMALL, optimizer="muon")
    for state, config in (start(adapters, SMALL), muon), (start(adapters, muon), SMALL):
        with refused(f"the state is of another optimizer than {config.optimizer}: continue with"):
            next(minilora.run(state, model, EXAMPLES, config))


def test_a_run_that_continues_without_keep_best_returns_its_last_adapters():
    first = run(replace(SMALL, keep_best=True))[-1][0]
    longer = replace(SMALL, iters=SMALL.iters + 2)
    last = run(longer, state=first._replace(best=first.best._replace(loss=0.0)))[-1][0]
    assert last.kept is last.adapters and last.kept_step == longer.iters


def test_a_loop_that_is_interrupted_in_an_evaluation_has_the_last_complete_step(monkeypatch):
    """The loop's owner has the state and the history, and continues them to the same bytes."""
    calls, config = [], replace(SMALL, keep_best=True)
    whole = run(config)
    evaluate = loop.evaluate

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:  # after step 4
            raise KeyboardInterrupt
        return evaluate(*args)

    adapters, model = setting()
    state, history = start(adapters, config), []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for state, records in minilora.run(state, model, EXAMPLES, config, VALID):
                history += records
    assert state.step == 3
    assert mark(state) == mark(whole[2][0])
    assert untimed(history) == untimed(history_of(whole[:3]))
    assert mark(run(config, state=state)[-1][0]) == mark(whole[-1][0])


# ------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize("loss, scale", [(math.inf, 0), (1, math.nan)])
def test_a_number_that_is_not_finite_stops_the_run(monkeypatch, loss, scale):
    def fake(adapters, model, rows, step, train_config):
        result = gradient_at(adapters, model, rows, step, train_config)
        if step < 3:
            return result
        return loss, tree_map(lambda g: g * scale, result[1]), result[2]

    monkeypatch.setattr(training, "gradient_at", fake)
    adapters, model = setting()
    state = start(adapters, SMALL)
    with refused("at step 4: lower `learning_rate`"):
        for state, _ in steps(state, model, EXAMPLES, SMALL):
            pass
    # the loop has the state of step 3, which is finite
    assert state.step == 3
    assert all(np.isfinite(w).all() for _, w in named_leaves(arrays(state.adapters)))


@pytest.mark.parametrize("ops", [kernels.ops, layers], ids=["fast", "plain"])
@pytest.mark.parametrize("rate", [1e10, 1e37])
def test_a_run_that_diverges_says_so_and_warns_of_nothing_else(ops, rate):
    config = replace(SMALL, iters=50, learning_rate=rate, warmup_ratio=0, lr_schedule="constant")
    with refused(r"at step \d+: lower"):
        train(*setting(ops=ops), EXAMPLES, config)


@pytest.mark.parametrize(("share", "text"), [(0.9996, "99.9 %"), (1.0, "100.0 %"), (0.5, "50.0 %")])
def test_less_than_all_is_not_100_percent(share, text):
    assert loop.percent(share) == text

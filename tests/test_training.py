"""The training loop: arrays it does not modify, reproducible bits, early stopping, its state."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    adapted,
    as_dtype,
    fingerprint,
    quantized,
    random_base,
    random_examples,
    read_only,
    seeds,
    spying,
)

import minilora
from minilora import kernels, layers, model, train, training
from minilora.batching import Example, batch_at, collate
from minilora.config import ALL_LINEAR, InputError, TrainConfig
from minilora.evaluation import callbacks, metrics
from minilora.evaluation.callbacks import init_state, kept_step, should_stop, update_best
from minilora.kernels import threads
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.optim import get_lr, global_norm, round_to
from minilora.training import gradient_at, learning_rates, num_targets, split_batch
from minilora.tree import arrays, flatten, named_leaves, tree_map, unflatten

U32, U64 = 2.0**-24, 2.0**-53
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


def setting(dropout=0.2, base=None, **lora_fields):
    """(adapters, frozen) with dropout, norms, biases and a head."""
    base = random_base(TINY) if base is None else base
    adapters, frozen = adapted(base, lora_dropout=dropout, **lora_fields)
    return also_train(adapters, frozen, ("norm", "bias", "head")), frozen


def run(config, valid=VALID, state=None, adapters=None, **kwargs):
    """(adapters, history, [(rows, adapters, state) of each step]) of a run from the same start.

    What a step hands out, which another thread may be writing to a file, becomes read-only.
    """
    start_at, frozen = setting(**kwargs)
    steps = []

    def on_step(rows, adapters, state):
        read_only(adapters)
        read_only(state)
        steps.append((rows, adapters, state))

    trained, history = train(
        start_at if adapters is None else adapters, frozen, EXAMPLES, TINY, config, valid, state,
        on_step,
    )  # fmt: skip
    return trained, history, steps


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# ------------------------------------------------------------------------ freeze, repetition


@pytest.mark.parametrize("scheme", ["none", "int8", "fp4", "nf4", "nf4-dq"])
def test_frozen_leaves_are_never_written(scheme):
    base = quantized(random_base(TINY), scheme)
    adapters, frozen = setting(base=base, target_modules=ALL_LINEAR)
    before = fingerprint(base), fingerprint(frozen), fingerprint(adapters)
    read_only(frozen), read_only(adapters)  # any write raises
    config = replace(RICH, iters=3, weight_decay=1.0)
    trained, _ = train(adapters, frozen, EXAMPLES, TINY, config, VALID)
    assert before == (fingerprint(base), fingerprint(frozen), fingerprint(adapters))
    for path, w in named_leaves(arrays(trained)):  # and every trained one is
        assert (w != flatten(adapters)[path]).any(), path
        assert w.dtype == np.float32 and w.shape == flatten(adapters)[path].shape


@pytest.mark.parametrize("config", [SMALL, RICH], ids=["small", "rich"])
def test_resuming_at_any_step_gives_the_same_bytes(config):
    whole, history, steps = run(config)
    start, _ = setting()
    for k, (adapters, state) in enumerate([(start, None), *(step[1:] for step in steps)]):
        resumed, rest, later = run(config, state=state, adapters=adapters)
        assert fingerprint(resumed) == fingerprint(whole)
        done = [row for row in history if row["step"] <= k]
        assert timeless(done + rest) == timeless(history)
        for (_, a, s), (_, b, t) in zip(steps[k:], later, strict=True):
            assert fingerprint(a) == fingerprint(b) and fingerprint(s) == fingerprint(t)
    assert fingerprint(run(replace(config, seed=4))[0]) != fingerprint(whole)
    for _, adapters, _ in steps:  # the numbers of the dtype of the adapters
        assert fingerprint(round_to(arrays(adapters), config.adapter_dtype)) == fingerprint(
            arrays(adapters)
        )


def test_neither_evaluation_nor_recomputing_changes_the_run():
    expected = fingerprint(run(SMALL)[0])
    assert fingerprint(run(SMALL, valid=())[0]) == expected
    assert fingerprint(run(replace(SMALL, steps_per_eval=1))[0]) == expected
    assert fingerprint(run(replace(SMALL, gradient_checkpointing=True))[0]) == expected
    seen, config = [], replace(SMALL, gradient_checkpointing=True)
    gradient_at(*setting(), ROWS, 0, TINY, config, spying(layers, seen))
    assert sum(name == "swiglu" for name, _ in seen) == 2 * TINY.num_hidden_layers


# ----------------------------------------------------------------------------- accumulation


@settings(max_examples=12)
@given(seeds, st.integers(2, 4), st.integers(1, 3))
def test_accumulation_equals_the_large_batch(seed, n, size):
    # examples of 1 to 8 targets: a mean of the micro-batches' means would be another number
    adapters, frozen = (as_dtype(tree, np.float64) for tree in setting(dropout=0.0))
    examples = [[e] for e in random_examples(TINY, 12, seed)]
    config = replace(SMALL, batch_size=size, grad_accumulation_steps=n)
    loss, grads, rows = gradient_at(
        adapters, frozen, examples, 1, TINY, config, kernels.ops, threads.parallel_map, 2
    )
    assert rows == batch_at(examples, 1, n * size, config.seed)
    expected, expected_grads = value_and_grad(minilora.loss)(adapters, frozen, collate(rows), TINY)
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
    trees = setting(dropout=0.0)
    tokens, mask = EXAMPLES[1].tokens, np.array(EXAMPLES[1].mask)
    silent = Example([1, 2, 3], [1, 0, 0])  # the first token is never a target
    assert num_targets([silent, Example(tokens, mask)]) == num_targets([EXAMPLES[1]])
    config = replace(SMALL, batch_size=1)
    alone = gradient_at(*trees, [[EXAMPLES[1]]], 0, TINY, config, layers)
    rows, config = [[silent], [Example(tokens, mask)]], replace(SMALL, batch_size=2)
    both = gradient_at(*trees, rows, 0, TINY, config, layers, map, 2)
    assert both[0] == alone[0]
    assert fingerprint(both[1]) == fingerprint(alone[1])  # float32, too
    with pytest.raises(InputError, match="the batch of step 1"):
        train(*trees, [silent] * 3, TINY, SMALL)
    with pytest.raises(InputError, match="there are no examples to train on"):
        training.train(*trees, [], TINY, SMALL, layers)


def test_one_share_for_the_reference_and_for_a_large_tree(monkeypatch):
    """With the reference, the batch is not split; a large gradient is in memory once."""
    monkeypatch.setattr(threads, "THREADS", 2)
    seen = []
    monkeypatch.setattr(training, "split_batch", lambda rows, n: seen.append(n) or [rows])
    for ops, few in ((None, 2**24), (layers, 2**24), (None, 1)):
        monkeypatch.setattr(kernels, "MAX_PARALLEL_PARAMETERS", few)
        train(*setting(), EXAMPLES, TINY, replace(SMALL, iters=1), ops=ops)
    trees, config = setting(), replace(SMALL, iters=1)
    training.train(*trees, EXAMPLES, TINY, config, layers)
    gradient_at(*trees, ROWS, 0, TINY, config, layers)
    assert seen == [2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("ops", "cores", "batch_size"),
    [(layers, 1, 6), (layers, 2, 3), (kernels.ops, 1, 1), (kernels.ops, 4, 3), (kernels.ops, 8, 6)],
)
def test_a_rows_masks_depend_on_its_position_alone(monkeypatch, ops, cores, batch_size):
    """It does not depend on the cores, the micro-batches, the padding, or the implementation."""
    monkeypatch.setattr(threads, "THREADS", cores)
    trees, rows, drawn = setting(dropout=0.5), ROWS[:6], set()
    monkeypatch.setattr(
        training, "batch_at", lambda rows, step, size, seed: rows[step * size : (step + 1) * size]
    )
    random = layers.RowRng.random

    def recorded(rng, shape, dtype):
        drawn.update(map(tuple, rng.seeds))
        return random(rng, shape, dtype)

    monkeypatch.setattr(layers.RowRng, "random", recorded)
    config = replace(SMALL, batch_size=batch_size, grad_accumulation_steps=6 // batch_size)
    loss, _, _ = gradient_at(*trees, rows, 0, TINY, config, ops, threads.parallel_map, cores)
    # seed, step, row; layer; q_proj and v_proj
    assert drawn == {(3, 0, *key) for key in product(range(6), range(2), (0, 2))}
    # the six rows as one batch, with their seeds: each of its sums has at most 100 terms, and
    # float32 rounds each of them to 2⁻²⁴ of its size
    row_rng = layers.RowRng([[3, 0, row] for row in range(6)])
    whole = model.loss(*trees, collate(rows), TINY, layers, rng=row_rng)
    assert loss == pytest.approx(float(whole), rel=1e-5)


# ------------------------------------------------------------------------------ what a step is


def test_history_says_what_happened():
    config = replace(SMALL, iters=5, max_grad_norm=0.05)
    _, history, steps = run(config, dropout=0.0)
    training = [row for row in history if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in history if "eval_loss" in row] == [2, 4, 5]
    assert [row for rows, _, _ in steps for row in rows] == history
    assert [state["step"] for _, _, state in steps] == [1, 2, 3, 4, 5]
    adapters, frozen = setting(dropout=0.0)
    for i, row in enumerate(training):
        rows = batch_at(ROWS, i, 2, config.seed)
        loss, grads = value_and_grad(minilora.loss)(adapters, frozen, collate(rows), TINY)
        assert row["learning_rate"] == get_lr(i, config)
        assert row["tokens"] == sum(len(e.tokens) - 1 for (e,) in rows) and row["seconds"] >= 0
        assert row["loss"] == pytest.approx(float(loss), rel=4 * U32)
        norm = global_norm(grads)
        assert row["grad_norm"] == pytest.approx(norm, rel=100 * U32) and norm > 0.05  # unclipped
        if i == 0:  # Adam saw the clipped one
            clipped = global_norm(steps[0][2]["m"]) / (1 - config.adam_beta1)
            assert clipped == pytest.approx(0.05, rel=1e-6 / norm + 100 * U32)
        adapters = steps[i][1]
        for evaluation in steps[i][0][1:]:
            score = metrics.evaluate(adapters, frozen, VALID, TINY)["loss"]
            assert evaluation["eval_loss"] == score


def test_the_bare_loop_times_its_steps(monkeypatch):
    times = iter([5.0, 5.123456, 3.0, 10.5])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(times))
    _, history = training.train(*setting(), EXAMPLES, TINY, replace(SMALL, iters=2), layers)
    assert [row["seconds"] for row in history] == [0.1235, 7.5]


def test_packing_trains_on_the_same_tokens():
    config = replace(SMALL, packing=True, max_seq_length=30, batch_size=1, iters=4)
    every = sum(len(e.tokens) - 1 for e in EXAMPLES)
    _, history = train(*setting(), EXAMPLES, TINY, config)
    assert sum(row["tokens"] for row in history[: -(-every // 29)]) == every


@given(st.integers(1, 5), st.floats(0.1, 1.0), st.sampled_from([0.5, 1.0, 16.0]), st.booleans())
def test_the_rate_of_every_leaf(depth, decay, ratio, factors):
    """η·λ^(layers above it)·(LoRA+'s ratio for B)·(the scale of other leaves)."""
    above = {"model.embed_tokens.weight": depth, "model.norm.weight": 0, "lm_head.weight": 0}
    for i in range(depth):
        for name in ("bias", "lora_A", "lora_B") if factors else ("bias",):
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


def scripted(monkeypatch, scores):
    """An evaluation that returns these losses, one per call."""
    remaining = iter(scores)
    monkeypatch.setattr(
        callbacks, "evaluate", lambda *args, **kwargs: {"loss": next(remaining), "exact_match": 0.0}
    )


def test_early_stopping_keeps_the_best_and_says_so(monkeypatch, capsys):
    scripted(monkeypatch, [3.0, 2.0, 2.5, 2.0, 2.1, 1.0])
    config = replace(SMALL, iters=20, steps_per_eval=1, early_stopping_patience=3)
    best, history, steps = run(config)
    # equal is not better: the third in a row without a better one is step 5
    assert [row["eval_loss"] for row in history if "eval_loss" in row] == [3.0, 2.0, 2.5, 2.0, 2.1]
    assert len(steps) == 5 and fingerprint(best) == fingerprint(steps[1][1])
    assert steps[-1][2]["best_loss"] == 2.0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        "early stopping at step 5 of 20: the last 3 evaluations did not lower the held-out loss",
        "kept: step 2, the trained step with the lowest held-out loss, 2.0000",
    ]
    # a stopped run stays stopped, and a finished one finished
    again, history, _ = run(config, state=steps[-1][2], adapters=steps[-1][1])
    assert fingerprint(again) == fingerprint(best) and history == []
    done, _, steps = run(SMALL, valid=())
    again, history, _ = run(SMALL, state=steps[-1][2], adapters=steps[-1][1])
    assert fingerprint(again) == fingerprint(done) and history == []


def test_quiet_prints_nothing(capsys):
    trees, config = setting(), replace(SMALL, keep_best=True)
    train(*trees, EXAMPLES, TINY, config, VALID, quiet=True)
    assert capsys.readouterr() == ("", "")
    train(*trees, EXAMPLES, TINY, config, VALID)
    assert capsys.readouterr().out.count("held-out loss") == 4  # three evaluations, and the best


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), max_size=9), st.integers(0, 4),
    st.booleans(),
)  # fmt: skip
def test_the_bookkeeping_of_the_best_evaluation(losses, patience, keep_best):
    config = replace(SMALL, early_stopping_patience=patience, keep_best=keep_best)
    state, seen = {**init_state({"w": np.zeros(1)}, config), "step": 7}, []
    for i, loss in enumerate(losses):
        state = {**state, "step": 7 + i}
        before = dict(state)
        after = {**state, **update_best(state, {"w": i}, loss, config)}
        assert state == before  # states that `on_step` got are not modified
        seen.append(loss)
        if not (patience or keep_best):
            assert after == state and not should_stop(after, patience)
            assert kept_step(after) == 7 + i
            continue
        finite = [x for x in seen if x == x]
        best = min(finite, default=math.inf)
        at = seen.index(best) if finite else None
        assert after["best_loss"] == best and after["step"] == 7 + i
        assert after.get("best") == (None if at is None else {"w": at})
        assert kept_step(after) == 7 + (i if at is None else at)
        worse = i + 1 if at is None else i - at  # evaluations since the first of the best
        assert after["worse"] == worse and should_stop(after, patience) == (0 < patience <= worse)
        state = after


@pytest.mark.parametrize(("field", "value"), [("keep_best", True), ("early_stopping_patience", 2)])
def test_the_best_adapters_need_held_out_rows(field, value):
    with pytest.raises(InputError, match=rf"^`{field}` needs held-out rows"):
        run(replace(SMALL, **{field: value}), valid=())


def test_a_run_ends_when_on_step_returns_true():
    steps = []

    def on_step(metrics, adapters, state):
        steps.append(adapters)
        return state["step"] == 4

    for more in ({"on_step": on_step}, {"ops": layers, "callbacks": [on_step]}):
        start = train if "on_step" in more else training.train
        adapters, history = start(*setting(), EXAMPLES, TINY, SMALL, **more)
        assert [row["step"] for row in history] == [1, 2, 3, 4]
        assert fingerprint(adapters) == fingerprint(steps[-1])


@pytest.mark.parametrize(
    ("module", "name", "call", "done"),
    [
        (training, "gradient_at", 1, 0),
        (training, "gradient_at", 4, 3),
        (callbacks, "evaluate", 2, 3),
    ],
)
def test_an_interrupt_has_the_last_complete_step(monkeypatch, module, name, call, done):
    """A notebook's user gets the adapters and can continue with them to the same bytes."""
    calls, config = [], replace(SMALL, keep_best=True)
    expected, whole, steps = run(config)
    real = getattr(module, name)

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(config)
    error = caught.value
    assert type(error) is KeyboardInterrupt  # the command line's own subclass stays what it is
    assert error.__notes__[0].startswith(f"interrupted after step {done}: this exception has the")
    assert error.state["step"] == done
    if done:
        assert fingerprint(error.state) == fingerprint(steps[done - 1][2])
    reached = steps[done - 1][1] if done else setting()[0]
    assert fingerprint(error.adapters) == fingerprint(reached)
    assert timeless(error.history) == timeless([row for row in whole if row["step"] <= done])
    adapters, _, _ = run(config, state=error.state, adapters=error.adapters)
    assert fingerprint(adapters) == fingerprint(expected)


# ------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize(("loss", "scale"), [(math.nan, 0), (math.inf, 0), (1, math.nan)])
def test_a_number_that_is_not_finite_stops_the_run(monkeypatch, loss, scale):
    def fake(adapters, base, sequences, step, *rest):
        result = gradient_at(adapters, base, sequences, step, *rest)
        if step < 3:
            return result
        return loss, tree_map(lambda g: g * scale, result[1]), result[2]

    monkeypatch.setattr(training, "gradient_at", fake)
    steps = []
    with pytest.raises(InputError, match="at step 4: lower `learning_rate`"):
        train(*setting(), EXAMPLES, TINY, SMALL, (), None, lambda *step: steps.append(step))
    # `on_step` got the state of step 3, which is finite
    assert steps[-1][2]["step"] == 3
    assert all(np.isfinite(w).all() for _, w in named_leaves(arrays(steps[-1][1])))


@pytest.mark.parametrize("ops", [None, layers], ids=["fast", "plain"])
@pytest.mark.parametrize("rate", [1e10, 1e37])
def test_a_run_that_diverges_says_so_and_warns_of_nothing_else(ops, rate):
    config = replace(SMALL, iters=50, learning_rate=rate, warmup_ratio=0, lr_schedule="constant")
    with pytest.raises(InputError, match=r"at step \d+: lower"):
        train(*setting(), EXAMPLES, TINY, config, ops=ops)

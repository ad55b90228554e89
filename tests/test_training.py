"""The training loop: arrays it does not modify, reproducible bits, early stopping, its state."""

import math
import re
from dataclasses import replace

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
from minilora import kernels, layers, train, training
from minilora.batching import Example, batch_at, collate
from minilora.config import ALL_LINEAR, InputError, TrainConfig
from minilora.evaluation import callbacks, metrics, progress
from minilora.evaluation.callbacks import init_state, kept_step, should_stop, update_best
from minilora.kernels import threads
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.optim import get_lr, global_norm, round_to
from minilora.training import (
    accumulate,
    gradient_at,
    learning_rates,
    num_targets,
    split_batch,
)
from minilora.tree import arrays, flatten, get, named_leaves, tree_map

U32, U64 = 2.0**-24, 2.0**-53
EXAMPLES, VALID = random_examples(TINY, 9, seed=1), random_examples(TINY, 4, seed=2)
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
    """(adapters, history, [(rows, adapters, state) of each step]) of a run from the same start."""
    start_at, frozen = setting(**kwargs)
    steps = []
    adapters, history = train(
        start_at if adapters is None else adapters, frozen, EXAMPLES, TINY, config, valid, state,
        lambda *step: steps.append(step),
    )  # fmt: skip
    return adapters, history, steps


def of_state(state):
    """A hash of the whole state."""
    trees = {k: v for k, v in state.items() if isinstance(v, dict)}
    numbers = {k: v for k, v in state.items() if not isinstance(v, dict)}
    return {k: fingerprint(v) for k, v in trees.items()}, numbers


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# ----------------------------------------------------------------------------------- freeze


@pytest.mark.parametrize("scheme", ["none", "int8", "fp4", "nf4", "nf4-dq"])
def test_frozen_leaves_are_never_written(scheme):
    base = quantized(random_base(TINY), scheme)
    adapters, frozen = setting(base=base, target_modules=ALL_LINEAR)
    before = fingerprint(base), fingerprint(frozen), fingerprint(adapters)
    read_only(frozen), read_only(adapters)  # any write raises
    trained, _ = train(adapters, frozen, EXAMPLES, TINY, replace(RICH, weight_decay=1.0), VALID)
    assert before == (fingerprint(base), fingerprint(frozen), fingerprint(adapters))
    for path, w in named_leaves(arrays(trained)):  # and every trained one is
        assert (w != flatten(adapters)[path]).any(), path
        assert w.dtype == np.float32 and w.shape == flatten(adapters)[path].shape


# ------------------------------------------------------------------------------- repetition


@pytest.mark.parametrize("config", [SMALL, RICH], ids=["small", "rich"])
def test_the_same_seed_gives_the_same_bytes(config):
    (a, rows, _), (b, same_rows, _) = run(config), run(config)
    assert fingerprint(a) == fingerprint(b) and timeless(rows) == timeless(same_rows)
    assert fingerprint(run(replace(config, seed=4))[0]) != fingerprint(a)


@pytest.mark.parametrize("config", [SMALL, RICH], ids=["small", "rich"])
def test_resuming_at_any_step_gives_the_same_bytes(config):
    whole, history, steps = run(config)
    for k, (_, adapters, state) in enumerate(steps, 1):
        resumed, rest, later = run(config, state=state, adapters=adapters)
        assert fingerprint(resumed) == fingerprint(whole)
        done = [row for row in history if row["step"] <= k]
        assert timeless(done + rest) == timeless(history)
        for (_, a, s), (_, b, t) in zip(steps[k:], later, strict=True):
            assert fingerprint(a) == fingerprint(b) and of_state(s) == of_state(t)


def test_what_was_handed_out_is_not_written_again():
    # a checkpoint may be written by another thread while the run goes on
    hashes = []
    start_at, frozen = setting()

    def on_step(rows, adapters, state):
        hashes.append((adapters, state, fingerprint(adapters), of_state(state)))

    train(start_at, frozen, EXAMPLES, TINY, RICH, VALID, None, on_step)
    assert all(fingerprint(a) == h and of_state(s) == g for a, s, h, g in hashes)


def test_neither_evaluation_nor_recomputing_changes_the_run():
    expected = fingerprint(run(SMALL)[0])
    assert fingerprint(run(SMALL, valid=())[0]) == expected
    assert fingerprint(run(replace(SMALL, steps_per_eval=1))[0]) == expected
    assert fingerprint(run(replace(SMALL, gradient_checkpointing=True))[0]) == expected


# ----------------------------------------------------------------------------- accumulation


@settings(max_examples=12)
@given(seeds, st.integers(2, 4), st.integers(1, 3))
def test_accumulation_equals_the_large_batch(seed, n, size):
    # examples of 1 to 8 targets: a mean of the micro-batches' means would be another number
    adapters, frozen = (as_dtype(tree, np.float64) for tree in setting(dropout=0.0))
    examples = [[e] for e in random_examples(TINY, 12, seed)]
    config = replace(SMALL, batch_size=size, grad_accumulation_steps=n)
    loss, grads, rows = gradient_at(
        adapters, frozen, examples, 1, TINY, config, kernels.ops, kernels.parallel_map, 2
    )

    f = value_and_grad(minilora.loss)
    large = collate(batch_at(examples, 1, n * size, config.seed))
    expected, expected_grads = f(adapters, frozen, large, TINY)
    micro = [batch_at(examples, n + i, size, config.seed) for i in range(n)]
    parts = [collate(rows) for some in micro for rows in split_batch(some, 2)]
    shares = [part["mask"].sum() / large["mask"].sum() for part in parts]
    alone = [f(adapters, frozen, part, TINY) for part in parts]

    assert rows == batch_at(examples, 1, n * size, config.seed)
    assert large["mask"].sum() == sum(part["mask"].sum() for part in parts)
    # all is float64 but the weights m/Σm and the shares, which round once each
    bound = 4 * U32 * sum(s * value for s, (value, _) in zip(shares, alone))
    assert abs(loss - expected) <= bound
    for path, g in named_leaves(grads):
        size = sum(s * np.abs(flatten(tree)[path]) for s, (_, tree) in zip(shares, alone))
        assert (np.abs(g - flatten(expected_grads)[path]) <= 4 * U32 * size + 1e-12).all(), path
    naive = np.mean([value for value, _ in alone])
    assert len(set(shares)) == 1 or abs(naive - expected) > bound


@pytest.mark.parametrize("cores", [1, 2, 3, 5, 9])
def test_the_shares_of_the_cores_are_the_batch(monkeypatch, cores):
    monkeypatch.setattr(threads, "THREADS", cores)
    adapters, frozen = (as_dtype(tree, np.float64) for tree in setting(dropout=0.0))
    rows = [[e] for e in EXAMPLES[:5]]
    shares = split_batch(rows, cores)
    assert len(shares) == min(cores, 5)
    assert sorted(map(id, rows)) == sorted(id(row) for share in shares for row in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    config = replace(SMALL, batch_size=5)
    whole = value_and_grad(minilora.loss)(adapters, frozen, collate(rows), TINY)
    monkeypatch.setattr(training, "batch_at", lambda rows, *rest: rows)
    loss, grads, _ = gradient_at(
        adapters, frozen, rows, 0, TINY, config, kernels.ops, kernels.parallel_map, cores
    )
    # shares n/total round to float32, once each; m/Σm does so in both
    assert loss == pytest.approx(whole[0], rel=4 * U32)
    size = max(np.abs(g).max() for _, g in named_leaves(whole[1]))
    for path, g in named_leaves(grads):
        np.testing.assert_allclose(g, get(whole[1], path), rtol=0, atol=8 * cores * U32 * size)


@given(st.integers(1, 9), st.integers(1, 12))
def test_shares_are_dealt_out_in_turn(shares, n):
    """Neighbours of a batch are of like length if it is packed; dealing spreads them."""
    rows = list(range(n))
    parts = split_batch(rows, shares)
    assert len(parts) == min(shares, n)
    dealt = [row for _, row in sorted((row % len(parts), row) for row in rows)]
    assert dealt == [row for part in parts for row in part]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=4))
def test_the_first_token_is_never_a_target(masks):
    expected = sum(mask[t] for mask in masks for t in range(1, len(mask)))
    assert num_targets(Example([5] * len(mask), mask) for mask in masks) == expected


@given(seeds, st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=5))
def test_parts_count_by_their_targets(seed, counts):
    rng = np.random.default_rng(seed)
    parts = [
        (n, float(rng.standard_normal()), {"a": {"w": rng.standard_normal(3)}}) for n in counts
    ]
    loss, grads = accumulate(parts[:2], sum(counts))
    loss, grads = accumulate(parts[2:], sum(counts), loss, grads)
    # a share, a product and the sum of up to five terms: each rounds its number once
    bound = 7 * U64 * sum(n * abs(value) for n, value, _ in parts) / sum(counts)
    assert abs(loss - math.fsum(n * v for n, v, _ in parts) / sum(counts)) <= bound
    assert grads.keys() == {"a"} and grads["a"].keys() == {"w"}
    for i, got in enumerate(grads["a"]["w"]):
        terms = [n * g["a"]["w"][i] / sum(counts) for n, _, g in parts]
        assert abs(got - math.fsum(terms)) <= 7 * U64 * sum(map(abs, terms))


def test_a_row_without_a_target_takes_no_part():
    """Its mean would be 0/0; alone in its share it is left out."""
    adapters, frozen = setting(dropout=0.0)
    silent = Example(EXAMPLES[0].tokens, [0] * len(EXAMPLES[0].tokens))
    config = replace(SMALL, batch_size=2)
    alone = gradient_at(adapters, frozen, [[EXAMPLES[1]]], 0, TINY, replace(config, batch_size=1),
                        layers)  # fmt: skip
    both = gradient_at(adapters, frozen, [[silent], [EXAMPLES[1]]], 0, TINY, config, layers, map, 2)
    assert both[0] == alone[0]
    assert fingerprint(both[1]) == fingerprint(alone[1])


def test_one_share_for_the_reference_and_for_a_large_tree(monkeypatch):
    """With the reference, the batch is not split; a large gradient is in memory once."""
    monkeypatch.setattr(threads, "THREADS", 2)
    seen = []
    monkeypatch.setattr(training, "split_batch", lambda rows, n: seen.append(n) or [rows])
    for ops, few in ((None, 2**24), (layers, 2**24), (None, 1)):
        monkeypatch.setattr(kernels, "MAX_PARALLEL_PARAMETERS", few)
        train(*setting(), EXAMPLES, TINY, replace(SMALL, iters=1), ops=ops)
    assert seen == [2, 1, 1]


def test_a_micro_batch_has_a_dropout_mask_of_its_own():
    adapters, frozen = setting(dropout=0.5)
    twice = [[EXAMPLES[0]]] * 2
    one, two = (
        gradient_at(adapters, frozen, twice, 0, TINY, replace(SMALL, batch_size=1, **more), layers)
        for more in ({}, {"grad_accumulation_steps": 2})
    )
    assert one[0] != two[0]  # the mean of two masks, not one mask twice
    later = gradient_at(adapters, frozen, twice, 1, TINY, replace(SMALL, batch_size=1), layers)
    assert one[0] != later[0]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("cores", [1, 2, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_a_rows_masks_depend_on_its_position_alone(monkeypatch, plain, cores, batch_size):
    """It does not depend on the cores, the micro-batches, the padding, or the implementation."""
    monkeypatch.setattr(threads, "THREADS", cores)
    ops = layers if plain else kernels.ops
    adapters, frozen = setting(dropout=0.5)
    rows, drawn = [[e] for e in EXAMPLES[:6]], {}
    monkeypatch.setattr(
        training, "batch_at", lambda rows, step, size, seed: rows[step * size : (step + 1) * size]
    )
    random = layers.RowRng.random

    def recorded(rng, shape, dtype):
        masks = random(rng, shape, dtype)
        for seed, mask in zip(rng.seeds, masks):
            length = len(EXAMPLES[seed[2]].tokens) - 1  # without the padding
            drawn.setdefault(tuple(seed), set()).add(mask[:length].tobytes())
        return masks

    monkeypatch.setattr(layers.RowRng, "random", recorded)
    config = replace(SMALL, batch_size=batch_size, grad_accumulation_steps=6 // batch_size)
    loss, _, _ = gradient_at(
        adapters, frozen, rows, 0, TINY, config, ops, kernels.parallel_map, cores
    )
    # seed, step, row; layer; q_proj and v_proj
    keys = {(3, 0, row, layer, name) for row in range(6) for layer in range(2) for name in (0, 2)}
    expected = {}
    for key in keys:
        shape = len(EXAMPLES[key[2]].tokens) - 1, TINY.hidden_size
        mask = np.random.default_rng(key).random(shape, np.float32)
        expected[key] = {mask.tobytes()}
    assert drawn == expected
    # the six rows as one batch, with their seeds: each of its sums has at most 100 terms, and
    # float32 rounds each of them to 2⁻²⁴ of its size
    row_rng = layers.RowRng([[3, 0, row] for row in range(6)])
    whole = minilora.loss(adapters, frozen, collate(rows), TINY, layers, rng=row_rng)
    assert loss == pytest.approx(float(whole), rel=1e-5)


# ------------------------------------------------------------------------------ what a step is


def test_history_says_what_happened():
    config = replace(SMALL, iters=5, steps_per_eval=2, max_grad_norm=0.05)
    _, history, steps = run(config, dropout=0.0)
    training = [row for row in history if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in history if "eval_loss" in row] == [2, 4, 5]
    assert [row for rows, _, _ in steps for row in rows] == history
    assert [state["step"] for _, _, state in steps] == [1, 2, 3, 4, 5]
    adapters, frozen = setting(dropout=0.0)
    for i, row in enumerate(training):
        batch = collate(batch_at([[e] for e in EXAMPLES], i, 2, config.seed))
        loss, grads = value_and_grad(minilora.loss)(adapters, frozen, batch, TINY)
        assert row["learning_rate"] == get_lr(i, config)
        rows = batch_at(EXAMPLES, i, 2, config.seed)
        assert row["tokens"] == sum(len(e.tokens) - 1 for e in rows) and row["seconds"] >= 0
        assert row["loss"] == pytest.approx(float(loss), rel=4 * U32)
        norm = math.sqrt(
            sum(float((g.astype(np.float64) ** 2).sum()) for _, g in named_leaves(grads))
        )
        assert row["grad_norm"] == pytest.approx(norm, rel=100 * U32) and norm > 0.05  # unclipped
        if i == 0:  # Adam saw the clipped one
            clipped = global_norm(steps[0][2]["m"]) / (1 - config.adam_beta1)
            assert clipped == pytest.approx(0.05, rel=1e-6 / norm + 100 * U32)
        adapters = steps[i][1]
        if any("eval_loss" in r for r in steps[i][0]):
            score = metrics.evaluate(adapters, frozen, VALID, TINY)["loss"]
            assert steps[i][0][1]["eval_loss"] == score


def test_the_bare_loop_times_its_steps_and_does_not_share_them_out(monkeypatch):
    times = iter([5.0, 5.123456, 3.0, 10.5])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(times))
    shares, split = [], split_batch
    monkeypatch.setattr(
        training, "split_batch", lambda rows, n: shares.append(n) or split(rows, n)
    )  # fmt: skip
    adapters, frozen = setting()
    config = replace(SMALL, iters=2)
    _, history = training.train(adapters, frozen, EXAMPLES, TINY, config, layers)
    assert [row["seconds"] for row in history] == [0.1235, 7.5]
    gradient_at(adapters, frozen, [[e] for e in EXAMPLES], 0, TINY, config, layers)
    assert shares == [1, 1, 1]


@pytest.mark.parametrize("every", [1, 3, 7, 50])
def test_every_so_many_steps_and_the_last_are_evaluated(monkeypatch, every):
    scripted(monkeypatch, [1.0] * 7)
    _, history, _ = run(replace(SMALL, iters=7, steps_per_eval=every))
    at = [row["step"] for row in history if "eval_loss" in row]
    assert at == [step for step in range(1, 8) if step % every == 0 or step == 7]


@pytest.mark.parametrize("recomputing", [False, True])
def test_the_layers_are_recomputed_if_the_settings_say_so(recomputing):
    seen, config = [], replace(SMALL, gradient_checkpointing=recomputing)
    rows = [[e] for e in EXAMPLES]
    gradient_at(*setting(), rows, 0, TINY, config, spying(layers, seen))
    calls = sum(name == "mlp" for name, _ in seen)
    assert calls == TINY.num_hidden_layers * (2 if recomputing else 1)


def test_low_rank_factors_and_the_rest_have_their_own_rates():
    config = replace(SMALL, also_train_lr_scale=0.25)
    adapters, _ = setting(dropout=0.0)
    rates = learning_rates(0.1, config, arrays(adapters))
    assert rates.keys() == flatten(arrays(adapters)).keys() and set(rates.values()) == {0.1, 0.025}
    assert all((rate == 0.1) == (".lora_" in path) for path, rate in rates.items())
    # Adam's first step is the rate itself, wherever there is a gradient to speak of
    config = replace(config, iters=1, warmup_ratio=0, lr_schedule="constant", max_grad_norm=1e9)
    before, frozen = setting(dropout=0.0)
    after, _ = train(before, frozen, EXAMPLES, TINY, config)
    for path, w in named_leaves(arrays(after)):
        moved = np.abs(w - flatten(before)[path]).max()
        assert moved == pytest.approx(
            learning_rates(0.02, config, arrays(before))[path], rel=1e-3
        ), path


@given(st.integers(1, 5), st.floats(0.1, 1.0), st.sampled_from([0.5, 1.0, 16.0]), st.booleans())
def test_the_rate_of_every_leaf(depth, decay, ratio, factors):
    """η·λ^(layers above it)·(LoRA+'s ratio for B)·(the scale of other leaves), each by itself."""
    tree = {"model": {"embed_tokens": {"weight": 0}, "norm": {"weight": 0}, "layers": {}}}
    tree["lm_head"] = {"weight": 0}
    leaves = {"bias": 0, "lora_A": 0, "lora_B": 0} if factors else {"bias": 0}
    for i in range(depth):
        tree["model"]["layers"][str(i)] = {"self_attn": {"q_proj": leaves}}
    config = TrainConfig(
        layer_lr_decay=decay, loraplus_lr_ratio=ratio, also_train_lr_scale=0.125
    )  # fmt: skip
    of = learning_rates(0.25, config, tree)
    other_scale = 0.125 if factors else 1.0  # a power of two, as the ratio is: products are exact
    above = {"model.embed_tokens.weight": depth, "model.norm.weight": 0, "lm_head.weight": 0}
    for path, layers_above in above.items():
        assert of[path] == 0.25 * other_scale * decay**layers_above
    for i in range(depth):
        q, rate = f"model.layers.{i}.self_attn.q_proj", 0.25 * decay ** (depth - 1 - i)
        assert of[f"{q}.bias"] == rate * other_scale
        if factors:
            assert of[f"{q}.lora_A"] == rate and of[f"{q}.lora_B"] == rate * ratio


def test_the_rate_of_a_leaf_without_layers():
    of = learning_rates(0.25, TrainConfig(layer_lr_decay=0.5), {"lm_head": {"weight": 0}})
    assert of["lm_head.weight"] == 0.25


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_are_on_the_grid_of_their_dtype_after_every_step(dtype):
    _, _, steps = run(replace(SMALL, adapter_dtype=dtype))
    for _, adapters, _ in steps:
        assert fingerprint(round_to(arrays(adapters), dtype)) == fingerprint(arrays(adapters))
    assert fingerprint(steps[-1][1]) != fingerprint(run(SMALL)[0])


def test_a_run_learns():
    adapters, frozen = setting(dropout=0.0, r=4, target_modules=ALL_LINEAR)
    config = replace(SMALL, iters=100, learning_rate=0.02)
    _, history = train(adapters, frozen, EXAMPLES[:2], TINY, config)
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]  # two rows can be learnt by heart


def test_the_tokens_of_a_step_are_those_of_prompts_too_and_no_padding():
    long, short = Example([1, 2, 3, 4, 5], [0, 0, 0, 1, 1]), Example([1, 2, 3], [0, 0, 1])
    config = replace(SMALL, iters=1, batch_size=2, grad_accumulation_steps=2)
    _, history = train(*setting(), [long, short, short, short], TINY, config)
    assert history[0]["tokens"] == 4 + 2 + 2 + 2


def test_packing_trains_on_the_same_tokens():
    config = replace(SMALL, packing=True, max_seq_length=30, batch_size=1, iters=4)
    every = sum(len(e.tokens) - 1 for e in EXAMPLES)
    _, history = train(*setting(), EXAMPLES, TINY, config)
    sequences = -(-sum(len(e.tokens) - 1 for e in EXAMPLES) // 29)
    assert sum(row["tokens"] for row in history[:sequences]) == every


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
    assert [line.partition(":")[0] for line in printed if line.endswith(", the best so far")] == [
        "step 1", "step 2",
    ]  # fmt: skip
    assert printed[-2:] == [
        "early stopping at step 5 of 20: the last 3 evaluations did not lower the held-out loss",
        "kept: step 2, the trained step with the lowest held-out loss, 2.0000",
    ]


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


def test_keep_best_returns_the_best_adapters_of_all_steps(monkeypatch, capsys):
    scripted(monkeypatch, [3.0, 1.0, 2.0])
    best, _, steps = run(replace(SMALL, keep_best=True))
    assert len(steps) == 6 and fingerprint(best) == fingerprint(steps[3][1])
    assert fingerprint(best) != fingerprint(steps[-1][1])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "kept: step 4, the trained step with the lowest held-out loss, 1.0000"
    assert not any("early stopping" in line for line in said)


@pytest.mark.parametrize("field", [{"keep_best": True}, {"early_stopping_patience": 2}])
def test_the_best_adapters_need_held_out_rows(field):
    with pytest.raises(
        InputError, match=r"^`(keep_best|early_stopping_patience)` needs held-out rows"
    ):
        run(replace(SMALL, **field), valid=())


def test_quiet_prints_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)  # a line at once
    monkeypatch.setattr(metrics, "TOKENS", sum(len(e.tokens) for e in VALID) - 1)  # two batches
    config = replace(SMALL, keep_best=True)
    train(*setting(), EXAMPLES, TINY, config, VALID, quiet=True)
    assert capsys.readouterr() == ("", "")
    train(*setting(), EXAMPLES, TINY, config, VALID)
    printed, lines = capsys.readouterr()
    assert printed.count("held-out loss") == 4  # of three evaluations, and of the best
    assert re.findall(r"^step (\d) of 6: .* left$", lines, re.MULTILINE) == list("12345")
    assert len(re.findall(r"^evaluating 4 rows: \d+ %, .* left$", lines, re.MULTILINE)) == 3


def test_a_run_ends_when_on_step_returns_true():
    for start in (train, training.train):
        steps = []

        def on_step(metrics, adapters, state, steps=steps):
            steps.append((adapters, state))
            return state["step"] == 4

        in_core = {"ops": layers, "callbacks": [on_step]}
        more = in_core if start is training.train else {"on_step": on_step}
        adapters, history = start(*setting(), EXAMPLES, TINY, SMALL, **more)
        assert [row["step"] for row in history] == [1, 2, 3, 4]
        assert steps[-1][1]["step"] == 4 and fingerprint(adapters) == fingerprint(steps[-1][0])


@pytest.mark.parametrize("moment", ["the gradient of step 4", "the evaluation of step 4"])
def test_an_interrupt_has_the_last_complete_step(monkeypatch, moment):
    """A notebook's user gets the adapters and can continue with them to the same bytes."""
    calls, config = [], replace(SMALL, keep_best=True)
    expected, whole, steps = run(config)
    where = (training, "gradient_at") if "gradient" in moment else (callbacks, "evaluate")
    real = getattr(*where)

    def interrupted(*args):
        calls.append(args)
        if len(calls) == (4 if "gradient" in moment else 2):
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(*where, interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(config)
    error = caught.value
    assert type(error) is KeyboardInterrupt  # the command line's own subclass stays what it is
    assert error.__notes__[0].startswith("interrupted after step 3: this exception has the")
    assert fingerprint(error.adapters) == fingerprint(steps[2][1])
    assert of_state(error.state) == of_state(steps[2][2])
    assert timeless(error.history) == timeless([row for row in whole if row["step"] <= 3])
    adapters, _, _ = run(config, state=error.state, adapters=error.adapters)
    assert fingerprint(adapters) == fingerprint(expected)


def test_an_interrupt_before_the_first_step_has_the_adapters_of_the_start(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "gradient_at", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(SMALL)
    assert fingerprint(caught.value.adapters) == fingerprint(setting()[0])
    assert caught.value.history == [] and caught.value.state["step"] == 0


def test_a_better_loss_starts_the_count_again(monkeypatch):
    scripted(monkeypatch, [3.0, 4.0, 2.0, 4.0, 1.0, 4.0])
    config = replace(SMALL, steps_per_eval=1, early_stopping_patience=2)
    best, _, steps = run(config)
    assert len(steps) == 6 and fingerprint(best) == fingerprint(steps[4][1])


def test_a_stopped_run_stays_stopped_and_a_finished_one_finished(monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, 2.0])
    config = replace(SMALL, iters=20, steps_per_eval=1, early_stopping_patience=2)
    best, _, steps = run(config)
    assert should_stop(steps[-1][2], 2)
    again, history, _ = run(config, state=steps[-1][2], adapters=steps[-1][1])
    assert fingerprint(again) == fingerprint(best) and history == []
    done, _, steps = run(SMALL, valid=())
    again, history, _ = run(SMALL, state=steps[-1][2], adapters=steps[-1][1])
    assert fingerprint(again) == fingerprint(done) and history == []


def test_without_patience_the_last_adapters_count(monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, math.nan])
    last, _, steps = run(SMALL)
    assert len(steps) == 6 and fingerprint(last) == fingerprint(steps[-1][1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run(monkeypatch, bad, what):
    real = gradient_at

    def fake(adapters, base, sequences, step, *rest):
        loss, grads, rows = real(adapters, base, sequences, step, *rest)
        if step == 3 and what == "loss":
            return bad, tree_map(np.zeros_like, grads), rows
        if step == 3:
            return 0.5, tree_map(lambda g: np.full_like(g, bad), grads), rows
        return loss, grads, rows

    monkeypatch.setattr(training, "gradient_at", fake)
    steps = []
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(InputError, match="at step 4: lower `learning_rate`") as error,
    ):
        train(*setting(), EXAMPLES, TINY, SMALL, (), None, lambda *step: steps.append(step))
    assert "\n" not in str(error.value)
    # `on_step` got the state of step 3, which is finite
    assert steps[-1][2]["step"] == 3
    assert all(np.isfinite(w).all() for _, w in named_leaves(arrays(steps[-1][1])))
    monkeypatch.undo()
    resumed, _, _ = run(SMALL, valid=(), state=steps[-1][2], adapters=steps[-1][1])
    assert fingerprint(resumed) == fingerprint(run(SMALL, valid=())[0])


@pytest.mark.parametrize("ops", [None, layers], ids=["fast", "plain"])
@pytest.mark.parametrize("rate", [1e10, 1e20, 1e37])
def test_a_run_that_diverges_says_so_and_warns_of_nothing_else(ops, rate):
    config = replace(SMALL, iters=50, learning_rate=rate, warmup_ratio=0, lr_schedule="constant")
    with pytest.raises(InputError, match=r"at step \d+: lower"):
        train(*setting(), EXAMPLES, TINY, config, ops=ops)


def test_without_a_target_or_an_example_there_is_nothing_to_train():
    adapters, frozen = setting()
    silent = [Example([1, 2, 3], [1, 0, 0])] * 3
    with pytest.raises(InputError, match="no token of the batch of step 1 is a target"):
        train(adapters, frozen, silent, TINY, SMALL)
    with pytest.raises(InputError, match="there are no examples to train on"):
        training.train(adapters, frozen, [], TINY, SMALL, layers)


def test_start_has_taken_no_step():
    adapters, _ = setting()
    state = init_state(adapters, SMALL)
    assert state["step"] == 0 and state["best_loss"] == math.inf and not should_stop(state, 9)
    for tree in (state["m"], state["v"]):
        assert all(not w.any() and w.dtype == np.float32 for _, w in named_leaves(tree))


def test_masks_may_be_arrays():
    """The weight n/total of a shard stays a Python float, so the gradients stay float32."""
    adapters, frozen = setting(dropout=0.0)
    arrays = [[Example(e.tokens, np.array(e.mask))] for e in EXAMPLES]
    lists = [[e] for e in EXAMPLES]
    run = (0, TINY, SMALL, kernels.ops, map, 2)
    loss, grads, _ = gradient_at(adapters, frozen, arrays, *run)
    other, expected, _ = gradient_at(adapters, frozen, lists, *run)
    assert loss == other
    for path, g in named_leaves(grads):
        assert g.dtype == np.float32
        np.testing.assert_array_equal(g, get(expected, path))

"""The training loop: arrays it does not modify, reproducible bits, early stopping, its state."""

import io
import math
import warnings
from dataclasses import replace
from itertools import count, cycle, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    EVERY_BASE,
    TINY,
    U32,
    adapted,
    as_dtype,
    assert_near,
    fast_model,
    fingerprint,
    on_cores,
    quantized,
    random_examples,
    random_model,
    read_only,
    seeds,
    spying,
    untimed,
    vector,
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
from minilora.methods.replaced import GROUPS, also_train
from minilora.optim import get_lr, global_norm
from minilora.rounding import round_to
from minilora.training import (
    Best,
    State,
    gradient_at,
    learning_rates,
    split_batch,
    start,
)
from minilora.tree import arrays, flatten, get, named_leaves, num_parameters, tree_map, unflatten

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
    adapters, model = adapted(model or random_model(ops=ops), lora_dropout=dropout, **lora_fields)
    return also_train(adapters, model.base, GROUPS), model


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


@EVERY_BASE
def test_frozen_leaves_are_never_written(scheme):
    model = quantized(fast_model(), scheme)
    adapters, model = setting(model=model, target_modules=ALL_LINEAR)
    before = fingerprint(model.base), fingerprint(adapters)
    config = replace(RICH, iters=3, weight_decay=1.0)
    trained, _ = train(adapters, model, EXAMPLES, config, VALID)
    assert before == (fingerprint(model.base), fingerprint(adapters))
    for path, w in named_leaves(arrays(trained)):  # and every trained one is
        assert (w != flatten(adapters)[path]).any(), path


@pytest.mark.parametrize("config", [SMALL, RICH], ids=["small", "rich"])
def test_resuming_at_any_step_gives_the_same_bytes(config):
    whole = run(config)
    for k, state in enumerate([None, *(state for state, _ in whole)]):
        later = run(config, state=state)
        assert untimed(history_of(whole[:k] + later)) == untimed(history_of(whole))
        assert [mark(a) for a, _ in later] == [mark(b) for b, _ in whole[k:]]
    last = whole[-1][0]
    assert mark(run(replace(config, seed=4))[-1][0]) != mark(last)
    for state in (start(setting()[0], config), last):  # the numbers of the dtype of the adapters
        trained = arrays(state.adapters)
        assert fingerprint(round_to(trained, config.adapter_dtype)) == fingerprint(trained)


def test_neither_evaluation_nor_recomputing_changes_the_run():
    seen, config = [], replace(SMALL, gradient_checkpointing=True, steps_per_eval=1)
    assert mark(run(config)[-1][0]) == mark(run(SMALL, ())[-1][0])
    # autograd's own `checkpoint` recomputes a layer once per traced argument
    gradient_at(*setting(ops=spying(layers, seen)), ROWS, 0, config)
    assert sum(name == "swiglu" for name, _ in seen) == 2 * TINY.num_hidden_layers


# ----------------------------------------------------------------------------- accumulation


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
    expected, expected_grads = value_and_grad(minilora.loss)(adapters, model, collate(rows))
    # all is float64 but the weights m/Σm, which round to 2⁻²⁴ of the part of a row; a part can be
    # some ten times larger than the sum
    assert loss == pytest.approx(float(expected), rel=100 * U32)
    assert_near(vector(grads), vector(expected_grads), 100 * U32)


def test_shares_are_dealt_out_in_turn():
    """Neighbours of a batch are of like length if it is packed; dealing spreads them."""
    assert split_batch([*range(7)], 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert split_batch([1, 2], 5) == [[1], [2]]


def test_a_row_without_a_target_takes_no_part():
    """Its mean would be 0/0; alone in its share it is left out. Masks may be arrays."""
    adapters, model = setting(dropout=0.0, ops=layers)
    silent = Example([1, 2, 3], [1, 0, 0])  # the first token is never a target
    rows = [[silent], [EXAMPLES[1]._replace(mask=np.array(EXAMPLES[1].mask))]]
    alone = gradient_at(adapters, model, ROWS[1:2], 0, replace(SMALL, batch_size=1))
    shared = gradient_at(adapters, model._replace(ops=on_cores(2, layers)), rows, 0, SMALL)
    assert shared[0] == alone[0] and fingerprint(shared[1]) == fingerprint(alone[1])
    for examples, says in ([silent], "the batch of step 1"), ([], "there are no examples to train"):
        with refused(says):
            train(adapters, model, examples, SMALL)


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
    "ops, cores, batch_size", [(layers, 2, 3), (kernels.ops, 1, 1), (kernels.ops, 4, 3)]
)
def test_a_rows_masks_depend_on_its_position_alone(monkeypatch, ops, cores, batch_size):
    """It does not depend on the cores, the micro-batches, the padding, or the implementation."""
    monkeypatch.setattr(threads, "THREADS", cores)
    config = replace(SMALL, batch_size=batch_size, grad_accumulation_steps=6 // batch_size)
    seen = []
    adapters, model = setting(dropout=0.5, ops=on_cores(cores, spying(ops, seen)))
    loss, _, rows = gradient_at(adapters, model, ROWS, 0, config)
    nodes = [args for name, args in seen if name == "linear" and "lora_A" in args[1]]
    drawn = {tuple(seed) for _, _, row_rng in nodes for seed in row_rng.seeds}
    # seed, step, row; layer; q_proj and v_proj
    assert drawn == {(3, 0, *key) for key in product(range(6), range(2), (0, 2))}
    # the six rows as one batch, with their seeds: each of its sums has at most 100 terms, and
    # float32 rounds each of them to 2⁻²⁴ of its size
    row_rng = layers.RowRng([[3, 0, row] for row in range(6)])
    whole = minilora.loss(adapters, model._replace(ops=layers), collate(rows), row_rng)
    assert loss == pytest.approx(float(whole), rel=1e-5)


# ------------------------------------------------------------------------------ what a step is


def test_history_says_what_happened(monkeypatch):
    monkeypatch.setattr(training.time, "perf_counter", count(0, 0.123456).__next__)
    config = replace(SMALL, iters=5, max_grad_norm=0.05, val_batches=1)
    done, (adapters, model) = run(config, dropout=0.0), setting(dropout=0.0)
    history = history_of(done)
    assert [row["step"] for row in history if "eval_loss" in row] == [2, 4, 5]
    assert untimed(train(adapters, model, EXAMPLES, config, VALID)[1]) == untimed(history)
    for i, (state, (row, *evaluations)) in enumerate(done):
        rows = batch_at(ROWS, i, 2, config.seed)
        loss, grads = value_and_grad(minilora.loss)(adapters, model, collate(rows))
        norm = global_norm(grads)
        assert norm > 0.05 and row.pop("peak_rss_mb") > 1
        assert row == {
            "step": i + 1,
            "loss": pytest.approx(float(loss), rel=4 * U32),
            "learning_rate": get_lr(i, config),
            "grad_norm": pytest.approx(norm, rel=100 * U32),  # unclipped
            "tokens": sum(len(e.tokens) - 1 for (e,) in rows),
            "seconds": 0.1235,
        }
        if i == 0:  # Adam saw the clipped one
            clipped = global_norm(state.moments["m"]) / (1 - config.adam_beta1)
            assert clipped == pytest.approx(0.05, rel=1e-6 / norm + 100 * U32)
        adapters = state.adapters
        for evaluation in evaluations:  # of one batch
            expected = metrics.evaluate(adapters, model, VALID[:2])["loss"]
            assert evaluation["eval_loss"] == expected


def test_packing_trains_on_the_same_tokens():
    config = replace(SMALL, packing=True, max_seq_length=30, batch_size=1, iters=4)
    every = sum(len(e.tokens) - 1 for e in EXAMPLES)
    history = history_of(run(config, ()))
    sequences = -(-every // 29)
    assert sum(row["tokens"] for row in history[:sequences]) == every
    with pytest.warns(UserWarning, match=f"there are only {sequences}") as said:
        run(replace(config, batch_size=sequences + 1))
    assert {w.filename for w in said} == {__file__}  # the line of the loop over `minilora.run`


@given(st.integers(1, 13), st.floats(0.1, 1.0), st.sampled_from([0.5, 1.0, 16.0]), st.booleans())
def test_the_rate_of_every_leaf(depth, decay, ratio, factors):
    """η·λ^(layers above it)·(LoRA+'s ratio for B)·(the scale of other leaves)."""
    heads = "model.norm.weight", "lm_head.weight", "score.weight"
    above = {"model.embed_tokens.weight": depth, **dict.fromkeys(heads, 0)}
    names = ("bias", "lora_A", "lora_B", "lora_magnitude_vector") if factors else ("bias",)
    for i, name in product(range(depth), names):
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
    scores = cycle({"loss": loss, "exact_match": 0.0} for loss in (3.0, 2.0, 2.5, 2.0, 2.1))
    monkeypatch.setattr(loop, "evaluate", lambda *_: next(scores))
    config = replace(SMALL, iters=20, steps_per_eval=1, early_stopping_patience=3)
    done = run(config)
    last = done[-1][0]
    # equal is not better: the third in a row without a better one is step 5
    assert len(done) == 5 and run(config, state=last) == []  # a stopped run stays stopped
    loop.print_end(last, replace(config, iters=5))  # that was the last step anyway
    printed = capsys.readouterr().out
    assert printed.count("early stopping at step 5 of 20: the last 3 evaluations did not") == 2
    assert printed.count("kept: step 2, the trained step with the lowest held-out loss, 2.0") == 3
    trained, _ = train(*setting(), EXAMPLES, config, VALID)
    assert fingerprint(trained) == fingerprint(done[1][0].adapters)


def test_masked_prompts_need_masked_examples():
    masked = Example([1, 2, 3], np.array([0, 0, 1]), [0, 0, 1])
    unmasked = masked._replace(mask=[1, 1, 1])
    config = replace(SMALL, mask_prompt=True)
    train(*setting(), [masked, *EXAMPLES], config, [masked], quiet=True)
    for examples, valid in ([unmasked], []), (EXAMPLES, [unmasked]):
        with refused("`mask_prompt` is true, but not all examples are masked"):
            train(*setting(), examples, config, valid)


def test_steps_without_an_effect_or_with_repeated_sequences_are_doubtful():
    for packing, tail in ((False, ""), (True, ", or `max_seq_length`")):
        config = replace(SMALL, batch_size=3, grad_accumulation_steps=2, packing=packing)
        assert not [*doubts(config, 6)]
        assert [*doubts(replace(config, iters=1), 5)] == [
            "the only step has the learning rate 0: set `warmup_ratio` to 0",
            "each step repeats sequences: it has 6, and there are only 5: "
            f"lower `batch_size` or `grad_accumulation_steps`{tail}",
        ]


def test_a_run_says_if_it_has_too_few_evaluations():
    """An evaluation stops a run, or is not the best, only after others and before the last step."""
    for iters, every, patience in product(range(1, 9), range(1, 5), range(4)):
        evaluated = [step for step in range(1, iters + 1) if step % every == 0 or step == iters]
        config = TrainConfig(
            iters=iters, steps_per_eval=every, early_stopping_patience=patience, warmup_ratio=0,
            keep_best=True,
        )  # fmt: skip
        said = [*doubts(config, 9)]
        assert bool(said) == (iters in evaluated[: patience + 1])
        name = f"`early_stopping_patience` {patience}" if patience else "`keep_best`"
        assert not said or f": {len(evaluated)}, too few for {name}: " in said[0]
    assert not [*doubts(SMALL, 9)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [1e-10, 1e-6, 1e-2])
def test_steps_that_rounding_undoes_are_warned_of(dtype, rate):
    adapters, model = adapted(random_model())
    config = replace(SMALL, iters=1, warmup_ratio=0, learning_rate=rate, adapter_dtype=dtype)
    with warnings.catch_warnings(record=True, action="always") as said:
        before = arrays(start(adapters, config).adapters)
    after, _ = train(adapters, model, EXAMPLES, config)
    same = [np.mean(a == get(after, path)) for path, a in named_leaves(before)]
    # one warning for all leaves, which points to the call of `start`
    found = [(w.filename, "float32 adapters" in str(w.message)) for w in said]
    assert found == [(__file__, dtype != "float32")] * int(max(same) > 0.5), same


def test_quiet_prints_nothing(capsys):
    (adapters, model), config = setting(), replace(SMALL, keep_best=True)
    train(adapters, model, EXAMPLES, config, VALID, quiet=True)
    assert capsys.readouterr() == ("", "")
    train(adapters, model, EXAMPLES, config, VALID)
    assert capsys.readouterr().out.count("held-out loss") == 4  # three evaluations, and the best
    # less than all is not 100 %
    assert [*map(loop.percent, (0.9996, 1.0, 0.5))] == ["99.9 %", "100.0 %", "50.0 %"]


def test_the_bars_of_a_resumed_run_and_of_its_evaluations_are_full_at_the_end(monkeypatch):
    bars, quiets, config = [], [], replace(SMALL, iters=3)

    def bar(total, quiet, **options):
        quiets.append(quiet)
        bars.append(tqdm(total=total, file=io.StringIO(), **options | {"delay": 0}))
        return bars[-1]

    state = run(config, ())[0][0]
    for module in (loop, metrics):
        monkeypatch.setattr(module, "progress_bar", bar)
    monkeypatch.setattr(metrics, "TOKENS", 10)  # in several batches
    run(config, state=state)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(1, 3, 3), (0, 4, 4), (0, 4, 4)]
    list(minilora.run(state, setting()[1], EXAMPLES, config, VALID, quiet=True))
    assert quiets == [False] * 3 + [True] * 3
    loop.show(bars[0], {"step": 1, "loss": 0.5, "tokens": 3, "seconds": 0.0})  # rounded to zero
    assert bars[0].postfix == "loss 0.500, 30000 tokens/s with prompts"


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), max_size=9), st.integers(0, 4),
    st.booleans(),
)  # fmt: skip
def test_the_bookkeeping_of_the_best_evaluation(losses, patience, keep_best):
    config, best = replace(SMALL, early_stopping_patience=patience, keep_best=keep_best), Best()
    for i, loss in enumerate(losses):
        state = State({"w": i}, {"step": 7 + i}, best)
        best = better(state, loss, config)
        finite = [x for x in losses[: i + 1] if x == x]
        if not (patience or keep_best):
            kept, expected = i, Best()
        elif not finite:
            kept, expected = i, Best(worse=i + 1)
        else:
            kept = losses.index(min(finite))
            expected = Best(losses[kept], 7 + kept, {"w": kept}, i - kept)
        assert best == expected
        after = state._replace(best=best)
        assert (after.kept, after.kept_step) == ({"w": kept}, 7 + kept)
        assert should_stop(best, patience) == (0 < patience <= best.worse)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keep_best": True}, "`keep_best` needs held-out rows, but there are none"),
        ({"early_stopping_patience": 2}, "`early_stopping_patience` needs held-out rows"),
        ({"optimizer": "muon"}, "the state is of another optimizer than muon: continue with"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_its_first_step(changes, message):
    adapters, model = setting()
    with refused("has no parameters to train: create it with get_peft_mod"):
        start({"lm_head": {"lora_scaling": 1.0}}, SMALL)
    with refused(message):
        next(minilora.run(start(adapters, SMALL), model, EXAMPLES, replace(SMALL, **changes)))


def test_a_run_that_continues_without_keep_best_returns_its_last_adapters():
    first = run(replace(SMALL, keep_best=True))[-1][0]
    last = run(replace(SMALL, iters=8), state=first)[-1][0]
    assert first.best.adapters and last.kept is last.adapters


# ------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize("loss, scale", [(math.inf, 0), (1, math.nan)])
def test_a_number_that_is_not_finite_stops_the_run(monkeypatch, loss, scale):
    def fake(*args):
        _, grads, rows = gradient_at(*args)
        return loss, tree_map(lambda g: g * scale, grads), rows

    monkeypatch.setattr(training, "gradient_at", fake)
    with refused("at step 1: lower `learning_rate`"):
        train(*setting(), EXAMPLES, SMALL)


@pytest.mark.parametrize("ops, rate", [(kernels.ops, 1e10), (layers, 1e37)])
def test_a_run_that_diverges_says_so_and_warns_of_nothing_else(ops, rate):
    config = replace(SMALL, iters=50, learning_rate=rate, warmup_ratio=0, lr_schedule="constant")
    with refused(r"at step \d+: lower"):
        train(*setting(ops=ops), EXAMPLES, config)

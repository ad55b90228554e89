"""The training loop with evaluations of held-out rows.

    for state, records in run(start(adapters, train_config), model, examples, train_config, valid):
        history += records

`run` adds evaluations, early stopping, the best adapters and a progress bar to `training.steps`.
"""

import math
import warnings
from collections.abc import Generator, Sequence

from ..batching import Example
from ..config import InputError, TrainConfig
from ..data.packing import pack_examples
from ..layers import virtual_tokens
from ..methods import several
from ..model import Model
from ..optim import OPTIMIZERS, get_lr
from ..training import Best, State, train_step
from ..tree import Tree, arrays
from .memory import peak_rss_mb
from .metrics import check_examples, evaluate, progress_bar


def run(
    state: State,
    model: Model,
    examples: Sequence[Example],
    train_config: TrainConfig,
    valid: Sequence[Example] = (),
    quiet: bool = False,
) -> Generator[tuple[State, list[Tree]], None, None]:
    """Yield (state, records) after each step of a run, up to `train_config.iters`.

    state: from `training.start`, or the state of the run to continue. examples, valid: lists of
    `Example`, from `encode_rows`; of `valid`, an evaluation uses the first `val_batches *
    batch_size`. quiet: print nothing, and show no progress.
    records: first the record of the step (see `training.train_step`), with `peak_rss_mb`, the peak
    memory of the process. Every `steps_per_eval` steps and at the end, a second dict has `step`,
    `eval_loss`, `eval_exact_match` and the other scores of `evaluate` on `valid`.
    With early stopping or `keep_best`, `state.best` has the adapters with the lowest `eval_loss`.
    Evaluations before the given `state` count, too: for other `valid` rows, give
    `state._replace(best=Best())`.
    The first iteration raises InputError if rows are not encoded, if `train_config` masks prompts
    and the examples do not, or if a setting needs held-out rows and `valid` is empty. It warns of
    too few evaluations for early stopping or `keep_best`, and of steps that repeat rows.
    """
    several.check_any_order(state.adapters)
    check_moments(state, train_config)
    check_packing(state.adapters, train_config)
    check_held_out(valid, train_config)
    check_examples("examples", examples, model.config.vocab_size)
    check_examples("valid", valid, model.config.vocab_size)
    valid = scored_part(valid, train_config)
    every = [*examples, *valid]
    if train_config.mask_prompt and not all(is_masked(example) for example in every):
        raise InputError(
            "`mask_prompt` is true, but not all examples are masked: give `encode_rows` this config"
        )
    if not keeps_best(train_config):
        state = state._replace(best=Best())  # of an earlier run that kept it
    rows: Sequence = examples
    if train_config.packing:
        rows = pack_examples(examples, train_config.max_seq_length)
    patience = train_config.early_stopping_patience
    for text in doubts(train_config, len(rows)):
        warnings.warn(text, stacklevel=2)
    with progress_bar(train_config.iters, quiet, initial=state.step) as progress:
        while state.step < train_config.iters and not should_stop(state.best, patience):
            state, record = train_step(state, model, rows, train_config)
            records = [record | {"peak_rss_mb": peak_rss_mb()}]
            last = state.step == train_config.iters
            if valid and (last or state.step % train_config.steps_per_eval == 0):
                scores = evaluate(state.adapters, model, valid, quiet)
                records.append(evaluation_row(state.step, scores))
                state = state._replace(best=better(state, scores["loss"], train_config))
            if not quiet:
                show(progress, *records)
            yield state, records
    if not quiet:
        print_end(state, train_config)


def is_masked(example):
    """Return whether the loss counts only the answer, or the example has no prompt."""
    return example.answer is None or [*example.answer] == [*example.mask]


def doubts(train_config, sequences):
    """Yield what may surprise in a run over this number of rows, or of packed rows."""
    if train_config.iters == 1 and get_lr(0, train_config) == 0:
        yield "the only step has the learning rate 0: set `warmup_ratio` to 0"
    per_step = train_config.batch_size * train_config.grad_accumulation_steps
    if per_step > sequences:
        packed = ", or `max_seq_length`" if train_config.packing else ""
        yield (
            f"each step repeats sequences: it has {per_step}, and there are only {sequences}: "
            f"lower `batch_size` or `grad_accumulation_steps`{packed}"
        )
    patience = train_config.early_stopping_patience
    name = f"`early_stopping_patience` {patience}" if patience else "`keep_best`"
    n = math.ceil(train_config.iters / train_config.steps_per_eval)
    # the first one is the best so far, and the last one comes when the run ends anyway
    if (patience or train_config.keep_best) and n <= patience + 1:
        yield f"evaluations after the first step: {n}, too few for {name}: lower `steps_per_eval`"


def check_moments(state, train_config):
    """Raise InputError if the state of the optimizer is of another optimizer."""
    init, _ = OPTIMIZERS[train_config.optimizer]
    if state.moments.keys() != init(arrays(state.adapters)).keys():
        what = f"the state is of another optimizer than {train_config.optimizer}"
        raise InputError(f"{what}: continue with its own, or begin with `start`")


def check_packing(adapters, train_config):
    """Raise InputError if `train_config` packs rows and the adapter is a trained prompt."""
    if train_config.packing and virtual_tokens(adapters.get("model", {})) is not None:
        raise InputError("leave out `packing`: only the first example would see the trained prompt")


def check_held_out(valid, train_config):
    """Raise InputError if there are no held-out rows, and `train_config` needs their loss."""
    for name in ("early_stopping_patience", "keep_best"):
        if getattr(train_config, name) and not valid:
            raise InputError(f"`{name}` needs held-out rows, but there are none: give more rows")


def scored_part(valid, train_config):
    """Return the held-out examples that each evaluation uses."""
    return valid[: train_config.val_batches * train_config.batch_size]


def evaluation_row(step, scores):
    """Return the record of an evaluation in the history."""
    return {"step": step} | {f"eval_{name}": value for name, value in scores.items()}


def better(state, loss, train_config):
    """Return the best evaluation so far, given the held-out loss of `state`.

    It has adapters only if early stopping or `keep_best` needs them.
    """
    best = state.best
    if not keeps_best(train_config):
        return best
    if loss < best.loss:
        return Best(loss, state.step, state.adapters)
    return best._replace(worse=best.worse + 1)


def keeps_best(train_config):
    """Return whether a run returns the adapters with the lowest held-out loss."""
    return train_config.keep_best or train_config.early_stopping_patience > 0


def should_stop(best, patience):
    """Return whether the last `patience` evaluations did not improve the loss.

    A patience of 0 never stops a run.
    """
    return 0 < patience <= best.worse


def percent(share):
    """Return a share as text, rounded down, so that less than all is not 100.0 %."""
    return f"{math.floor(1000 * share) / 10:.1f} %"


def show(progress, step, *evaluations):
    """Show the record of a step, and those of evaluations after it."""
    for scores in evaluations:
        progress.write(
            f"step {step['step']}: train loss {step['loss']:.4f}, held-out loss "
            f"{scores['eval_loss']:.4f}, exact match {percent(scores['eval_exact_match'])}"
        )
    speed = step["tokens"] / max(step["seconds"], 1e-4)
    progress.set_postfix_str(f"loss {step['loss']:.3f}, {speed:.0f} tokens/s with prompts")
    progress.update()


def print_end(state, train_config):
    """Print whether early stopping ended the run, and which step was kept."""
    best = state.best
    patience = train_config.early_stopping_patience
    if should_stop(best, patience) and state.step < train_config.iters:
        print(
            f"early stopping at step {state.step} of {train_config.iters}: "
            f"the last {patience} evaluations did not lower the held-out loss"
        )
    if best.adapters is not None:
        print(
            f"kept: step {best.step}, the trained step with the lowest held-out loss, "
            f"{best.loss:.4f}"
        )

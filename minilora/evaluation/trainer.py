"""Training with evaluation, early stopping, a progress bar, optimized operations and all cores."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import kernels, layers, training
from ..batching import Example, check_examples
from ..config import InputError, ModelConfig, TrainConfig
from ..methods.registry import check_packing, operations
from ..optim import OPTIMIZERS
from ..tree import Tree, arrays, num_parameters
from .metrics import evaluate
from .progress import Progress

MAX_PARALLEL_PARAMETERS = 2**24  # with more, a gradient per core needs too much memory
INTERRUPTED = (  # for Python and notebooks; the command line writes a checkpoint instead
    "this exception has the `adapters`, the `history` and the `state` of that step; "
    "in a notebook: `import sys; adapters = sys.last_value.adapters`"
)

NO_BEST = {"best_loss": math.inf, "best_step": 0, "worse": 0}  # the state before an evaluation


class TrainResult(NamedTuple):
    """The trained adapters, and the history: one dict per step and per evaluation."""

    adapters: Tree
    history: list[Tree]


def train(
    adapters: Tree, base: Tree, examples: Sequence[Example], model_config: ModelConfig,
    train_config: TrainConfig, valid: Sequence[Example] = (), state: Tree | None = None,
    on_step: Callable[[list[Tree], Tree, Tree], Any] | None = None, ops: Any = None,
    quiet: bool = False,
) -> TrainResult:  # fmt: skip
    """Fit `adapters` to the examples; return TrainResult(adapters, history).

    adapters, base: the trees of `get_peft_model`; they do not change. model_config: as from `load`.
    examples, valid: lists of `Example`, from `encode_rows`. `valid` is evaluated at the end and
    every `train_config.steps_per_eval` steps; early stopping and `keep_best` need it.
    state: None, or the last state that `on_step` got in the run to continue.
    on_step: called after every step as on_step(metrics, adapters, state), where `metrics` is the
    list of the dicts that the step added to the history. Training ends if it returns true.
    ops: None for the optimized operations; `minilora.layers` for the reference.
    quiet: print nothing, and show no progress.

    The history has a dict per step (`step`, `loss` in nats per target token, `learning_rate`,
    `grad_norm`, `tokens` with prompts, `seconds`) and per evaluation (`step`, `eval_loss`,
    `eval_exact_match` and the other scores of `evaluate`). With early stopping or `keep_best`, the
    returned adapters are those with the lowest `eval_loss`. Raises InputError for rows that are not
    encoded, and for a loss or gradient that is not finite. A KeyboardInterrupt has the attributes
    `adapters`, `history` and `state`, which are those of the last complete step.
    """
    check_packing(adapters, train_config)
    check_held_out(valid, train_config)
    check_examples("examples", examples, model_config.vocab_size)
    check_examples("valid", valid, model_config.vocab_size)
    ops = operations(adapters, base, ops)
    reference = getattr(ops, "inner", ops) is layers
    one_shard = reference or num_parameters(adapters) > MAX_PARALLEL_PARAMETERS
    state, history = state or init_state(adapters, train_config), []
    patience = train_config.early_stopping_patience
    latest = adapters, state
    with Progress(train_config.iters, "step", state["step"], quiet) as progress:

        def after_step(step_metrics, adapters, state):
            nonlocal latest
            metrics, step = [step_metrics], step_metrics["step"]
            due = step % train_config.steps_per_eval == 0 or step == train_config.iters
            if valid and due:
                score = evaluate(adapters, base, valid, model_config, ops, quiet)
                metrics.append(evaluation(step, score))
                state.update(update_best(state, adapters, score["loss"], train_config))
            history.extend(metrics)
            latest = adapters, state
            show(progress, metrics, state, quiet)
            stop = on_step(metrics, adapters, state) if on_step else False
            return stop or should_stop(state, patience)

        try:
            if not should_stop(state, patience):
                training.train(
                    adapters, base, list(examples), model_config, train_config, ops, state,
                    after_step, parallel_map=map if one_shard else kernels.parallel_map,
                    num_shards=1 if one_shard else kernels.num_threads(),
                )  # fmt: skip
        except KeyboardInterrupt as error:
            interrupt: Any = error
            interrupt.adapters, interrupt.state = latest
            step = interrupt.state["step"]
            interrupt.history = [row for row in history if row["step"] <= step]
            error.add_note(f"interrupted after step {step}: {INTERRUPTED}")
            raise
    adapters, state = latest
    if not quiet:
        print_end(state, train_config)
    return TrainResult(state.get("best", adapters), history)


def check_held_out(valid, train_config):
    """Raise InputError if there are no held-out rows, and `train_config` needs their loss."""
    problem = "needs held-out rows, but there are none: give more rows, or leave it out"
    if train_config.early_stopping_patience and not valid:
        raise InputError(f"--early-stopping-patience {problem}")
    if train_config.keep_best and not valid:
        raise InputError(f"--keep-best {problem}")


def init_state(adapters, train_config):
    """Return the state before the first step: of the optimizer, and of the best evaluation."""
    start, _ = OPTIMIZERS[train_config.optimizer]
    return {**start(arrays(adapters)), **NO_BEST}


def evaluation(step, score):
    """Return the dict of an evaluation in the history."""
    return {"step": step} | {f"eval_{name}": value for name, value in score.items()}


def update_best(state, adapters, loss, train_config):
    """Return the changes of the state after an evaluation: the best loss and adapters so far."""
    if not (train_config.early_stopping_patience or train_config.keep_best):
        return {}
    if loss < state["best_loss"]:
        return {"best_loss": loss, "best_step": state["step"], "worse": 0, "best": adapters}
    return {"worse": state["worse"] + 1}


def should_stop(state, patience):
    """Return whether the last `patience` evaluations did not improve the loss; 0: never."""
    return 0 < patience <= state["worse"]


def kept_step(state):
    """Return the step whose adapters a run with this state returns."""
    return state["best_step"] if "best" in state else state["step"]


def print_end(state, train_config):
    """Print whether early stopping ended the run, and which step is kept if it is the best."""
    step, patience = state["step"], train_config.early_stopping_patience
    if should_stop(state, patience) and step < train_config.iters:
        reason = f"the last {patience} evaluations did not lower the held-out loss"
        print(f"early stopping at step {step} of {train_config.iters}: {reason}")
    if "best" in state:
        loss = f"{state['best_loss']:.4f}"
        print(
            f"kept: step {kept_step(state)}, the trained step with the lowest held-out loss, {loss}"
        )


def show(progress, metrics, state, quiet):
    """Show the dicts that a step added to the history."""
    now = metrics[0]
    if len(metrics) > 1 and not quiet:
        held_out, percent = metrics[1]["eval_loss"], 100 * metrics[1]["eval_exact_match"]
        scores = f"held-out loss {held_out:.4f}, exact match {percent:.1f} %"
        best = ", the best so far" if "best" in state and kept_step(state) == now["step"] else ""
        progress.write(f"step {now['step']}: train loss {now['loss']:.4f}, {scores}{best}")
    speed = now["tokens"] / max(now["seconds"], 1e-4)
    line = f"loss {now['loss']:.3f}, {speed:.0f} tokens/s with prompts"
    progress.set_postfix_str(line)
    progress.advance(1, f"step {now['step']} of {progress.total}: {line}")

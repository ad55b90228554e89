"""What training does after each step: evaluate, keep the best adapters, show the progress.

`training.train` describes what a callback gets, changes and returns.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..config import InputError
from ..optim import OPTIMIZERS
from ..tree import Tree, arrays
from .metrics import evaluate, progress_bar


@contextmanager
def of_run(
    adapters, base, valid, model_config, train_config, state, on_step, ops, quiet
) -> Iterator[list]:
    """Yield the callbacks of a run: evaluation, progress and `on_step`; see `minilora.train`.

    The evaluation scores the held-out rows `valid` every `steps_per_eval` steps. It adds a dict to
    the history, and the best adapters so far to the state, if `train_config` asks for them. It ends
    the run if `early_stopping_patience` evaluations were not better.
    """
    last: Tree = {"adapters": adapters, "state": state, "history": []}  # of the last complete step

    def remember(records, adapters, state):
        last["history"] += records
        last.update(adapters=adapters, state=state)

    def evaluate_held_out(records, adapters, state):
        step = state["step"]
        if step % train_config.steps_per_eval and step != train_config.iters:
            return False
        scores = evaluate(adapters, base, valid, model_config, ops, quiet)
        records.append(evaluation_row(step, scores))
        state.update(update_best(state, adapters, scores["loss"], train_config))
        return should_stop(state, train_config.early_stopping_patience)

    # first the evaluation, because the others see its scores
    each_step: list = [evaluate_held_out, remember] if valid else [remember]
    with progress_bar(train_config.iters, quiet, initial=state["step"]) as progress:
        if not quiet:
            each_step.append(partial(show, progress))
        if on_step:
            each_step.append(on_step)
        try:
            yield each_step
        except KeyboardInterrupt as error:
            vars(error).update(last)
            # for Python and notebooks; the command line writes a checkpoint instead
            error.add_note(
                f"interrupted after step {last['state']['step']}: this exception has the "
                "`adapters`, the `history` and the `state` of that step; "
                "in a notebook: `import sys; adapters = sys.last_value.adapters`"
            )
            raise
    if not quiet:
        print_end(last["state"], train_config)


def show(progress, records, adapters, state):
    """Show the dicts that a step adds to the history: a callback, if the bar is given first."""
    step, *evaluations = records
    for scores in evaluations:
        progress.write(
            f"step {step['step']}: train loss {step['loss']:.4f}, held-out loss "
            f"{scores['eval_loss']:.4f}, exact match {100 * scores['eval_exact_match']:.1f} %"
        )
    speed = step["tokens"] / max(step["seconds"], 1e-4)
    progress.set_postfix_str(f"loss {step['loss']:.3f}, {speed:.0f} tokens/s with prompts")
    progress.update()


def check_held_out(valid, train_config) -> None:
    """Raise InputError if there are no held-out rows, and `train_config` needs their loss."""
    for name in ("early_stopping_patience", "keep_best"):
        if getattr(train_config, name) and not valid:
            raise InputError(f"`{name}` needs held-out rows, but there are none: give more rows")


def init_state(adapters, train_config) -> Tree:
    """Return the state before the first step: of the optimizer, and of the best evaluation."""
    start, _ = OPTIMIZERS[train_config.optimizer]
    return start(arrays(adapters)) | {"best_loss": math.inf, "best_step": 0, "worse": 0}


def evaluation_row(step, scores):
    """Return the dict of an evaluation in the history."""
    return {"step": step} | {f"eval_{name}": value for name, value in scores.items()}


def update_best(state, adapters, loss, train_config):
    """Return the changes of the state after an evaluation: the best loss and adapters so far."""
    if not (train_config.early_stopping_patience or train_config.keep_best):
        return {}
    if loss < state["best_loss"]:
        return {"best_loss": loss, "best_step": state["step"], "worse": 0, "best": adapters}
    return {"worse": state["worse"] + 1}


def should_stop(state, patience) -> bool:
    """Return whether the last `patience` evaluations did not improve the loss; 0: never."""
    return 0 < patience <= state["worse"]


def kept_step(state):
    """Return the step whose adapters a run with this state returns."""
    return state["best_step"] if "best" in state else state["step"]


def print_end(state, train_config):
    """Print whether early stopping ended the run, and which step is kept if it is the best."""
    patience = train_config.early_stopping_patience
    if should_stop(state, patience) and state["step"] < train_config.iters:
        print(
            f"early stopping at step {state['step']} of {train_config.iters}: "
            f"the last {patience} evaluations did not lower the held-out loss"
        )
    if "best" in state:
        print(
            f"kept: step {kept_step(state)}, the trained step with the lowest held-out loss, "
            f"{state['best_loss']:.4f}"
        )

"""Training with evaluation, early stopping, a progress bar, optimized operations and all cores."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from .. import kernels, layers, training
from ..batching import Example, check_examples
from ..config import ModelConfig, TrainConfig
from ..methods.operations import check_packing, operations
from ..optim import adamw_init
from ..tree import Tree, num_parameters
from .metrics import evaluate

MAX_PARALLEL_PARAMETERS = 2**24  # with more, a gradient per core needs too much memory
SECONDS_BETWEEN_LINES = 10  # without a terminal for a progress bar


class TrainResult(NamedTuple):
    """The trained adapters, and the history: one dict per step and per evaluation."""

    adapters: Tree
    history: list[Tree]


def train(
    adapters: Tree, base: Tree, examples: Sequence[Example], model_config: ModelConfig,
    train_config: TrainConfig, valid: Sequence[Example] = (), state: Tree | None = None,
    on_step: Callable[[list[Tree], Tree, Tree], Any] | None = None, ops: Any = None,
) -> TrainResult:  # fmt: skip
    """Fit `adapters` to the examples; return TrainResult(adapters, history).

    adapters, base: the trees of `get_peft_model`; they do not change. model_config: as from `load`.
    examples, valid: lists of `Example`, from `encode_rows`. `valid` is evaluated at the end and
    every `train_config.steps_per_eval` steps; early stopping needs it.
    state: None, or the last state that `on_step` got in the run to continue.
    on_step: called after every step as on_step(metrics, adapters, state), where `metrics` is the
    list of the dicts that the step added to the history.
    ops: None for the optimized operations; `minilora.layers` for the reference.

    The history has a dict per step (`step`, `loss` in nats per target token, `learning_rate`,
    `grad_norm`, `tokens` with prompts, `seconds`) and per evaluation (`step`, `eval_loss`,
    `eval_exact_match`). With early stopping, the returned adapters are the best. Raises InputError
    for rows that are not encoded, and for a loss or gradient that is not finite.
    """
    check_packing(adapters, train_config)
    check_examples("examples", examples, model_config.vocab_size)
    check_examples("valid", valid, model_config.vocab_size)
    ops = operations(adapters, base, ops)
    reference = getattr(ops, "ops", ops) is layers
    one_shard = reference or num_parameters(adapters) > MAX_PARALLEL_PARAMETERS
    state, history = state or init_state(adapters), []
    with Progress(state["step"], train_config.iters) as progress:

        def after_step(step_metrics, adapters, new_state):
            nonlocal state
            state, metrics, step = new_state, [step_metrics], step_metrics["step"]
            due = step % train_config.steps_per_eval == 0 or step == train_config.iters
            if valid and due:
                score = evaluate(adapters, base, valid, model_config, ops)
                loss, exact_match = score["loss"], score["exact_match"]
                metrics.append({"step": step, "eval_loss": loss, "eval_exact_match": exact_match})
                state.update(early_stopping(state, adapters, loss, train_config))
            history.extend(metrics)
            progress.step(metrics)
            if on_step:
                on_step(metrics, adapters, state)
            return should_stop(state, train_config)

        if not should_stop(state, train_config):
            adapters, _ = training.train(
                adapters, base, list(examples), model_config, train_config, ops, state, after_step,
                parallel_map=map if one_shard else kernels.parallel_map,
                num_shards=1 if one_shard else kernels.num_threads(),
            )  # fmt: skip
    return TrainResult(state.get("best", adapters), history)


def init_state(adapters):
    """Return the state before the first step, of the optimizer and of early stopping."""
    return {**adamw_init(adapters), "best_loss": math.inf, "worse": 0}


def early_stopping(state, adapters, loss, train_config):
    """Return the changes of the state after an evaluation: the best loss and adapters so far."""
    if not train_config.early_stopping_patience:
        return {}
    if loss < state["best_loss"]:
        return {"best_loss": loss, "worse": 0, "best": adapters}
    return {"worse": state["worse"] + 1}


def should_stop(state, train_config):
    """Return whether the last `early_stopping_patience` evaluations did not improve the loss."""
    return 0 < train_config.early_stopping_patience <= state["worse"]


class Progress(tqdm):
    """A progress bar in a terminal or a notebook; otherwise a line every few seconds."""

    def __init__(self, first, total):
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        super().__init__(total=total, initial=first, unit="step", disable=not watched)
        self.total, self.last_line = total, time.perf_counter()

    def step(self, metrics):
        """Show the dicts that a step added to the history."""
        now = metrics[0]
        if len(metrics) > 1:
            held_out, percent = metrics[1]["eval_loss"], 100 * metrics[1]["eval_exact_match"]
            scores = f"held-out loss {held_out:.4f}, exact match {percent:.1f} %"
            self.write(f"step {now['step']}: train loss {now['loss']:.4f}, {scores}")
        speed = now["tokens"] / max(now["seconds"], 1e-4)
        line = f"loss {now['loss']:.3f}, {speed:.0f} tokens/s with prompts"
        self.set_postfix_str(line)
        self.update()
        if self.disable and time.perf_counter() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            print(f"step {now['step']} of {self.total}: {line}", file=sys.stderr, flush=True)

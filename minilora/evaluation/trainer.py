"""`train` with what a user expects of it: the fastest operations, all cores, scores, progress."""

import sys
import time
from functools import partial

from tqdm.auto import tqdm

from .. import kernels, layers, training
from ..methods.operations import check_packing, operations
from ..tree import num_parameters
from .metrics import evaluate

FEW = 2**24  # trained parameters: more of them need too much memory for a gradient per core
SECONDS_BETWEEN_LINES = 10  # where there is no terminal for a progress bar


def train(
    adapters, base, examples, model_config, config, valid=(), state=None, on_step=None, ops=None
):
    """Fit `adapters` to the examples; return (adapters, history). See `training.train`.

    examples, valid: lists of `batching.Example`; `valid` is scored every `steps_per_eval` steps.
    ops: None for the fastest, `layers` for the reference, which runs in one thread for a debugger.
    """
    check_packing(adapters, config)
    ops = operations(adapters, base, ops)
    one_share = getattr(ops, "ops", ops) is layers or num_parameters(adapters) > FEW
    score = partial(evaluate, base=base, examples=valid, config=model_config, ops=ops)
    with Progress(state["step"] if state else 0, config.iters) as progress:

        def report(rows, adapters, state):
            progress.step(rows)
            if on_step:
                on_step(rows, adapters, state)

        return training.train(
            adapters, base, examples, model_config, config, ops,
            evaluate=score if valid else None, state=state, on_step=report,
            parallel_map=map if one_share else kernels.parallel_map,
            shares=1 if one_share else kernels.num_threads(),
        )  # fmt: skip


class Progress(tqdm):
    """A progress bar in a terminal or a notebook; elsewhere a line every few seconds."""

    def __init__(self, first, total):
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        super().__init__(total=total, initial=first, unit="step", disable=not watched)
        self.total, self.last_line = total, time.perf_counter()

    def step(self, rows):
        """Show the rows of a step's history."""
        row = rows[0]
        if len(rows) > 1:
            self.write(
                f"step {row['step']}: train loss {row['loss']:.4f}, held-out loss "
                f"{rows[1]['eval_loss']:.4f}, exact match {100 * rows[1]['eval_exact_match']:.1f} %"
            )
        line = f"loss {row['loss']:.3f}, {row['tokens'] / max(row['seconds'], 1e-4):.0f} tokens/s"
        self.set_postfix_str(line)
        self.update()
        if self.disable and time.perf_counter() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            print(f"step {row['step']} of {self.total}: {line}", file=sys.stderr, flush=True)

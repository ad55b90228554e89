"""`train` with what a user expects of it: the fastest operations, all cores, held-out scores."""

from functools import partial

from .. import kernels, layers, training
from ..methods.operations import operations
from ..tree import num_parameters
from .metrics import evaluate

FEW = 2**24  # trained parameters: more of them need too much memory for a gradient per core


def train(
    adapters, base, examples, model_config, config, valid=(), state=None, on_step=None, ops=None
):
    """Fit `adapters` to the examples; return (adapters, history). See `training.train`.

    examples, valid: lists of `batching.Example`; valid ones are scored every `steps_per_eval` steps.
    ops: `layers` for the reference implementation, which runs in one thread so that a debugger
    sees everything; None for the fastest one.
    """
    ops = operations(adapters, base, ops)
    one_share = getattr(ops, "ops", ops) is layers or num_parameters(adapters) > FEW
    score = partial(evaluate, base=base, examples=valid, config=model_config, ops=ops)
    return training.train(
        adapters, base, examples, model_config, config, ops,
        evaluate=score if valid else None, state=state, on_step=on_step,
        parallel_map=kernels.parallel_map, shares=1 if one_share else kernels.num_threads(),
    )  # fmt: skip

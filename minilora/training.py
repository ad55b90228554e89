"""Fine-tuning: the training loop.

    for state, record in steps(start(adapters, train_config), model, examples, train_config):
        print(record["loss"])

This file adds to part 6 of `lessons/00_qlora_in_one_file.py`: accumulation, and runs that can be
resumed. `evaluation.loop` adds evaluations of held-out rows.

Random choices depend only on the seed, the step and, for dropout, the position of the row in the
batch. So a `State` is all that is needed to continue a run, and a resumed run gives the same result
as an uninterrupted one.
"""

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .batching import Example, Row, batch_at, collate
from .config import InputError, TrainConfig
from .layers import RowRng, value_and_grad
from .model import Model
from .model import loss as model_loss
from .optim import OPTIMIZERS, clip, get_lr
from .rounding import nearest, round_to
from .tree import Tree, arrays, layer_of, named_leaves, num_parameters, overlay, tree_map

MAX_PARALLEL_PARAMETERS = 2**24  # with more, a batch is not split: each core would hold a gradient


class Best(NamedTuple):
    """The best evaluation of held-out rows so far; see `evaluation.loop`."""

    loss: float = math.inf
    step: int = 0
    adapters: Tree | None = None  # None: not kept
    worse: int = 0  # evaluations since the best one


class State(NamedTuple):
    """The state of a run: all that is needed to continue it."""

    adapters: Tree
    moments: Tree  # the state of the optimizer: its averages, and `step`, the number of steps taken
    best: Best = Best()

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return int(self.moments["step"])

    @property
    def kept(self) -> Tree:
        """Adapters that the run returns: the best ones if they are kept, else the last ones."""
        return self.adapters if self.best.adapters is None else self.best.adapters

    @property
    def kept_step(self) -> int:
        """Step of the adapters in `kept`."""
        return self.step if self.best.adapters is None else self.best.step


def start(adapters: Tree, train_config: TrainConfig) -> State:
    """Return the state before the first step; the adapters are rounded to `adapter_dtype`.

    Raises InputError if there are no trained parameters. Warns if rounding undoes most steps of a
    leaf.
    """
    if not arrays(adapters):
        raise InputError("the adapter has no parameters to train: create it with get_peft_model")
    dtype = train_config.adapter_dtype
    trained = round_to(arrays(adapters), dtype)
    for path, w in named_leaves(trained):
        size = np.abs(w)
        # a step of Adam is about as large as the rate
        if np.mean(nearest(size + train_config.learning_rate, dtype) == size) > 0.5:
            what = f"rounding to {dtype} undoes most steps of {path}: raise `learning_rate`"
            more = "" if dtype == "float32" else ", or use float32 adapters"
            warnings.warn(what + more, stacklevel=2)
            break
    init, _ = OPTIMIZERS[train_config.optimizer]
    return State(overlay(adapters, trained), init(trained))


def steps(
    state: State, model: Model, examples: Sequence[Example | Row], train_config: TrainConfig
) -> Iterator[tuple[State, Tree]]:
    """Yield (state, record) after each step, up to `train_config.iters`; see `train_step`.

    state: from `start`, or the state of the run to continue.
    """
    while state.step < train_config.iters:
        state, record = train_step(state, model, examples, train_config)
        yield state, record


def train_step(
    state: State, model: Model, examples: Sequence[Example | Row], train_config: TrainConfig
) -> tuple[State, Tree]:
    """Take one step; return the new state and its record.

    A row of a batch is an example, or a list of examples that `data.pack_examples` packed.
    record: a dict with `step`, `loss` in nats per target token, `learning_rate`, `grad_norm`,
    `tokens` (all, not only the targets) and `seconds`. Raises InputError if there is nothing to
    train on, or if the loss or the gradient is not finite.
    """
    if not examples:
        raise InputError("there are no examples to train on")
    began = time.perf_counter()
    step = state.step
    loss, grads, batch = gradient_at(state.adapters, model, examples, step, train_config)
    grads, norm = clip(grads, train_config.max_grad_norm)
    if not math.isfinite(loss + norm):
        seen = f"the loss is {loss:g} and the gradient norm {norm:g} at step {step + 1}"
        raise InputError(f"{seen}: lower `learning_rate`")
    lr = get_lr(step, train_config)
    state = update(state, grads, lr, train_config)
    record = {
        "step": step + 1,
        "loss": loss,
        "learning_rate": lr,
        "grad_norm": norm,
        "tokens": sum(len(example.tokens) - 1 for row in batch for example in row),
        "seconds": round(time.perf_counter() - began, 4),
    }
    return state, record


def gradient_at(
    adapters: Tree,
    model: Model,
    examples: Sequence[Example | Row],
    step: int,
    train_config: TrainConfig,
) -> tuple[float, Tree, list[Row]]:
    """Compute (mean loss, its gradient, the rows) of a step.

    The rows are cut into micro-batches of `batch_size` rows, one after another, and each of them
    into shards, which `model.ops.parallel_map` computes in parallel.
    """
    size = train_config.batch_size
    n = size * train_config.grad_accumulation_steps
    drawn = batch_at(examples, step, n, train_config.seed)
    batch = [row if isinstance(row, list) else [row] for row in drawn]
    total = sum(map(num_targets, batch))
    if not total:
        raise InputError(f"the batch of step {step + 1} has no target token: leave such rows out")

    def shard_gradient(positions: Sequence[int]) -> tuple[int, float, Tree]:
        shard = [batch[i] for i in positions]
        rng = RowRng([[train_config.seed, step, i] for i in positions])
        checkpointing = train_config.gradient_checkpointing
        # per thread, so here; `train_step` raises an error if the result is not finite
        with np.errstate(over="ignore", invalid="ignore"):
            loss, grads = value_and_grad(model_loss)(
                adapters, model, collate(shard), rng, checkpointing
            )
        return sum(map(num_targets, shard)), float(loss), grads

    small = num_parameters(adapters) <= MAX_PARALLEL_PARAMETERS
    num_shards = model.ops.THREADS if small else 1
    loss = 0.0
    grads: Tree = {}
    for first in range(0, n, size):
        shards = split_batch(range(first, first + size), num_shards)
        # without a target, the mean loss would be 0/0
        shards = [shard for shard in shards if any(num_targets(batch[i]) for i in shard)]
        parts = list(model.ops.parallel_map(shard_gradient, shards))
        loss, grads = accumulate(parts, total, loss, grads)
    return loss, grads, batch


def split_batch(rows: Sequence[Any], num_shards: int) -> list[Sequence[Any]]:
    """Split the rows of a batch into at most `num_shards` parts, none of which is empty."""
    n = min(num_shards, len(rows))
    return [rows[i::n] for i in range(n)]


def num_targets(examples: Iterable[Example]) -> int:
    """Count the target tokens of the examples."""
    return int(sum(sum(example.mask[1:]) for example in examples))  # a mask may be an array


def accumulate(
    shards: list[tuple[int, float, Tree]], total: int, loss: float, grads: Tree
) -> tuple[float, Tree]:
    """Add the losses and gradients of shards, weighted by their targets, to the sums so far.

    shards: (number of target tokens, mean loss, gradient) of each. total: the number of target
    tokens of the whole batch. loss, grads: the sums of the shards before; 0.0 and {} at first.
    """
    for n, value, grad in shards:
        # L = Σ (n/total)·L of the shard: the mean over all targets, not a mean of means
        weight = n / total
        loss += weight * value
        grad = tree_map(partial(np.multiply, weight), grad)
        grads = tree_map(np.add, grads, grad) if grads else grad
    return loss, grads


def update(state: State, grads: Tree, lr: float, train_config: TrainConfig) -> State:
    """Take a step of the optimizer; the new adapters are rounded to `adapter_dtype`."""
    trained = arrays(state.adapters)
    lrs = learning_rates(lr, train_config, trained)
    _, optimizer_step = OPTIMIZERS[train_config.optimizer]
    trained, moments = optimizer_step(trained, grads, state.moments, lrs, train_config)
    adapters = overlay(state.adapters, round_to(trained, train_config.adapter_dtype))
    return state._replace(adapters=adapters, moments=moments)


def learning_rates(lr: float, train_config: TrainConfig, adapters: Tree) -> dict[str, float]:
    """Return {path: learning rate} for the leaves of `adapters`; lr: the rate of the step.

    The rate of lora_B is multiplied by `loraplus_lr_ratio` (LoRA+, Hayou et al. 2024). If the tree
    has low-rank factors, the rate of all other leaves but DoRA's magnitudes is multiplied by
    `also_train_lr_scale`. The rate of a leaf of layer i is multiplied by `layer_lr_decay` to the
    power top − i, where top is the highest trained layer (Howard and Ruder 2018, Sec. 3.2). The
    embedding has i = −1; the last norm and the heads have i = top.
    """
    paths = [path for path, _ in named_leaves(adapters)]
    has_factors = any(path.endswith("lora_A") for path in paths)
    other_lr_scale = train_config.also_train_lr_scale if has_factors else 1.0
    top = max((layer_of(path) for path in paths), default=0)
    rates = {}
    for path in paths:
        name = path.rpartition(".")[2]
        scale = 1.0 if name.startswith("lora_") else other_lr_scale
        ratio = train_config.loraplus_lr_ratio if name == "lora_B" else 1.0
        is_above = path.startswith("model.norm.") or not path.startswith("model.")
        layer = top if is_above else layer_of(path)
        rates[path] = lr * scale * ratio * train_config.layer_lr_decay ** (top - layer)
    return rates

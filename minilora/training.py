"""Fine-tuning: the training loop.

This file adds to part 6 of `lessons/00_qlora_in_one_file.py`: accumulation, callbacks, and runs
that can be resumed.

Random choices depend only on the seed, the step and, for dropout, the position of the row in the
batch. So the state of a run is the trained tree and the state of the optimizer (its averages and
the step count), and a resumed run gives the same result as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import model
from .batching import Example, Row, batch_at, collate
from .config import InputError, ModelConfig, TrainConfig
from .layers import Function, Ops, RowRng, value_and_grad
from .optim import OPTIMIZERS, clip, get_lr, round_to
from .tree import Tree, arrays, layer_of, named_leaves, overlay, tree_map

Callback = Callable[[list[Tree], Tree, Tree], Any]


class TrainResult(NamedTuple):
    """The trained adapters, and the history: one dict per step and per evaluation."""

    adapters: Tree
    history: list[Tree]


def train(
    adapters: Tree, base: Tree, examples: Sequence[Example | Row], model_config: ModelConfig,
    train_config: TrainConfig, ops: Ops, state: Tree | None = None,
    callbacks: Sequence[Callback] = (), parallel_map: Function = map, num_shards: int = 1,
) -> TrainResult:  # fmt: skip
    """Fit `adapters` to the examples; return TrainResult(adapters, history).

    A row of a batch is an example, or a list of examples that `data.pack_examples` packed.
    The history has a dict per step: `step`, `loss`, `learning_rate`, `grad_norm`, `tokens` (all,
    not only the targets) and `seconds`.
    state: the state of the run to continue. num_shards: the number of parts of a micro-batch
    (`batch_size` rows) that `parallel_map` may compute at the same time.
    callbacks: each is called after every step as callback(records, adapters, state), where
    `records` is the list of the dicts that the step adds to the history. A callback may add to
    `records` and to `state`; training ends if it returns true. If the state has `best`, these
    adapters are returned.
    Raises InputError if there is nothing to train on, or if the loss or the gradient is not finite;
    the last call of the callbacks had the last good state.
    """
    if not examples:
        raise InputError("there are no examples to train on")
    rows = [example if isinstance(example, list) else [example] for example in examples]
    trained = round_to(arrays(adapters), train_config.adapter_dtype)
    adapters = overlay(adapters, trained)
    init, _ = OPTIMIZERS[train_config.optimizer]
    state = state or init(trained)
    history: list[Tree] = []
    stop = False
    while not stop and state["step"] < train_config.iters:
        began = time.perf_counter()
        step = state["step"]
        loss, grads, batch = gradient_at(
            adapters, base, rows, step, model_config, train_config, ops, parallel_map, num_shards
        )
        grads, norm = clip(grads, train_config.max_grad_norm)
        if not math.isfinite(loss + norm):
            seen = f"the loss is {loss:g} and the gradient norm {norm:g} at step {step + 1}"
            advice = "lower `learning_rate`, or use float32 adapters; the last checkpoint is kept"
            raise InputError(f"{seen}: {advice}")
        lr = get_lr(step, train_config)
        adapters, state = update(adapters, grads, state, lr, train_config)
        tokens = sum(len(example.tokens) - 1 for row in batch for example in row)
        metrics = {"step": step + 1, "loss": loss, "learning_rate": lr, "grad_norm": norm}
        records = [metrics | {"tokens": tokens, "seconds": round(time.perf_counter() - began, 4)}]
        for callback in callbacks:
            stop = bool(callback(records, adapters, state)) or stop
        history += records
    return TrainResult(state.get("best", adapters), history)


def gradient_at(
    adapters: Tree, base: Tree, rows: list[Row], step: int, model_config: ModelConfig,
    train_config: TrainConfig, ops: Ops, parallel_map: Function = map, num_shards: int = 1,
) -> tuple[float, Tree, list[Row]]:  # fmt: skip
    """Compute (mean loss, its gradient, the rows) of a step.

    The rows are cut into micro-batches of `batch_size` rows, one after another, and each of them
    into shards, which are computed at the same time.
    """
    size = train_config.batch_size
    n = size * train_config.grad_accumulation_steps
    batch = batch_at(rows, step, n, train_config.seed)
    total = sum(map(num_targets, batch))
    if not total:
        raise InputError(f"the batch of step {step + 1} has no target token: leave such rows out")

    def shard_gradient(positions: Sequence[int]) -> tuple[int, float, Tree]:
        shard = [batch[i] for i in positions]
        rng = RowRng([[train_config.seed, step, i] for i in positions])
        with np.errstate(over="ignore", invalid="ignore"):  # `train` raises if it is not finite
            loss, grads = value_and_grad(model.loss)(
                adapters, base, collate(shard), model_config, ops, rng,
                train_config.gradient_checkpointing,
            )  # fmt: skip
        return sum(map(num_targets, shard)), float(loss), grads

    loss = 0.0
    grads: Tree = {}
    for start in range(0, n, size):
        shards = split_batch(range(start, start + size), num_shards)
        # without a target, the mean loss would be 0/0
        shards = [shard for shard in shards if any(num_targets(batch[i]) for i in shard)]
        parts = list(parallel_map(shard_gradient, shards))
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


def update(
    adapters: Tree, grads: Tree, state: Tree, lr: float, train_config: TrainConfig
) -> tuple[Tree, Tree]:
    """Take a step of the optimizer; return (adapters, state), rounded to `adapter_dtype`."""
    trained = arrays(adapters)
    lrs = learning_rates(lr, train_config, trained)
    _, optimizer_step = OPTIMIZERS[train_config.optimizer]
    trained, moments = optimizer_step(trained, grads, state, lrs, train_config)
    adapters = overlay(adapters, round_to(trained, train_config.adapter_dtype))
    return adapters, {**state, **moments}  # callbacks may have added `best` and others


def learning_rates(lr: float, train_config: TrainConfig, adapters: Tree) -> dict[str, float]:
    """Return {path: learning rate} for the leaves of `adapters`; lr: the rate of the step.

    The rate of lora_B is multiplied by `loraplus_lr_ratio` (LoRA+, Hayou et al. 2024). If the tree
    has low-rank factors, the rate of all other leaves is multiplied by `also_train_lr_scale`. The
    rate of a leaf of layer i is multiplied by `layer_lr_decay` to the power top − i, where top is
    the highest trained layer (Howard and Ruder 2018, Sec. 3.2). The embedding has i = −1; the last
    norm and the head have i = top.
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
        layer = top if path.startswith(("model.norm.", "lm_head.")) else layer_of(path)
        rates[path] = lr * scale * ratio * train_config.layer_lr_decay ** (top - layer)
    return rates

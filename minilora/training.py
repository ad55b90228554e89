"""Fine-tuning: one loop, to be read from top to bottom.

Part 6 of `lessons/00_qlora_in_one_file.py`, made general: accumulation, callbacks, and runs that
can be resumed.

Every random choice is drawn from (seed, step), a dropout mask also from its row's position. So the
state of a run is its trained tree, Adam's two moments and a step count, and an interrupted run
continues as if it had not been interrupted.
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from . import model
from .batching import Example, batch_at, collate, pack
from .config import ModelConfig, TrainConfig, require
from .layers import Function, RowRng
from .ops import Ops
from .optim import adamw, adamw_init, clip, learning_rate, round_to
from .tree import Tree, layer_of, named_leaves, tree_map


def train(
    adapters: Tree, base: Tree, examples: list[Example], model_config: ModelConfig,
    train_config: TrainConfig, ops: Ops, state: Tree | None = None,
    on_step: Callable[[Tree, Tree, Tree], Any] | None = None,
    parallel_map: Function = map, shares: int = 1,
) -> tuple[Tree, list[Tree]]:  # fmt: skip
    """Fit `adapters` to the examples; return (adapters, history), a dict per step.

    The dict of a step has `step`, `loss`, `learning_rate`, `grad_norm`, `tokens` and `seconds`.
    `state` continues an earlier run. `on_step(row, adapters, state)` is called after every step,
    for evaluation, logging and checkpoints; if it returns true, training ends. The rows of a batch
    are split into `shares`, which `parallel_map` may compute at the same time. Raises InputError if
    the loss or the gradient is not finite; `on_step` has then seen the last good state.
    """
    bins = [[example] for example in examples]
    if train_config.packing:
        bins = pack(examples, train_config.max_seq_length)
    adapters = round_to(adapters, train_config.adapter_dtype)
    state = state or adamw_init(adapters)
    history: list[Tree] = []
    while state["step"] < train_config.iters:
        began, step = time.perf_counter(), state["step"]
        loss, grads, tokens = gradient_at(
            adapters, base, bins, step, model_config, train_config, ops, parallel_map, shares
        )
        grads, norm = clip(grads, train_config.max_grad_norm)
        way = "lower --learning-rate, or hold the adapters in float32; the last checkpoint is kept"
        seen = f"the loss is {loss:g} and its gradient {norm:g} at step {step + 1}"
        require(math.isfinite(loss + norm), f"{seen}: {way}")
        rate = learning_rate(step, train_config)
        adapters, state = update(adapters, grads, state, rate, train_config)
        row = {"step": step + 1, "loss": loss, "learning_rate": rate, "grad_norm": norm}
        row |= {"tokens": tokens, "seconds": round(time.perf_counter() - began, 4)}
        history.append(row)
        if on_step and on_step(row, adapters, state):
            break
    return adapters, history


def gradient_at(
    adapters: Tree, base: Tree, bins: list[list[Example]], step: int, model_config: ModelConfig,
    train_config: TrainConfig, ops: Ops, parallel_map: Function = map, shares: int = 1,
) -> tuple[float, Tree, int]:  # fmt: skip
    """Compute (mean loss, its gradient, target tokens) of a step, over all its micro-batches.

    The micro-batches come one after the other; the shares of each may be computed in parallel.
    """
    n, size = train_config.grad_accumulation_steps, train_config.batch_size
    batches = []
    for i in range(n):
        batch = batch_at(bins, step * n + i, size, train_config.seed)
        batches.append(split_batch(list(enumerate(batch, start=i * size)), shares))
    total = sum(num_targets(row) for batch in batches for share in batch for _, row in share)

    def part(share: list[tuple[int, list[Example]]]) -> tuple[int, float, Tree] | None:
        positions, rows = zip(*share)
        targets = sum(map(num_targets, rows))
        if not targets:
            return None
        rng = RowRng([[train_config.seed, step, position] for position in positions])
        with np.errstate(over="ignore", invalid="ignore"):  # `train` raises if it is not finite
            loss, grads = ops.value_and_grad(model.loss)(
                adapters, base, collate(rows), model_config, ops, rng=rng,
                checkpointing=train_config.gradient_checkpointing,
            )  # fmt: skip
        return targets, float(loss), grads

    results = (result for batch in batches for result in parallel_map(part, batch))
    return *accumulate(filter(None, results), total), total


def split_batch(rows: list[Any], shares: int) -> list[list[Any]]:
    """Split the rows of a batch into as many shares, or one per row if there are fewer rows."""
    n = min(shares, len(rows))
    return [rows[i::n] for i in range(n)]


def num_targets(examples: Iterable[Example]) -> int:
    """Count the tokens of the examples that the model is to learn to say."""
    return sum(sum(example.mask[1:]) for example in examples)


def accumulate(parts: Iterable[tuple[int, float, Tree]], total: int) -> tuple[float, Tree]:
    """Return (mean loss, its gradient) of a large batch from those of its parts.

    parts: (target tokens, mean loss over them, its gradient), one at a time; total: the sum of the
    target tokens.
    """
    loss, grads = 0.0, dict[str, Any]()
    for n, value, grad in parts:
        # L = Σ (nᵢ/n)·Lᵢ: the mean over all target tokens, not a mean of means
        share = n / total
        loss += share * value
        grad = tree_map(partial(np.multiply, share), grad)
        grads = tree_map(np.add, grads, grad) if grads else grad
    return loss, grads


def update(
    adapters: Tree, grads: Tree, state: Tree, rate: float, train_config: TrainConfig
) -> tuple[Tree, Tree]:
    """Return (adapters, state) after a step of the optimizer, rounded to `adapter_dtype`."""
    rate_of = rates(rate, train_config, adapters)
    adapters, moments = adamw(adapters, grads, state, rate_of, train_config)
    return round_to(adapters, train_config.adapter_dtype), {**state, **moments}


def rates(rate: float, train_config: TrainConfig, adapters: Tree) -> Callable[[str], float]:
    """Return the learning rate of each leaf, as a function of its path.

    lora_B learns at `loraplus_lr_ratio` times the rate (LoRA+, Hayou et al. 2024), leaves next to
    low-rank factors at `also_train_lr_scale` times it, and each layer at `layer_lr_decay` times the
    rate of the layer above (Howard and Ruder 2018, Sec. 3.2), the embedding at the lowest.
    """
    paths = [path for path, _ in named_leaves(adapters)]
    has_factors = any(path.endswith("lora_A") for path in paths)
    other_lr_scale = train_config.also_train_lr_scale if has_factors else 1.0
    depth = 1 + max((layer_of(path) for path in paths), default=0)

    def rate_of(path: str) -> float:
        name = path.rpartition(".")[2]
        scale = 1.0 if name.startswith("lora_") else other_lr_scale
        ratio = train_config.loraplus_lr_ratio if name == "lora_B" else 1.0
        top = depth - 1 if path.startswith(("model.norm.", "lm_head.")) else layer_of(path)
        return rate * scale * ratio * train_config.layer_lr_decay ** (depth - 1 - top)

    return rate_of

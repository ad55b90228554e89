"""Fine-tuning: one loop, to be read from top to bottom.

Part 6 of `lessons/00_qlora_in_one_file.py`, made general: accumulation, evaluation, early stopping,
and runs that can be resumed.

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
    config: TrainConfig, ops: Ops, evaluate: Callable[[Tree], Tree] | None = None,
    state: Tree | None = None, on_step: Callable[[list[Tree], Tree, Tree], None] | None = None,
    parallel_map: Function = map, shares: int = 1,
) -> tuple[Tree, list[Tree]]:  # fmt: skip
    """Fit `adapters` to the examples; return (adapters, history).

    `history` has a dict per step (`step`, `loss`, `learning_rate`, `grad_norm`, `tokens`,
    `seconds`) and one per evaluation (`step`, `eval_loss`, `eval_exact_match`). `evaluate`, of the
    adapters, returns `loss` and `exact_match` on held-out examples. `state` continues an earlier
    run. `on_step(rows, adapters, state)` is called after every step. The rows of a batch are split
    into `shares`, which `parallel_map` may compute at the same time. Raises InputError if the loss
    or the gradient is not finite; the last good state has then been passed to `on_step`.
    """
    bins = pack(examples, config.max_seq_length) if config.packing else [[e] for e in examples]
    adapters = round_to(adapters, config.adapter_dtype)
    state = state or init_state(adapters)
    history: list[Tree] = []
    while state["step"] < config.iters and not should_stop(state, config):
        began, step = time.perf_counter(), state["step"]
        loss, grads, tokens = gradient_at(
            adapters, base, bins, step, model_config, config, ops, parallel_map, shares
        )
        grads, norm = clip(grads, config.max_grad_norm)
        require(
            math.isfinite(loss + norm),
            f"the loss is {loss:g} and its gradient {norm:g} at step {step + 1}: lower "
            "--learning-rate, or hold the adapters in float32; the checkpoint before it is kept",
        )
        rate = learning_rate(step, config)
        adapters, state = update(adapters, grads, state, rate, config)
        seconds = round(time.perf_counter() - began, 4)
        row = {"step": step + 1, "loss": loss, "learning_rate": rate, "grad_norm": norm}
        rows: list[Tree] = [row | {"tokens": tokens, "seconds": seconds}]
        last = step + 1 == config.iters
        if evaluate and (last or (step + 1) % config.steps_per_eval == 0):
            score = evaluate(adapters)
            eval_loss, exact = score["loss"], score["exact_match"]
            rows.append({"step": step + 1, "eval_loss": eval_loss, "eval_exact_match": exact})
            state = update_early_stopping(state, adapters, eval_loss, config)
        history += rows
        if on_step:
            on_step(rows, adapters, state)
    return state.get("best", adapters), history


def init_state(adapters: Tree) -> Tree:
    """Return the state before the first step."""
    return {**adamw_init(adapters), "best_loss": math.inf, "worse": 0}


def gradient_at(
    adapters: Tree, base: Tree, bins: list[list[Example]], step: int, model_config: ModelConfig,
    config: TrainConfig, ops: Ops, parallel_map: Function = map, shares: int = 1,
) -> tuple[float, Tree, int]:  # fmt: skip
    """Compute (mean loss, its gradient, target tokens) of a step, over all its micro-batches.

    The micro-batches come one after the other; the shares of each may be computed in parallel.
    """
    n, size = config.grad_accumulation_steps, config.batch_size
    batches = []
    for i in range(n):
        rows = list(enumerate(batch_at(bins, step * n + i, size, config.seed), start=i * size))
        batches.append(split_batch(rows, shares))
    total = sum(num_targets(row) for batch in batches for share in batch for _, row in share)

    def part(share: list[tuple[int, list[Example]]]) -> tuple[int, float, Tree] | None:
        positions, rows = zip(*share)
        targets = sum(map(num_targets, rows))
        if not targets:
            return None
        rng = RowRng([[config.seed, step, position] for position in positions])
        with np.errstate(over="ignore", invalid="ignore"):  # `train` raises if it is not finite
            loss, grads = ops.value_and_grad(model.loss)(
                adapters, base, collate(rows), model_config, ops, rng=rng,
                checkpointing=config.gradient_checkpointing,
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
    adapters: Tree, grads: Tree, state: Tree, rate: float, config: TrainConfig
) -> tuple[Tree, Tree]:
    """Return (adapters, state) after a step of the optimizer, rounded to `adapter_dtype`."""
    adapters, moments = adamw(adapters, grads, state, rates(rate, config, adapters), config)
    return round_to(adapters, config.adapter_dtype), {**state, **moments}


def rates(rate: float, config: TrainConfig, adapters: Tree) -> Callable[[str], float]:
    """Return the learning rate of each leaf, as a function of its path.

    lora_B learns at `loraplus_lr_ratio` times the rate (LoRA+, Hayou et al. 2024), leaves next to
    low-rank factors at `also_train_lr_scale` times it, and each layer at `layer_lr_decay` times the
    rate of the layer above (Howard and Ruder 2018, Sec. 3.2), the embedding at the lowest.
    """
    paths = [path for path, _ in named_leaves(adapters)]
    has_factors = any(path.endswith("lora_A") for path in paths)
    other_lr_scale = config.also_train_lr_scale if has_factors else 1.0
    depth = 1 + max((layer_of(path) for path in paths), default=0)

    def rate_of(path: str) -> float:
        name = path.rpartition(".")[2]
        scale = 1.0 if name.startswith("lora_") else other_lr_scale
        ratio = config.loraplus_lr_ratio if name == "lora_B" else 1.0
        top = depth - 1 if path.startswith(("model.norm.", "lm_head.")) else layer_of(path)
        return rate * scale * ratio * config.layer_lr_decay ** (depth - 1 - top)

    return rate_of


def update_early_stopping(state: Tree, adapters: Tree, loss: float, config: TrainConfig) -> Tree:
    """Return the state after an evaluation: early stopping keeps the best adapters so far."""
    if not config.early_stopping_patience:
        return state
    if loss < state["best_loss"]:
        return {**state, "best_loss": loss, "worse": 0, "best": adapters}
    return {**state, "worse": state["worse"] + 1}


def should_stop(state: Tree, config: TrainConfig) -> bool:
    """Tell whether the held-out loss was not better in `early_stopping_patience` evaluations."""
    return 0 < config.early_stopping_patience <= state["worse"]

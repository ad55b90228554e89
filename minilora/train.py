"""Fine-tuning: one loop, to be read from top to bottom.

Part 6 of `lessons/00_qlora_in_one_file.py`, made general: accumulation, evaluation, early
stopping, and runs that can be resumed.

Every random choice is drawn from (seed, step), a dropout mask also from the row's position, so the
state of a run is its trained tree, the two moments of Adam, and a step count: what was interrupted
goes on as if it had not been.
"""

import math
import sys
import time
from functools import partial

import numpy as np
from autograd import value_and_grad
from tqdm.auto import tqdm

from . import model, nn
from .batching import batch_at, collate, pack
from .config import InputError, require
from .evaluation.metrics import evaluate
from .kernels import threads
from .methods.siblings import prompt
from .optim import adamw, adamw_init, clip, learning_rate, to_dtype
from .tree import child, count, layer_of, tree_map, walk

SECONDS_BETWEEN_LINES = 10  # where there is no terminal for a progress bar
FEW = 2**24  # trained parameters, with a gradient of 64 MiB


def train(adapters, base, examples, model_config, config, valid=(), state=None, on_step=None):
    """Fit `adapters` to the examples; returns (adapters, history).

    examples, valid: lists of `batching.Example`. `history` has a dict a step (`step`, `loss`,
    `learning_rate`, `grad_norm`, `tokens`, `seconds`) and one an evaluation (`step`, `eval_loss`,
    `eval_exact_match`). `state` continues an earlier run. `on_step(rows, adapters, state)` is
    called after every step. Raises InputError when loss or gradient is not finite; the last good
    state has then been handed to `on_step`.
    """
    check(adapters, config)
    bins = pack(examples, config.max_seq_length) if config.packing else [[e] for e in examples]
    adapters = to_dtype(adapters, config.adapter_dtype)
    state = state or start(adapters)
    history = []
    first, said = state["step"], time.perf_counter()
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(total=config.iters, initial=first, unit="step", disable=not watched) as bar:
        while state["step"] < config.iters and not stopped(state, config):
            began, step = time.perf_counter(), state["step"]
            loss, grads, tokens = gradient(adapters, base, bins, step, model_config, config)
            grads, norm = clip(grads, config.max_grad_norm)
            if not math.isfinite(loss + norm):
                raise InputError(
                    f"the loss is {loss:g} and its gradient {norm:g} at step {step + 1}: lower "
                    "--learning-rate, or hold the adapters in float32; the checkpoint before it "
                    "is kept"
                )
            rate = learning_rate(step, config)
            adapters, state = update(adapters, grads, state, rate, config)
            seconds = time.perf_counter() - began
            rows = [
                {"step": step + 1, "loss": loss, "learning_rate": rate, "grad_norm": norm,
                 "tokens": tokens, "seconds": round(seconds, 4)}
            ]  # fmt: skip
            if valid and ((step + 1) % config.steps_per_eval == 0 or step + 1 == config.iters):
                score = evaluate(adapters, base, valid, model_config)
                eval_loss, exact = score["loss"], score["exact_match"]
                rows.append({"step": step + 1, "eval_loss": eval_loss, "eval_exact_match": exact})
                state = judged(state, adapters, eval_loss, config)
                line = f"step {step + 1}: train loss {loss:.4f}, held-out loss {eval_loss:.4f}"
                bar.write(f"{line}, exact match {100 * exact:.1f} %")
            history += rows
            if on_step:
                on_step(rows, adapters, state)
            line = f"loss {loss:.3f}, {tokens / seconds:.0f} tokens/s"
            bar.set_postfix_str(line)
            bar.update()
            if not watched and time.perf_counter() - said > SECONDS_BETWEEN_LINES:
                said = time.perf_counter()
                print(f"step {step + 1} of {config.iters}: {line}", file=sys.stderr, flush=True)
    return state.get("best", adapters), history


def check(adapters, config):
    """Raise InputError if `config` asks for what these adapters cannot do."""
    require(
        not (config.packing and prompt(child(adapters, "model")) is not None),
        "--packing puts several examples into a row, and only the first would see the trained "
        "prompt: train it without",
    )


def start(adapters):
    """The state before the first step."""
    return {**adamw_init(adapters), "best_loss": math.inf, "worse": 0}


def gradient(adapters, base, bins, step, model_config, config):
    """(mean loss, its gradient, target tokens) over all the micro-batches of a step.

    The micro-batches come one after the other, the shares of each together, a core for each.
    """
    n = config.grad_accumulation_steps
    micro = [batch_at(bins, step * n + i, config.batch_size, config.seed) for i in range(n)]
    jobs = []
    for i, rows in enumerate(micro):
        numbered = list(enumerate(rows, start=i * config.batch_size))
        shares = (zip(*share) for share in shared(numbered, adapters))
        jobs.append([(positions, collate(bins)) for positions, bins in shares])
    total = sum(float(batch["mask"].sum()) for shares in jobs for _, batch in shares)

    def part(job):
        positions, batch = job
        tokens = float(batch["mask"].sum())
        if not tokens:
            return 0.0, 0.0, None
        rng = nn.RowRng([[config.seed, step, position] for position in positions])
        again = config.gradient_checkpointing
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name
            return tokens, *value_and_grad(model.loss)(
                adapters, base, batch, model_config, rng=rng, checkpointing=again
            )

    parts = (p for shares in jobs for p in threads.on_cores(part, shares) if p[0])
    loss, grads = accumulated(parts, total)
    return loss, grads, int(total)


def shared(rows, adapters):
    """The rows of a micro-batch, split into one share for each core.

    In one piece where a gradient per core would be large compared with what a step takes in any
    case, and on the plain path, so that a debugger sees all.
    """
    n = min(len(rows), threads.THREADS)
    if count(adapters) > FEW or model.OPS is nn:
        return [rows]
    return [rows[i::n] for i in range(n)]


def accumulated(parts, total):
    """(mean loss, its gradient) of a large batch from its micro-batches.

    parts: (target tokens n, mean loss over them, its gradient) of each, one at a time; total: the
    sum of their n.
    """
    loss, grads = 0.0, None
    for n, value, grad in parts:
        # L = Σ (nᵢ/n)·Lᵢ: the large batch's mean, not a mean of means
        share = n / total
        loss += share * float(value)
        grad = tree_map(partial(np.multiply, share), grad)
        grads = grad if grads is None else tree_map(np.add, grads, grad)
    return loss, grads


def update(adapters, grads, state, rate, config):
    """(adapters, state) after one optimizer step, the adapters as `adapter_dtype` holds them."""
    adapters, moments = adamw(adapters, grads, state, rates(rate, config, adapters), config)
    try:
        adapters = to_dtype(adapters, config.adapter_dtype)
    except InputError as error:
        raise InputError(f"step {moments['step']}: {error}") from error
    return adapters, {**state, **moments}


def rates(rate, config, adapters):
    """The rate of each leaf, as a function of its path.

    What is trained beside low-rank factors learns at `also_train_lr_scale` of the rate, lora_B at
    `loraplus_lr_ratio` times it (LoRA+, Hayou et al. 2024), and each layer at `layer_lr_decay` of
    the rate of the layer above it (Howard and Ruder 2018, Sec. 3.2), the embedding lowest.
    """
    paths = [path for path, _ in walk(adapters)]
    beside = config.also_train_lr_scale if any(p.endswith("lora_A") for p in paths) else 1.0
    depth = 1 + max((layer_of(path) for path in paths), default=0)

    def of(path):
        name = path.rpartition(".")[2]
        share = 1.0 if name.startswith("lora_") else beside
        plus = config.loraplus_lr_ratio if name == "lora_B" else 1.0
        top = depth - 1 if path.startswith(("model.norm.", "lm_head.")) else layer_of(path)
        return rate * share * plus * config.layer_lr_decay ** (depth - 1 - top)

    return of


def judged(state, adapters, score, config):
    """The state after an evaluation: with early stopping, the best adapters so far are kept."""
    if not config.early_stopping_patience:
        return state
    if score < state["best_loss"]:
        return {**state, "best_loss": score, "worse": 0, "best": adapters}
    return {**state, "worse": state["worse"] + 1}


def stopped(state, config):
    """True when the held-out loss has not improved for `early_stopping_patience` evaluations."""
    return 0 < config.early_stopping_patience <= state["worse"]

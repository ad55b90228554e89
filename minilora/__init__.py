"""LoRA and QLoRA from scratch, in NumPy and autograd: a reference to read, and to compute with.

    import minilora
    from minilora import LoraConfig, TrainConfig

    model_config, base, tokenizer = minilora.load("tiny")
    base = minilora.quantize(base, "nf4-dq")
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapters, base = minilora.get_peft_model(base, lora_config, rng=0)

    train_config = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
    rows = minilora.load_rows("questions", "train")
    examples, _ = minilora.encode_rows(rows, tokenizer, train_config)
    adapters, history = minilora.train(adapters, base, examples, model_config, train_config)

    minilora.save_adapter("my_adapter", adapters, base, lora_config, "tiny")
    dense = minilora.merge(adapters, base)

The functions here use the optimized operations if numba is installed. The functions of the core
(`minilora.model`, `minilora.training`, `minilora.generation`) take the operations as `ops`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import generation, kernels, layers, lora, model, nf4, training
from .batching import Example
from .config import InputError, LoraConfig, ModelConfig, TrainConfig
from .data.packing import pack_examples
from .data.rows import encode_rows, load_rows
from .evaluation import callbacks
from .evaluation.memory import print_trainable_parameters
from .evaluation.metrics import check_examples, evaluate
from .formats.checkpoint import load_adapter, save_adapter
from .formats.pretrained import load, save_pretrained
from .kernels import quantize_4bit
from .methods.compose import generate_batch
from .methods.method import MethodConfig
from .methods.registry import METHODS, check_packing, get_peft_model, operations
from .quant import schemes
from .training import Callback, TrainResult
from .tree import Array, Tree, num_parameters

__version__ = "0.2.0"
__all__ = [
    "METHODS", "InputError", "LoraConfig", "MethodConfig", "ModelConfig", "TrainConfig",
    "__version__", "encode_rows", "evaluate", "forward", "generate", "generate_batch",
    "get_peft_model", "layers", "load", "load_adapter", "load_rows", "lora", "loss", "merge",
    "nf4", "operations", "print_trainable_parameters", "quantize",
    "save_adapter", "save_pretrained", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


def forward(
    adapters: Tree, base: Tree, tokens: Array, model_config: ModelConfig, ops: Any = None
) -> Array:
    """Compute the logits (B, T, V) float32 of token ids (B, T); ops: see `operations`."""
    return model.forward(adapters, base, tokens, model_config, operations(adapters, base, ops))


def loss(
    adapters: Tree, base: Tree, batch: Tree, model_config: ModelConfig, ops: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Compute the mean cross-entropy of a batch in nats per target token; see `model.loss`."""
    ops = operations(adapters, base, ops)
    return model.loss(adapters, base, batch, model_config, ops, **options)


def train(
    adapters: Tree, base: Tree, examples: Sequence[Example], model_config: ModelConfig,
    train_config: TrainConfig, valid: Sequence[Example] = (), state: Tree | None = None,
    on_step: Callback | None = None, ops: Any = None, quiet: bool = False,
) -> TrainResult:  # fmt: skip
    """Fit `adapters` to the examples; return TrainResult(adapters, history).

    adapters, base: the trees of `get_peft_model`; they do not change. model_config: as from `load`.
    examples, valid: lists of `Example`, from `encode_rows`. `valid` is evaluated at the end and
    every `train_config.steps_per_eval` steps; early stopping and `keep_best` need it.
    state: None, or the last state that `on_step` got in the run to continue.
    on_step: called after every step as on_step(records, adapters, state), where `records` is the
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
    callbacks.check_held_out(valid, train_config)
    check_examples("examples", examples, model_config.vocab_size)
    check_examples("valid", valid, model_config.vocab_size)
    ops = operations(adapters, base, ops)
    state = state or callbacks.init_state(adapters, train_config)
    if callbacks.should_stop(state, train_config.early_stopping_patience):  # it had ended
        return TrainResult(state.get("best", adapters), [])
    packed = pack_examples(examples, train_config.max_seq_length) if train_config.packing else None
    with callbacks.of_run(
        adapters, base, valid, model_config, train_config, state, on_step, ops, quiet
    ) as each_step:
        # a gradient per shard: one shard for the reference, and for very many parameters
        parallel_map, num_shards = kernels.parallel(ops, num_parameters(adapters))
        return training.train(
            adapters, base, packed or examples, model_config, train_config, ops, state, each_step,
            parallel_map, num_shards,
        )  # fmt: skip


def generate(
    adapters: Tree, base: Tree, prompt: list[int], model_config: ModelConfig, **options: Any
) -> Iterator[int]:
    """Yield the ids of the tokens that continue `prompt`, a list of token ids.

    options: `max_tokens` (256), `temp` (0.0, greedy), `top_p` (1.0) and `rng`, as described in
    `generation.generate`. Generation stops before an end-of-sequence token.
    """
    ops = operations(adapters, base)
    return generation.generate(adapters, base, prompt, model_config, ops, **options)


def quantize(base: Tree, scheme: str, block_size: int = 64) -> Tree:
    """Return a new tree: `base` with the weights of its projections quantized.

    scheme: "nf4", "nf4-dq" (with double quantization), "fp4", "int8" or "none". block_size: the
    weights per absmax in the 4-bit schemes. Raises InputError for an unknown scheme, and for a
    weight that is quantized already or not finite. `quant.schemes.error_report` measures the error.
    """
    return schemes.quantize(base, scheme, block_size, quantize_4bit)


def merge(adapters: Tree, base: Tree, dtype: Any = np.float32) -> Tree:
    """Return a dense base that computes without adapters what `base` computes with `adapters`.

    In PEFT, this is `merge_and_unload`. Quantized weights are dequantized. dtype: of the result.
    Raises InputError for methods that do not only modify weights and biases (prompts, prefixes,
    bottlenecks).
    """
    return lora.merge(adapters, base, operations(adapters, base), dtype)

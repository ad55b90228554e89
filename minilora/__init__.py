"""LoRA and QLoRA from scratch, in NumPy and autograd: a reference to read, and to compute with.

    import minilora
    from minilora import LoraConfig, TrainConfig

    model, tokenizer = minilora.load("tiny")
    model = minilora.quantize(model, "nf4-dq")
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapters, model = minilora.get_peft_model(model, lora_config, rng=0)

    train_config = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
    rows = minilora.load_rows("questions", "train")
    examples, _ = minilora.encode_rows(rows, tokenizer, train_config)
    adapters, history = minilora.train(adapters, model, examples, train_config)

    minilora.save_adapter("my_adapter", adapters, model, lora_config)
    dense = minilora.merge(adapters, model)

A model computes with the optimized operations if numba is installed. For the reference
implementation: `model = model._replace(ops=minilora.layers)`.
"""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

if "numpy" not in sys.modules:  # its import reads the variable
    # OpenBLAS's threads wait in a busy loop, at the start and after each product: now for 2^20
    # cycles. The default, 2^28 or 0.1 s, is a third of the CPU time of `minilora --help`
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

from . import layers, lora, nf4
from .batching import Example
from .config import InputError, LoraConfig, ModelConfig, TrainConfig
from .data.encoding import encode_rows
from .data.rows import load_rows
from .evaluation.loop import run
from .evaluation.memory import print_trainable_parameters
from .evaluation.metrics import evaluate
from .formats.checkpoint import load_adapter, save_adapter
from .formats.pretrained import load, save_pretrained
from .generation import generate
from .lora import merge
from .methods.compose import generate_batch
from .methods.method import MethodConfig
from .methods.registry import METHODS, get_peft_model
from .model import Model, Source, forward, loss
from .quant.schemes import quantize
from .training import State, start
from .tree import Tree

__version__ = "0.2.0"
__all__ = [
    "METHODS", "InputError", "LoraConfig", "MethodConfig", "Model", "ModelConfig", "Source",
    "State", "TrainConfig", "__version__", "encode_rows", "evaluate", "forward", "generate",
    "generate_batch", "get_peft_model", "layers", "load", "load_adapter", "load_rows", "lora",
    "loss", "merge", "nf4", "print_trainable_parameters", "quantize", "run", "save_adapter",
    "save_pretrained", "start", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class TrainResult(NamedTuple):
    """The trained adapters, and the history: one dict per step and per evaluation."""

    adapters: Tree
    history: list[Tree]


def train(
    adapters: Tree,
    model: Model,
    examples: Sequence[Example],
    train_config: TrainConfig,
    valid: Sequence[Example] = (),
    quiet: bool = False,
) -> TrainResult:
    """Fit `adapters` to the examples; return TrainResult(adapters, history).

    adapters, model: from `get_peft_model`; they do not change. examples, valid: lists of `Example`,
    from `encode_rows`, which has applied `mask_prompt` and `max_seq_length`. `valid` (its first
    `val_batches * batch_size`) is evaluated at the end and every `train_config.steps_per_eval`
    steps; early stopping and `keep_best` need it, and then the returned adapters are those with the
    lowest `eval_loss`. quiet: print nothing, and show no progress.

    This is the loop of `run`, which describes the records of the history and the errors. Write the
    loop yourself to see each step, to stop early, or to keep the last state after Ctrl-C.
    """
    state = start(adapters, train_config)
    history: list[Tree] = []
    for state, records in run(state, model, examples, train_config, valid, quiet):
        history += records
    return TrainResult(state.kept, history)

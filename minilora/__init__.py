"""minilora: LoRA and QLoRA from scratch, small enough to read, exact enough to believe.

    model_config, base, tokenizer = minilora.load("tiny", "nf4-dq")
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=8, lora_alpha=16))
    adapters, history = minilora.train(adapters, base, examples, model_config, TrainConfig())
    minilora.save_adapter("adapters", adapters, base, lora_config, "tiny")
    dense = minilora.merge_and_unload(adapters, base)

The functions here choose the fastest operations that this machine has. Those of the core
(`minilora.model`, `minilora.training`, `minilora.generation`) take them as the argument `ops`.
"""

from collections.abc import Iterator
from typing import Any

from . import generation, layers, lora, model, nf4
from .config import InputError, LoraConfig, ModelConfig, TrainConfig
from .data.rows import encode_rows, load_rows
from .evaluation.memory import print_trainable_parameters
from .evaluation.metrics import evaluate
from .evaluation.trainer import train
from .formats.checkpoint import load_adapter, save_adapter
from .formats.pretrained import load, save_pretrained
from .kernels import quantize_4bit
from .methods.merging import merge
from .methods.operations import operations
from .methods.registry import METHODS, MethodConfig, get_peft_model
from .quant import schemes
from .tree import Array, Tree

__version__ = "0.2.0"
__all__ = [
    "METHODS", "InputError", "LoraConfig", "MethodConfig", "ModelConfig", "TrainConfig",
    "__version__", "encode_rows", "evaluate", "forward", "generate", "get_peft_model", "layers",
    "load", "load_adapter", "load_rows", "lora", "loss", "merge", "merge_and_unload", "nf4",
    "operations", "print_trainable_parameters", "quantize", "save_adapter", "save_pretrained",
    "train",
]  # fmt: skip

merge_and_unload = merge  # PEFT's name of it


def __dir__() -> list[str]:
    return __all__


def forward(
    adapters: Tree, base: Tree, tokens: Array, model_config: ModelConfig, ops: Any = None
) -> Array:
    """Compute the logits (B, T, V) of tokens (B, T)."""
    return model.forward(adapters, base, tokens, model_config, operations(adapters, base, ops))


def loss(
    adapters: Tree, base: Tree, batch: Tree, model_config: ModelConfig, ops: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Compute the mean cross-entropy, in nats, over a batch's target tokens; see `model.loss`."""
    ops = operations(adapters, base, ops)
    return model.loss(adapters, base, batch, model_config, ops, **options)


def generate(
    adapters: Tree, base: Tree, prompt: list[int], model_config: ModelConfig, **options: Any
) -> Iterator[int]:
    """Yield the token ids that continue the ids of `prompt`; see `generation.generate`."""
    ops = operations(adapters, base)
    return generation.generate(adapters, base, prompt, model_config, ops, **options)


def quantize(base: Tree, scheme: str, block_size: int = 64) -> Tree:
    """Return `base` with the projections' weights in `scheme`; see `quant.schemes.quantize`."""
    return schemes.quantize(base, scheme, block_size, quantize_4bit)

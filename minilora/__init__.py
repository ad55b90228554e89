"""minilora: LoRA and QLoRA from scratch, small enough to read, exact enough to believe.

config, base, tokenizer = minilora.load("tiny")
base = minilora.quantize(base, "nf4-dq")
adapters, base = minilora.lora.init(base, LoraConfig(r=8, lora_alpha=16), rng)
adapters, history = minilora.train(adapters, base, examples, config, TrainConfig(iters=200))
minilora.save_adapter("adapters", adapters, base, lora_config, "tiny")
dense = minilora.merge(adapters, base)

The functions here choose the fastest operations that this machine has. Those of the core
(`minilora.model`, `minilora.training`, `minilora.generation`) take them as the argument `ops`.
"""

from . import generation, layers, lora, model, nf4
from .config import InputError, LoraConfig, ModelConfig, TrainConfig
from .evaluation.metrics import evaluate
from .evaluation.trainer import train
from .formats.checkpoint import load_adapter, save_adapter
from .formats.pretrained import load, save_pretrained
from .kernels import quantize_4bit
from .methods.merging import merge
from .methods.operations import operations
from .methods.registry import METHODS, MethodConfig
from .quant import schemes

__all__ = [
    "METHODS", "InputError", "LoraConfig", "MethodConfig", "ModelConfig", "TrainConfig", "evaluate",
    "forward", "generate", "layers", "load", "load_adapter", "lora", "loss", "merge", "nf4",
    "operations", "quantize", "save_adapter", "save_pretrained", "train",
]  # fmt: skip


def forward(adapters, base, tokens, model_config, ops=None):
    """Compute the logits (B, T, V) of tokens (B, T)."""
    return model.forward(adapters, base, tokens, model_config, operations(adapters, base, ops))


def loss(adapters, base, batch, model_config, ops=None, **options):
    """Compute the mean cross-entropy, in nats, over a batch's target tokens; see `model.loss`."""
    return model.loss(
        adapters, base, batch, model_config, operations(adapters, base, ops), **options
    )


def generate(adapters, base, prompt, model_config, **options):
    """Yield the token ids that continue the ids of `prompt`; see `generation.generate`."""
    ops = operations(adapters, base)
    return generation.generate(adapters, base, prompt, model_config, ops, **options)


def quantize(base, scheme, block_size=64):
    """Return `base` with the projections' weights in `scheme`; see `quant.schemes`."""
    return schemes.quantize(base, scheme, block_size, quantize_4bit)

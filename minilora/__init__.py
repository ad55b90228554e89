"""minilora: LoRA and QLoRA from scratch, small enough to read, exact enough to believe.

config, base, tokenizer = minilora.load("tiny")
base = minilora.quantize(base, "nf4-dq")
adapters, base = minilora.lora.init(base, LoraConfig(r=8, lora_alpha=16), rng)
adapters, history = minilora.train(adapters, base, examples, config, TrainConfig(iters=200))
minilora.save_adapter("adapters", adapters, base, lora_config, "tiny")
dense = minilora.lora.merge(adapters, base)
"""

from functools import partial

from . import lora, nf4
from .config import InputError, LoraConfig, MethodConfig, ModelConfig, TrainConfig
from .evaluation.metrics import evaluate
from .formats.checkpoint import load_adapter, save_adapter
from .formats.pretrained import load, save_pretrained
from .generate import generate
from .kernels.nf4 import quantize as quantize_4bit
from .methods.methods import METHODS
from .model import forward, loss
from .quant.quantize import quantize as _quantize
from .train import train

quantize = partial(_quantize, quantize_4bit=quantize_4bit)

__all__ = [
    "METHODS", "InputError", "LoraConfig", "MethodConfig", "ModelConfig", "TrainConfig", "evaluate",
    "forward", "generate", "load", "load_adapter", "lora", "loss", "nf4", "quantize",
    "save_adapter", "save_pretrained", "train",
]  # fmt: skip

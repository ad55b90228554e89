"""minilora: LoRA and QLoRA from scratch, small enough to read, exact enough to believe.

config, base, tokenizer = minilora.load("tiny")
base = minilora.quantize(base, "nf4-dq")
adapters, base = minilora.lora.init(base, LoraConfig(r=8, lora_alpha=16), rng)
adapters, history = minilora.train(adapters, base, examples, config, TrainConfig(iters=200))
minilora.save_adapter("adapters", adapters, base, lora_config, "tiny")
dense = minilora.lora.merge(adapters, base)
"""

import os

# OpenBLAS's idle threads otherwise spin for some 20 ms after each product, on the cores that the
# kernels of `fused.py` need; after 2¹⁶ cycles they sleep. (After 2⁴ they sleep between any two
# products, and waking them costs a twentieth of a step.) Read when NumPy loads.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")

from . import lora, nf4
from .checkpoint import load_adapter, save_adapter
from .config import InputError, LoraConfig, MethodConfig, ModelConfig, TrainConfig
from .generate import generate
from .methods import METHODS
from .metrics import evaluate
from .model import forward, loss
from .pretrained import load, save_pretrained
from .quantize import quantize
from .train import train

__all__ = [
    "METHODS", "InputError", "LoraConfig", "MethodConfig", "ModelConfig", "TrainConfig", "evaluate",
    "forward", "generate", "load", "load_adapter", "lora", "loss", "nf4", "quantize",
    "save_adapter", "save_pretrained", "train",
]  # fmt: skip

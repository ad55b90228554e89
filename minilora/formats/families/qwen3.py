"""Qwen3: the window of Qwen2, and a norm of each head of q and k before the rotation."""

from ...config import ATTENTION
from .family import Family
from .qwen2 import DEFAULTS, read, write

FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    biases=(ATTENTION,),
    fields={"qk_norm": True},
    defaults={**DEFAULTS, "head_dim": 128},
    read=read,
    write=write,
)

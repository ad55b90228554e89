"""Llama, and models of its type, such as SmolLM2 and TinyLlama."""

from ...config import ATTENTION, MLP
from .family import Family

FAMILY = Family("llama", "LlamaForCausalLM", biases=(ATTENTION, MLP))

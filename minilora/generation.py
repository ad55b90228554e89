"""Text from a model, one token at a time, with a key/value cache.

`generate` of part 5 of `lessons/00_qlora_in_one_file.py`, made general: sampling, and a cache. Keys
and values of earlier tokens never change, because attention is causal. They are kept, so each new
token costs one column of the model instead of all of them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import model
from .config import ModelConfig, check, require
from .layers import LayerCache
from .ops import Ops
from .tree import Array, Tree


def generate(
    adapters: Tree, base: Tree, prompt: list[int], model_config: ModelConfig, ops: Ops,
    max_tokens: int = 256, temp: float = 0.0, top_p: float = 1.0, rng: Any = None,
) -> Iterator[int]:  # fmt: skip
    """Yield up to `max_tokens` token ids that continue the ids of `prompt`.

    Stops before an end-of-sequence token. temp 0 takes the likeliest token; otherwise tokens are
    drawn with `rng`, a NumPy generator or a seed, from softmax(logits / temp), restricted to the
    likeliest ones that together have the probability `top_p` (Holtzman et al. 2020). Raises
    InputError for an empty prompt, or a temperature, top_p or max_tokens out of range.
    """
    require(temp >= 0, f"--temp must not be negative, got {temp}")
    require(0 < top_p <= 1, f"--top-p must lie in (0, 1], got {top_p}")
    check("--max-tokens", max_tokens, "be a whole number from 1")
    require(len(prompt) > 0, "the prompt is empty: give --prompt some text")
    cache = [LayerCache() for _ in range(model_config.num_hidden_layers)]
    tokens, rng = np.array([prompt]), np.random.default_rng(rng)
    for _ in range(max_tokens):
        starts = np.zeros_like(tokens)
        x = model.hidden_states(adapters, base, tokens, starts, model_config, ops, cache)
        token = sample(model.logits(x[0, -1], adapters, base, ops), temp, top_p, rng)
        if token in model_config.eos_token_id:
            return
        yield token
        tokens = np.array([[token]])


def sample(logits: Array, temp: float, top_p: float, rng: np.random.Generator) -> int:
    """Choose the next token's id from its logits (V,)."""
    if temp == 0:
        return int(np.argmax(logits))
    # p = softmax(z/τ)
    z = (logits - logits.max()).astype(np.float64) / temp
    p = np.exp(z)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    # the smallest set whose probability reaches top_p   (Holtzman et al. 2020, Eq. 2)
    kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
    return int(rng.choice(kept, p=p[kept] / p[kept].sum()))

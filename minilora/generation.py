"""Generation: one token at a time, with a key/value cache.

This file adds sampling and a cache to `generate` of `lessons/00_qlora_in_one_file.py`, part 5. The
keys and values of earlier tokens never change, because attention is causal. The cache keeps them,
so a forward pass computes only the new token.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .batching import token_array
from .config import NON_NEGATIVE, POSITIVE_INT, InputError, ModelConfig, Rule, check_setting
from .layers import LayerCache
from .model import Model, hidden_states, logits, with_adapters
from .tree import Array, Tree

SHARE = Rule("lie in (0, 1]", lambda value: 0 < value <= 1)


def generate(
    adapters: Tree,
    model: Model,
    prompt: list[int],
    max_tokens: int = 256,
    temp: float = 0.0,
    top_p: float = 1.0,
    rng: Any = None,
) -> Iterator[int]:
    """Yield the ids of up to `max_tokens` tokens that continue `prompt`, a list of token ids.

    Generation stops before an end-of-sequence token, that of the tokenizer or one of the config
    files; no other setting of generation_config.json is used. temp: 0 for the most probable token,
    otherwise sample from softmax(logits / temp). top_p: sample only from the smallest set of tokens
    whose probabilities sum to at least top_p (Holtzman et al. 2020). rng: a NumPy generator or a
    seed. The first `next` raises InputError for a prompt without ids, and for a value out of range.
    Warns if there are more tokens than the model can read.
    """
    check_generation([prompt], max_tokens, temp, top_p, model.config)
    model = with_adapters(adapters, model)
    caches = [LayerCache() for _ in range(model.config.num_hidden_layers)]
    tokens = np.array([prompt])
    rng = np.random.default_rng(rng)
    for _ in range(max_tokens):
        past = caches[0].length
        x = hidden_states(model, tokens, np.zeros_like(tokens), caches)
        warn_of_length(past, caches[0].length, model.config)
        token = sample(logits(x[0, -1], model), temp, top_p, rng)
        if token in model.config.eos_token_id:
            return
        yield token
        tokens = np.array([[token]])


def warn_of_length(past: int, length: int, model_config: ModelConfig) -> None:
    """Warn if the tokens from `past` to `length`, with virtual ones, pass the model's limit."""
    limit = model_config.max_position_embeddings
    if past <= limit < length:
        warnings.warn(
            f"prompt and answer, with virtual tokens, pass the {limit} tokens that the model can "
            "read (max_position_embeddings): shorten the prompt, or generate fewer tokens",
            stacklevel=3,
        )


def sample(z: Array, temp: float, top_p: float, rng: np.random.Generator) -> int:
    """Return the id of the next token, chosen or sampled from the logits z (V,)."""
    if temp == 0:
        return int(np.argmax(z))
    # p = softmax(z/τ)
    p = np.exp((z - z.max()).astype(np.float64) / temp)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    # the smallest set whose probability reaches top_p   (Holtzman et al. 2020, Eq. 2)
    kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
    return int(rng.choice(kept, p=p[kept] / p[kept].sum()))


def check_generation(
    prompts: Sequence[Any], max_tokens: int, temp: float, top_p: float, model_config: ModelConfig
) -> None:
    """Raise InputError for a prompt that is not token ids, and for a value out of range."""
    check_setting("temp", temp, NON_NEGATIVE)
    check_setting("top_p", top_p, SHARE)
    if temp == 0 and top_p < 1:
        raise InputError("`top_p` has no effect with `temp` 0: give a `temp` above 0")
    check_setting("max_tokens", max_tokens, POSITIVE_INT)
    for prompt in prompts:
        token_array("a prompt", prompt, model_config.vocab_size, 1)

"""Generation: one token at a time, with a key/value cache, for one prompt or several.

This file adds sampling and a cache to `generate` of `lessons/00_qlora_in_one_file.py`, part 5. The
keys and values of earlier tokens never change, because attention is causal. The cache keeps them,
so a forward pass computes only the new token.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import model
from .config import POSITIVE_INT, ModelConfig, check_number, require
from .layers import LayerCache
from .ops import Ops
from .tree import Array, Tree


def generate(
    adapters: Tree, base: Tree, prompt: list[int], model_config: ModelConfig, ops: Ops, **more: Any
) -> Iterator[int]:  # fmt: skip
    """Yield the ids that continue `prompt`, a list of token ids; more: see `generate_batch`."""
    steps = generate_batch(adapters, base, [prompt], model_config, ops, **more)
    return (token for (token,) in steps if token is not None)


def generate_batch(
    adapters: Tree, base: Tree, prompts: Sequence[list[int]], model_config: ModelConfig, ops: Ops,
    max_tokens: int = 256, temp: float = 0.0, top_p: float = 1.0, rng: Any = None,
) -> Iterator[list[int | None]]:  # fmt: skip
    """Yield per step the next token of every prompt, or None where a prompt has none in this step.

    The prompts are the rows of a batch, and all begin at position 0. A step reads or generates one
    token per row: shorter prompts are continued while longer ones are still read. So there is no
    padding, and a row is computed like a single prompt. `adapters` can have an adapter per row (see
    `methods.compose.per_row`).

    A prompt is continued by up to `max_tokens` tokens, and ends before an end-of-sequence token.
    temp: 0 for the most probable token, otherwise sample from softmax(logits / temp). top_p: sample
    only from the smallest set of tokens whose probabilities sum to top_p (Holtzman et al. 2020).
    rng: a NumPy generator or a seed; of several prompts, each has its own child of it. Raises
    InputError for an empty prompt, and for a value out of range.
    """
    require(temp >= 0, f"--temp must not be negative, got {temp}")
    require(0 < top_p <= 1, f"--top-p must lie in (0, 1], got {top_p}")
    check_number("--max-tokens", max_tokens, POSITIVE_INT)
    require(prompts and all(map(len, prompts)), "the prompt is empty: give --prompt some text")
    cache = [LayerCache() for _ in range(model_config.num_hidden_layers)]
    rng = np.random.default_rng(rng)
    rngs = rng.spawn(len(prompts)) if len(prompts) > 1 else [rng]
    rows, read = [list(prompt) for prompt in prompts], min(map(len, prompts))
    tokens, ended = np.array([row[:read] for row in rows]), [False for _ in rows]
    while not all(ended):
        starts, found = np.zeros_like(tokens), dict[int, int]()
        x = model.hidden_states(adapters, base, tokens, starts, model_config, ops, cache)
        logits = model.logits(x[:, -1], adapters, base, ops)
        for i, row in enumerate(rows):
            if len(row) == read:  # the row is read to its end
                row.append(sample(logits[i], temp, top_p, rngs[i]))
                ended[i] |= row[-1] in model_config.eos_token_id
                found |= {} if ended[i] else {i: row[-1]}
                ended[i] |= len(row) == len(prompts[i]) + max_tokens
        yield [found.get(i) for i in range(len(rows))]
        tokens, read = np.array([row[read : read + 1] for row in rows]), read + 1


def sample(logits: Array, temp: float, top_p: float, rng: np.random.Generator) -> int:
    """Return the id of the next token, chosen or sampled from the logits (V,)."""
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

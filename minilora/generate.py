"""Text from a model, one token at a time, with a key/value cache.

`generate` of part 5 of `lessons/00_qlora_in_one_file.py`, made general: sampling, and a cache. Keys
and values of earlier tokens never change, because attention is causal. So they are kept, and each
new token costs one column of the model instead of all of them.
"""

import numpy as np

from . import model
from .config import require


class Cache:
    """Room for the rotated keys and the values of `size` tokens in every layer."""

    def __init__(self, config, size, batch=1):
        shape = (batch, size, config.num_key_value_heads, config.head_dim)
        self.layers = [
            LayerCache(self, np.empty(shape, "f4"), np.empty(shape, "f4"))
            for _ in range(config.num_hidden_layers)
        ]
        self.length = 0

    def layer(self, i):
        """What layer i's attention reads and extends."""
        return self.layers[i]


class LayerCache:
    """One layer's part of a Cache; `model.hidden` moves `cache.length` on after all layers."""

    def __init__(self, cache, k, v):
        self.cache, self.k, self.v = cache, k, v

    @property
    def empty(self):
        """Whether no token has been here yet: a prefix goes in before the first."""
        return self.cache.length == 0

    def extend(self, k, v):
        """Append k, v (B, T, K, hd); returns those of all tokens so far, (B, S, K, hd)."""
        at = self.cache.length
        end = at + k.shape[1]
        self.k[:, at:end], self.v[:, at:end] = k, v
        return self.k[:, :end], self.v[:, :end]


def generate(
    adapters, base, prompt, config, max_tokens=256, temp=0.0, top_p=1.0, rng=None, ops=None
):
    """Yield up to `max_tokens` token ids that continue the ids of `prompt`.

    Stops before an end-of-sequence token. temp 0 is greedy; otherwise tokens are drawn with `rng`
    from softmax(logits / temp), cut to the likeliest ones that make up `top_p` (Holtzman et al.
    2020). Raises InputError for an empty prompt or a temperature, top_p or max_tokens out of range.
    """
    require(temp >= 0, f"--temp must not be negative, got {temp}")
    require(0 < top_p <= 1, f"--top-p must lie in (0, 1], got {top_p}")
    require(max_tokens >= 1, f"--max-tokens must be a whole number from 1, got {max_tokens}")
    require(len(prompt) > 0, "the prompt is empty: give --prompt some text")
    ops = ops or model.OPS
    cache = Cache(config, model.virtual_tokens(adapters) + len(prompt) + max_tokens)
    head, tokens = model.head(adapters, base), np.array([prompt])
    for _ in range(max_tokens):
        starts = np.zeros_like(tokens)
        x = model.hidden(adapters, base, tokens, starts, config, ops, cache=cache)
        token = pick(ops.product(x[0, -1], head), temp, top_p, rng)
        if token in config.eos_token_id:
            return
        yield token
        tokens = np.array([[token]])


def pick(logits, temp, top_p, rng):
    """The next token's id from its logits (V,)."""
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

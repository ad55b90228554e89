"""The operations of all methods, as a wrapper of the reference or the optimized operations.

`registry.py` has the table of methods and leaves. Letters as in `layers`; n: virtual tokens.
"""

from typing import Any

import autograd.numpy as np
from autograd.extend import notrace_primitive

from .. import kernels
from ..config import require
from ..layers import LayerCache, lora_matmul, matmul
from ..lora import FACTORS, LEAVES, check_base
from ..tree import Tree, named_leaves, subtree, trained_or_frozen

EXTRA = ("ia3_l", "lora_magnitude_vector", "bottleneck_down", "bottleneck_down_bias",
         "bottleneck_up", "bottleneck_up_bias")  # fmt: skip


def operations(adapters: Tree, base: Tree, ops: Any = None) -> Any:
    """Return the operations for these trees: `ops` for LoRA, a wrapper of it for other methods.

    ops: `layers`, `kernels.fused`, a result of this function, or None for the optimized operations.
    Raises InputError if `base` is that of another adapter (`lora.check_base`).
    """
    check_base(adapters, base)
    ops = getattr(ops, "ops", ops) or kernels.OPS  # a wrapper is unwrapped first
    leaves = [(path.rpartition(".")[2], w.ndim) for path, w in named_leaves(adapters)]
    plain = all(name in LEAVES and ndim < 3 for name, ndim in leaves)
    stacked = any(".lora_stack." in path for path, _ in named_leaves(base))
    encoder = "prompt_encoder" in subtree(adapters, "model")
    return ops if plain and not (stacked or encoder) else MethodOps(ops)


def check_packing(adapters, train_config):
    """Raise InputError if `train_config` packs rows and the adapter is a trained prompt."""
    prompts = {"prompt_embeddings", "prompt_encoder"} & subtree(adapters, "model").keys()
    reason = "only the first example of a row would see it"
    fits = not (train_config.packing and prompts)
    require(fits, f"--packing does not fit a trained prompt, because {reason}: leave --packing out")


class MethodOps:
    """Operations (see `ops.Ops`) that read the leaves of every method."""

    def __init__(self, ops):
        self.ops = ops
        self.rms_norm, self.cross_entropy = ops.rms_norm, ops.cross_entropy
        self.checkpoint, self.value_and_grad = ops.checkpoint, ops.value_and_grad

    def embed(self, trained, frozen, tokens, segment_starts, past=0):
        """Look up token ids, after the rows of a trained prompt if the cache is empty."""
        plain = without(trained, "prompt_embeddings", "prompt_encoder")
        x, positions, starts = self.ops.embed(plain, frozen, tokens, segment_starts, past)
        rows = prompt(trained)
        if past:
            return x, positions, starts
        if rows is not None:
            # [P; E(x)]   (Lester et al. 2021, Sec. 2)
            n = len(rows)
            x = np.concatenate([np.repeat(rows[None], len(tokens), axis=0), x], axis=1)
            starts = np.pad(starts, ((0, 0), (n, 0)))  # 0 except in padding: rows are not packed
            positions = np.arange(x.shape[1]) - starts
        return x, positions + prefix_length(trained), starts

    def linear(self, x, trained, frozen, rng=None):
        """Apply a projection with the leaves of all methods: (..., in) -> (..., out)."""
        per_row = "lora_A" in trained and trained["lora_A"].ndim == 3  # an adapter per row
        plain = without(trained, "bias", *EXTRA, *(FACTORS if per_row else ()))
        if "ia3_l" in trained and trained["ia3_l"].shape[0] == 1:
            x = x * trained["ia3_l"][0]  # W_down(l_ff ∘ h)   (IA³, Liu et al. 2022, Sec. 3.3)
        h = self.ops.linear(x, plain, without(frozen, "bias", "lora_stack"), rng)
        if per_row:
            A, B = (np.swapaxes(trained[name], -1, -2) for name in FACTORS)
            h = h + (frozen["lora_scaling"] * (x @ A)) @ B
        for below in subtree(frozen, "lora_stack").values():
            h = h + lora_matmul(x, below["lora_A"], below["lora_B"], below["lora_scaling"])
        if "lora_magnitude_vector" in trained:
            # h = m∘(W₀x + (α/r)·BAx)/‖W₀ + (α/r)·BA‖ with constant norms   (DoRA, Eqs. 5 and 11)
            h = h * (trained["lora_magnitude_vector"] / row_norms(trained, frozen))
        if "bias" in trained or "bias" in frozen:
            h = h + trained_or_frozen(trained, frozen, "bias")
        if "ia3_l" in trained and trained["ia3_l"].shape[0] > 1:
            h = h * trained["ia3_l"][:, 0]  # l_k ∘ K and l_v ∘ V
        return bottleneck(h, trained) if "bottleneck_down" in trained else h

    def self_attention(
        self, x, trained, frozen, rope, segment_starts, cache=None, rng=None, eps=1e-6,
        window=None, linear=None,
    ):  # fmt: skip
        """Apply the attention sublayer, with a trained prefix before the other keys."""
        plain = without(trained, "prefix_k", "prefix_v")
        if "prefix_k" in trained and (cache is None or cache.length == 0):
            cache = Prefix(trained["prefix_k"], trained["prefix_v"], cache)
        rest = (rope, segment_starts, cache, rng, eps, window, linear or self.linear)
        return self.ops.self_attention(x, plain, frozen, *rest)

    def mlp(self, x, trained, frozen, rng=None, linear=None):
        """Apply the feed-forward sublayer."""
        return self.ops.mlp(x, trained, frozen, rng, linear or self.linear)


def without(node, *names):
    """Return a copy of the node without the entries of these names."""
    return {name: value for name, value in node.items() if name not in names}


def row_norms(trained, frozen):
    """Return ‖W₀ + (α/r)·BA‖ per row, (out,), without a gradient; 1 for a row of zeros."""
    factors = frozen["lora_scaling"], trained["lora_A"], trained["lora_B"]
    return _row_norms(trained_or_frozen(trained, frozen, "weight"), *factors)


@notrace_primitive
def _row_norms(w, scaling, a, b):
    w = kernels.dense(w)
    norms = np.linalg.norm(w + w.dtype.type(scaling) * (b @ a), axis=1)
    return np.where(norms == 0, norms.dtype.type(1), norms)


def bottleneck(h, trained):
    """Apply a bottleneck adapter (Houlsby et al. 2019, Sec. 2.1): (..., D) -> (..., D)."""
    # h + W_up·gelu(W_down·h + b) + b
    z = gelu(matmul(h, trained["bottleneck_down"]) + trained["bottleneck_down_bias"])
    return h + matmul(z, trained["bottleneck_up"]) + trained["bottleneck_up_bias"]


def gelu(x):
    """Compute x·Φ(x) in the tanh approximation (Hendrycks and Gimpel 2016, Sec. 2)."""
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * (x * x * x))))


def prompt(trained):
    """Return the virtual tokens (n, D) of the node `model`, or None if it has none."""
    if "prompt_encoder" not in trained:
        return trained.get("prompt_embeddings")
    # PEFT's MLP of three layers (Liu et al. 2021)
    x = trained["prompt_encoder"]["embedding"]["weight"]
    layers = trained["prompt_encoder"]["mlp_head"]
    for n in ("0", "2", "4"):  # PEFT's numbers: 1 and 3 are the ReLUs
        x = matmul(x if n == "0" else np.maximum(x, 0), layers[n]["weight"]) + layers[n]["bias"]
    return x


def prefix_length(trained):
    """Return the number of prefix keys per layer of the node `model`, 0 without a prefix."""
    first = subtree(subtree(subtree(trained, "layers"), "0"), "self_attn")
    return len(first["prefix_k"]) if "prefix_k" in first else 0


class Prefix(LayerCache):
    """Trained keys and values (n, K·hd), not rotated, that come before those of all tokens."""

    def __init__(self, k, v, cache=None):
        self.k, self.v, self.cache, self.length = k, v, cache, 0

    def extend(self, k, v, window=None):
        """Put the prefix before k and v (B, T, K, hd); return both as (B, n + T, K, hd)."""
        # [P_k; K] and [P_v; V]   (Li and Liang 2021, Sec. 4.2)
        shape, rows = (1, -1, *k.shape[2:]), len(k)
        p_k, p_v = (np.repeat(np.reshape(p, shape), rows, axis=0) for p in (self.k, self.v))
        k, v = np.concatenate([p_k, k], axis=1), np.concatenate([p_v, v], axis=1)
        return (k, v) if self.cache is None else self.cache.extend(k, v, window)

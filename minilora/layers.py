"""The operations of a Llama, one equation per function: the reference for the optimized kernels.

This file generalizes parts 3 and 4 of `lessons/00_qlora_in_one_file.py`. It adds grouped-query
attention, packed rows, a cache, a sliding window, biases, dropout, and any weight with a method
`dequantize`.

Autograd derives the backward pass. Some functions define their own gradient, because autograd's
gradient would need much more memory or time. Weights are in two nodes: `trained`, which autograd
traces, and `frozen`, which it does not. In a debugger, `print(x)` or `x._value` shows the array of
a traced x.

Letters: B batch, T time, S keys, D model width, F feed-forward, H heads, K key/value heads,
G = H/K, hd width of a head, V vocabulary, r rank. Weights are (out, in): y = x Wᵀ.
"""

from collections.abc import Callable
from typing import Any

import autograd
import autograd.numpy as np
from autograd.extend import defvjp, defvjp_argnums, primitive

from .config import ALL_LINEAR, ATTENTION, MLP, QK_NORMS, ModelConfig
from .tree import Array, Tree, check_leaves, flatten, subtree, trained_or_frozen, unflatten

Function = Callable[..., Any]
Rope = tuple[Array, Array]  # cosines and sines of the rotary angles, (B, T, hd/2) each

# --------------------------------------------------------------------------------- linear with LoRA


@primitive
def matmul(x: Array, w: Array) -> Array:
    """Compute x Wᵀ with a trained W (out, in): (..., in) -> (..., out)."""
    return _matmul(x, w.T)


# ∂L/∂x = (∂L/∂y) W        ∂L/∂W = (∂L/∂y)ᵀ x
defvjp(
    matmul, lambda y, x, w: lambda g: _matmul(g, w), lambda y, x, w: lambda g: _rows(g).T @ _rows(x)
)


@primitive
def frozen_matmul(x: Array, w: Any) -> Array:
    """Compute x Wᵀ with a frozen W (out, in), an array or quantized: (..., in) -> (..., out).

    A quantized W is dequantized for this product, and again in the backward pass (QLoRA, Sec. 3,
    Eq. 5). Autograd keeps only the quantized W.
    """
    return _matmul(x, dense(w).T)


# ∂L/∂x = (∂L/∂y) W. There is no ∂L/∂W, because W is frozen.
defvjp(frozen_matmul, lambda y, x, w: lambda g: _matmul(g, dense(w)), argnums=(0,))


@primitive
def lora_matmul(x: Array, a: Array, b: Array, scaling: float) -> Array:
    """Compute s·BAx, with the scaling s, a (r, in) and b (out, r): (..., in) -> (..., out)."""
    return _matmul(scaling * _matmul(x, a.T), b.T)


# ∂L/∂x = (s·∂L/∂y B) A    ∂L/∂A = (s·∂L/∂y B)ᵀ x    ∂L/∂B = (∂L/∂y)ᵀ (s·xAᵀ), s·xAᵀ recomputed
defvjp(
    lora_matmul,
    lambda y, x, a, b, s: lambda g: _matmul(s * _matmul(g, b), a),
    lambda y, x, a, b, s: lambda g: _rows(s * _matmul(g, b)).T @ _rows(x),
    lambda y, x, a, b, s: lambda g: _rows(g).T @ _rows(s * _matmul(x, a.T)),
)


def dense(w: Any) -> Array:
    """Return a weight as an array (out, in); a quantized weight is dequantized."""
    return w.dequantize() if hasattr(w, "dequantize") else w


def _matmul(x: Array, m: Array) -> Array:
    return (_rows(x) @ m).reshape(*x.shape[:-1], -1)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def linear(
    x: Array, trained: Tree, frozen: Tree, rng: "RowRng | None" = None,
    frozen_matmul: Function = frozen_matmul,
) -> Array:  # fmt: skip
    """Apply a projection and its adapter: (..., in) -> (..., out).

    frozen: `weight` (out, in), an array or quantized; `bias` (out,) if the model has one; with an
    adapter, `lora_scaling` and `lora_dropout`. trained: `lora_A` (r, in) and `lora_B` (out, r); a
    trained `weight` or `bias` replaces the frozen one. rng: draws the dropout mask of the adapter's
    input; None for no dropout. Raises InputError if a node has another leaf.
    """
    check_leaves(trained, ("weight", "bias", "lora_A", "lora_B"), "linear")
    check_leaves(frozen, ("weight", "bias", "lora_scaling", "lora_dropout", "lora_r"), "linear")
    # h = W₀x + (α/r)·BAx + b   (LoRA, Eq. 3, with the scaling of Sec. 4.1)
    h = matmul(x, trained["weight"]) if "weight" in trained else frozen_matmul(x, frozen["weight"])
    if "lora_A" in trained:
        z = dropout(x, frozen["lora_dropout"], rng)
        h = h + lora_matmul(z, trained["lora_A"], trained["lora_B"], frozen["lora_scaling"])
    if "bias" in trained or "bias" in frozen:
        h = h + trained_or_frozen(trained, frozen, "bias")
    return h


class RowRng:
    """Random numbers for dropout, from one generator per row of a batch.

    seeds: per row, a list of integers. The mask of a row depends only on its seed, so it is the
    same for any number of cores, any split into micro-batches, and any padding.
    """

    def __init__(self, seeds: list[list[int]]) -> None:
        self.seeds = seeds

    def child(self, number: int) -> "RowRng":
        """Return the generators of the layer or projection with this number."""
        return RowRng([[*seed, number] for seed in self.seeds])

    def random(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Draw an array (B, …) from [0, 1), each row token by token: padding changes nothing."""
        rows = [np.random.default_rng(seed).random(shape[1:], dtype) for seed in self.seeds]
        return np.stack(rows)


def row_rng(rng: Any, rows: int) -> RowRng | None:
    """Return `rng` if it is a RowRng or None; otherwise draw one seed per row from it."""
    if rng is None or isinstance(rng, RowRng):
        return rng
    return RowRng(np.random.default_rng(rng).integers(2**63, size=(rows, 1)).tolist())


def dropout(x: Array, p: float, rng: Any) -> Array:
    """Compute x∘m/(1−p) with m ~ Bernoulli(1−p), whose mean is x; return x if rng is None."""
    if rng is None or p == 0:
        return x
    return x * ((rng.random(x.shape, dtype=np.float32) >= p) / np.float32(1 - p)).astype(x.dtype)


# ---------------------------------------------------------------------------- embedding and norm


def embed(
    trained: Tree, frozen: Tree, tokens: Array, segment_starts: Array, past: int = 0
) -> tuple[Array, Array, Array]:
    """Look up token ids (B, T): states (B, T, D), positions (B, T), `segment_starts` (B, T).

    trained, frozen: the nodes `model`. A position counts from the start of the token's segment (its
    example). past: the number of tokens in the cache. `segment_starts` is returned because a
    trained prompt (see `methods`) makes it longer.
    """
    check_leaves(trained, ("embed_tokens", "layers", "norm"), "embed")
    node = subtree(trained, "embed_tokens")
    check_leaves(node, ("weight",), "embed")
    weight = trained_or_frozen(node, frozen["embed_tokens"], "weight")
    return weight[tokens], past + np.arange(tokens.shape[1]) - segment_starts, segment_starts


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale x (..., D) to a root mean square of 1, then multiply it by weight (D,)."""
    # y = x / √(mean(x²) + ε) ∘ w   (Zhang and Sennrich 2019, Eq. 4)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def norm_weight(trained: Tree, frozen: Tree, name: str) -> Array:
    """Return the weight (D,) of a norm, trained or frozen."""
    node = subtree(trained, name)
    check_leaves(node, ("weight",), name)
    return trained_or_frozen(node, frozen[name], "weight")


# ------------------------------------------------------------------------------ rotary positions


def rope_cos_sin(positions: Array, model_config: ModelConfig, dtype: Any = np.float32) -> Rope:
    """Compute cosines and sines of the rotary angles, (..., T, hd/2) each; positions (..., T)."""
    # angle(t, j) = t·θ_base^(−2j/hd)   (RoFormer, Sec. 3.2.2)
    angles = positions[..., None].astype(np.float32) * rope_frequencies(model_config)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rope_frequencies(model_config: ModelConfig) -> Array:
    """Compute the rotary frequencies (hd/2,) float32, with the same bits as torch."""
    # torch rounds a float64 power once. NumPy's float32 power differs in the last bit of every
    # sixth value, which changes a cosine at position 1,000 by 3e-5.
    hd = model_config.head_dim
    exponents = np.arange(0, hd, 2, dtype=np.float32) / np.float32(hd)
    powers = np.float64(model_config.rope_theta) ** exponents.astype(np.float64)
    frequencies = np.float32(1) / powers.astype(np.float32)
    scaling = model_config.rope_scaling
    return frequencies if scaling is None else scale_rope(frequencies, scaling)


def scale_rope(frequencies: Array, scaling: dict[str, Any]) -> Array:
    """Lower the rotary frequencies for contexts longer than those of pretraining."""
    divided = frequencies / np.float32(scaling["factor"])
    if scaling["rope_type"] == "linear":  # all frequencies are divided (Chen et al. 2023)
        return divided
    # llama3: only the low frequencies are divided, with a linear transition (as in Llama 3.1)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)  # 0: divided, 1: unchanged
    return ((1 - kept) * divided + kept * frequencies).astype(np.float32)


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs of elements (j, j + hd/2) of x (B, T, heads, hd); cos, sin: (B, T, hd/2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[..., None, :], sin[..., None, :]  # the same for every head
    # (a, b) → (a·cos − b·sin, b·cos + a·sin)   (RoFormer, Eq. 34; pairs as in Hugging Face)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


# ------------------------------------------------------------------------------------- attention


class LayerCache:
    """The rotated keys and the values of earlier tokens in one layer: all, or those of a window."""

    k: Array  # (B, at most length, K, hd)
    v: Array
    length = 0  # counts all earlier tokens

    def extend(self, k: Array, v: Array, window: int | None = None) -> tuple[Array, Array]:
        """Append k and v (B, T, K, hd); return the earlier and the new ones, (B, S, K, hd) each."""
        length = self.length + k.shape[1]
        if self.length:
            k, v = np.concatenate([self.k, k], axis=1), np.concatenate([self.v, v], axis=1)
        self.k, self.v, self.length = k, v, length
        if window is not None:  # no later token sees the keys before these
            self.k, self.v = k[:, -window:], v[:, -window:]
        return k, v


def attention(
    q: Array, k: Array, v: Array, rope: Rope, segment_starts: Array,
    cache: LayerCache | None = None, window: int | None = None,
) -> Array:  # fmt: skip
    """Apply causal grouped-query attention: q (B, T, H·hd), k and v (B, T, K·hd) -> like q.

    rope: cos and sin from `rope_cos_sin`. segment_starts (B, T): the first token that each token
    sees, which separates packed examples. cache: keys and values of earlier tokens, which come
    before k and v; every token sees them, up to the window. window: the number of keys that a token
    sees at most, its own included (Mistral); None for all.
    """
    hd = 2 * rope[0].shape[-1]
    B, T, _ = q.shape
    q, k, v = (np.reshape(x, (B, T, -1, hd)) for x in (q, k, v))
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    if cache is not None:
        k, v = cache.extend(k, v, window)
    S, K = k.shape[1], k.shape[2]
    q = np.reshape(q, (B, T, K, -1, hd))
    scores = np.einsum("btkgd,bskd->bkgts", q, k) / hd**0.5  # (B, K, G, T, S)
    mask = attention_mask(segment_starts, S, window)[:, None, None]
    scores = np.where(mask, scores, -np.inf)
    # attention = softmax(QKᵀ/√hd + mask) V   (Vaswani et al. 2017, Eq. 1)
    p = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    p = p / np.sum(p, axis=-1, keepdims=True)
    return np.reshape(np.einsum("bkgts,bskd->btkgd", p, v), (B, T, -1))


def attention_mask(segment_starts: Array, S: int, window: int | None = None) -> Array:
    """Return booleans (B, T, S): which of the S keys each of the last T tokens sees.

    Token t sees the cached keys (the first S − T), and the keys from the start of its segment up to
    its own. With a window, it sees only those of them that are among the last `window` keys.
    """
    past = S - segment_starts.shape[1]
    s, t = np.arange(S), np.arange(past, S)
    seen = ((s < past) | (s >= segment_starts[..., None] + past)) & (s <= t[:, None])
    return seen if window is None else seen & (s > t[:, None] - window)


def self_attention(
    x: Array, trained: Tree, frozen: Tree, rope: Rope, segment_starts: Array,
    cache: LayerCache | None = None, rng: RowRng | None = None,
    eps: float = 1e-6, window: int | None = None,
    linear: Function = linear, attention: Function = attention, rms_norm: Function = rms_norm,
) -> Array:  # fmt: skip
    """Apply the attention sublayer: (B, T, D) -> (B, T, D).

    trained, frozen: the nodes `self_attn`, with `q_proj`, `k_proj`, `v_proj` and `o_proj`, and in
    Qwen3 `q_norm` and `k_norm` (hd,). rope, segment_starts, cache, window: see `attention`; rng:
    see `linear`; eps: the ε of the norms. The three functions can be replaced.
    """
    check_leaves(frozen, (*ATTENTION, *QK_NORMS), "self_attention")
    check_leaves(trained, tuple(frozen), "self_attention")
    q, k, v = (linear(x, *projection(trained, frozen, rng, n)) for n in ATTENTION[:3])
    if "q_norm" in frozen:  # each head is normalized before the rotation
        weights = (norm_weight(trained, frozen, name) for name in QK_NORMS)
        q, k = (norm_heads(x, w, eps, rms_norm) for x, w in zip((q, k), weights))
    mixed = attention(q, k, v, rope, segment_starts, cache, window)
    return linear(mixed, *projection(trained, frozen, rng, "o_proj"))


def norm_heads(x: Array, weight: Array, eps: float, rms_norm: Function = rms_norm) -> Array:
    """Normalize each head of x (B, T, heads·hd) with the same weight (hd,), as Qwen3 does."""
    heads = np.reshape(x, (*x.shape[:-1], -1, weight.shape[0]))
    return np.reshape(rms_norm(heads, weight, eps), x.shape)


def projection(trained: Tree, frozen: Tree, rng: RowRng | None, name: str) -> tuple[Any, ...]:
    """Return (trained node, frozen node, rng) of one projection: arguments of `linear`."""
    own_rng = None if rng is None else rng.child(ALL_LINEAR.index(name))
    return subtree(trained, name), frozen[name], own_rng


# ------------------------------------------------------------------------------------------- MLP


def swiglu(gate: Array, up: Array) -> Array:
    """Compute the hidden units of the MLP, (..., F) like both inputs (Shazeer 2020, Eq. 6)."""
    # y = gate·σ(gate) ∘ up,  σ(a) = e^(−log(1 + e^−a)), which never overflows
    return gate * np.exp(-np.logaddexp(0, -gate)) * up


def mlp(
    x: Array, trained: Tree, frozen: Tree, rng: RowRng | None = None,
    linear: Function = linear, swiglu: Function = swiglu,
) -> Array:  # fmt: skip
    """Apply the feed-forward sublayer: (B, T, D) -> (B, T, D); trained, frozen: the nodes `mlp`."""
    check_leaves({**trained, **frozen}, MLP, "mlp")
    gate, up = (linear(x, *projection(trained, frozen, rng, n)) for n in ("gate_proj", "up_proj"))
    return linear(swiglu(gate, up), *projection(trained, frozen, rng, "down_proj"))


# ----------------------------------------------------------------------------------------- the loss


def cross_entropy(hidden: Array, head: Any, targets: Array, mask: Array) -> Any:
    """Compute the mean negative log-likelihood, in nats, of the targets with mask 1.

    hidden: (B, T, D), head: (V, D), targets: (B, T) token ids, mask: (B, T) 0 or 1.
    """
    logits = matmul(hidden, dense(head))
    logits = logits - np.max(logits, axis=-1, keepdims=True)
    # L = −Σ m·log softmax(h Eᵀ)[target] / Σ m
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    b, t = np.indices(targets.shape)
    return np.sum(mask * (log_z - logits[b, t, targets])) / np.sum(mask)


# ------------------------------------------------------------------------------------- autograd


def value_and_grad(f: Function) -> Function:
    """Return a function that computes f(tree, …) and its gradient, a tree with the same paths."""

    # autograd's function of this name would trace each access to a dict; this one traces the leaves
    def evaluate(tree: Tree, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        leaves = flatten(tree)

        def of_leaves(arrays: Any) -> Any:
            return f(unflatten(dict(zip(leaves, arrays))), *args, **kwargs)

        value, grads = autograd.value_and_grad(of_leaves)(tuple(leaves.values()))
        return value, unflatten(dict(zip(leaves, grads)))

    return evaluate


def checkpoint(f: Function, x: Array, trained: Tree) -> Array:
    """Compute f(x, trained), and recompute it in the backward pass (Chen et al. 2016)."""
    leaves = flatten(trained)  # autograd's own `checkpoint` would recompute f once per leaf

    def of_arrays(x: Array, *arrays: Array) -> Array:
        return f(x, unflatten(dict(zip(leaves, arrays))))

    return _checkpoint(of_arrays, x, *leaves.values())


@primitive
def _checkpoint(f: Function, *arrays: Array) -> Array:
    return f(*arrays)


def _checkpoint_vjp(argnums: Any, y: Array, args: Any, kwargs: Any) -> Function:
    f, *inputs = args

    def of_traced(traced: Any) -> Array:  # x is untraced below the first adapter
        arrays = list(inputs)
        for n, value in zip(argnums, traced):
            arrays[n - 1] = value
        return f(*arrays)

    return lambda g: autograd.make_vjp(of_traced)(tuple(inputs[n - 1] for n in argnums))[0](g)


defvjp_argnums(_checkpoint, _checkpoint_vjp)

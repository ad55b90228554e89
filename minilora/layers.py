"""The operations of a Llama, one equation per function: the reference for the optimized kernels.

This file generalizes parts 3 and 4 of `lessons/00_qlora_in_one_file.py`. It adds grouped-query
attention, packed rows (several examples in a row), a cache, a sliding window, biases, dropout, and
any weight with a method `dequantize`. The branches on `embedding_scale`, `norm_offset`, `qk_norm`,
`query_pre_attn_scalar`, `hidden_act` and four norms are for Qwen and Gemma (`config.ModelConfig`):
a Llama takes none. `HOOKS`, `PROMPTS` and `PREFIX` are for other methods than LoRA, which
`minilora.methods` adds.

Autograd derives the backward pass, for the parameters that it traces. Some functions define their
own gradient, because autograd's gradient would need much more memory or time. In a debugger,
`print(x)` or `x._value` shows the array of a traced x.

An equation takes arrays. A layer takes (x, node, ctx): its input, its node of the parameters, and a
`Context` (the settings, the operations, and what is known of the tokens). The parameters are one
tree, the base with the adapter laid over it: see `tree.overlay`.

Letters: B batch, T time, S keys, D model width, F feed-forward, H heads, K key/value heads,
G = H/K, hd width of a head, V vocabulary, r rank. Weights are (out, in): y = x Wᵀ.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import autograd
import autograd.numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import isbox

from .config import ALL_LINEAR, ModelConfig
from .rounding import nearest
from .tree import Array, Tree, arrays, flatten, overlay, unflatten, without

Function = Callable[..., Any]
Rope = tuple[Array, Array]  # cosines and sines of the rotary angles, (B, T, hd/2) each
# A module with `linear`, `attention`, `rms_norm`, `swiglu`, `cross_entropy`, `dense`, `THREADS` and
# `parallel_map`: this one, or the optimized `kernels.fused`.
Ops = Any
# what LoRA adds to a projection; lora_start: the initialization that has changed the frozen weight
LORA = ("lora_A", "lora_B", "lora_scaling", "lora_dropout", "lora_start")
# The reference computes the rows of a batch in one piece, as it is read.
THREADS = 1
parallel_map = map

# --------------------------------------------------------------------------------- linear with LoRA


@primitive
def matmul(x: Array, w: Any) -> Array:
    """Compute x Wᵀ with W (out, in), an array or quantized: (..., in) -> (..., out).

    A dense W may be trained or frozen. A stored W, quantized or in 16 bits, is always frozen; it is
    decoded for this product, and again in the backward pass. Autograd keeps only its codes. Both
    operands are rounded to the `compute_dtype` of a stored W; the sums are in float32.
    """
    # Y = X_bf16 · dequantize(W)_bf16   (QLoRA, Sec. 3, Eq. 5; here without rounding by default)
    return _matmul(operand(x, w), operand(dense(w), w).T)


# ∂L/∂x = (∂L/∂y) W        ∂L/∂W = (∂L/∂y)ᵀ x, which autograd asks for only if W is trained
defvjp(
    matmul,
    lambda y, x, w: lambda g: _matmul(operand(g, w), operand(dense(w), w)),
    lambda y, x, w: lambda g: _rows(g).T @ _rows(x),
)


def dense(w: Any) -> Array:
    """Return a weight as an array (out, in); a stored weight is decoded."""
    return w.dequantize() if hasattr(w, "dequantize") else w


def operand(x: Array, w: Any) -> Array:
    """Return x as a product with w reads it: rounded to the `compute_dtype` of a stored w."""
    return nearest(x, getattr(w, "compute_dtype", "float32"))


def _matmul(x: Array, m: Array) -> Array:
    # one product of two matrices; x @ m would compute one per row of the batch
    return (_rows(x) @ m).reshape(*x.shape[:-1], -1)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def linear(x: Array, node: Tree, rng: "RowRng | None" = None, matmul: Function = matmul) -> Array:
    """Apply a projection and its adapter: (..., in) -> (..., out).

    node: `weight` (out, in), an array or quantized; `bias` (out,) if the projection has one; with
    an adapter `lora_A` (r, in), `lora_B` (out, r), `lora_scaling` and `lora_dropout`. rng: draws
    the dropout mask of the adapter's input; None for no dropout. matmul: the product with the
    weight; the kernels have their own.
    """
    # h = W₀x + (α/r)·BAx + b   (LoRA, Eq. 3, with the scaling of Sec. 4.1)
    h = matmul(x, node["weight"])
    if "lora_A" in node:
        z = dropout(x, node["lora_dropout"], rng)
        h = h + lora_matmul(z, node["lora_A"], node["lora_B"], node["lora_scaling"])
    return h + node["bias"] if "bias" in node else h


def lora_matmul(x: Array, a: Array, b: Array, scaling: float) -> Array:
    """Compute s·BAx, with the scaling s, a (r, in) and b (out, r): (..., in) -> (..., out)."""
    return matmul(scaling * matmul(x, a), b)


def merge_lora(node: Tree) -> Tree:
    """Return the node of a projection with its LoRA in the weight: a dense (out, in) float32."""
    weight = dense(node["weight"])
    if "lora_A" in node:
        # W' = W₀ + (α/r)·BA   (LoRA, Sec. 4)
        weight = weight + lora_delta(node)
    return {"weight": weight, **without(node, "weight", *LORA)}


def lora_delta(node: Tree) -> Array:
    """Compute ΔW = (α/r)·BA of one projection: (out, in) float32."""
    return np.float32(node["lora_scaling"]) * (node["lora_B"] @ node["lora_A"])


class RowRng(NamedTuple):
    """Random numbers for dropout, from one generator per row of a batch.

    seeds: per row, a list of integers. The mask of a row depends only on its seed, so it is the
    same for any number of cores, any split into micro-batches, and any padding.
    """

    seeds: list[list[int]]

    def child(self, number: int) -> "RowRng":
        """Return the generators of the layer or projection with this number."""
        return RowRng([[*seed, number] for seed in self.seeds])

    def random(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Draw an array (B, …) from [0, 1).

        The numbers of a row are drawn in the order of its tokens, so padding does not change them.
        """
        rows = [np.random.default_rng(seed).random(shape[1:], dtype) for seed in self.seeds]
        return np.stack(rows)


def row_rng(rng: Any, rows: int) -> RowRng | None:
    """Return `rng` if it is a RowRng or None; otherwise draw one seed per row from it."""
    if rng is None or isinstance(rng, RowRng):
        return rng
    return RowRng(np.random.default_rng(rng).integers(2**63, size=(rows, 1)).tolist())


def dropout(x: Array, p: float, rng: Any) -> Array:
    """Compute x∘m/(1−p), m ~ Bernoulli(1−p), whose expectation is x; return x if rng is None."""
    if rng is None or p == 0:
        return x
    return x * ((rng.random(x.shape, dtype=np.float32) >= p) / np.float32(1 - p)).astype(x.dtype)


# ---------------------------------------------------------------------------- embedding and norm


def embed(tokens: Array, node: Tree, model_config: ModelConfig) -> Array:
    """Look up token ids (B, T) in the embedding of the node `model`: states (B, T, D)."""
    x = node["embed_tokens"]["weight"][tokens]
    if model_config.embedding_scale != 1:
        x = x * x.dtype.type(model_config.embedding_scale)
    return x


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale x (..., D) to a root mean square of 1, then multiply it by weight (D,)."""
    # y = x / √(mean(x²) + ε) ∘ w   (Zhang and Sennrich 2019, Eq. 4)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def norm(x: Array, node: Tree, name: str | None, ctx: "Context") -> Array:
    """Apply the norm of this name in a node; return x if the name is None."""
    if name is None:
        return x
    weight = node[name]["weight"]
    if ctx.config.norm_offset:
        weight = weight + ctx.config.norm_offset
    return ctx.ops.rms_norm(x, weight, ctx.config.rms_norm_eps)


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
            self.k = k[:, -window:]
            self.v = v[:, -window:]
        return k, v


def attention(
    q: Array,
    k: Array,
    v: Array,
    rope: Rope,
    segment_starts: Array,
    cache: LayerCache | None = None,
    window: int | None = None,
) -> Array:
    """Apply causal grouped-query attention: q (B, T, H·hd), k and v (B, T, K·hd) -> like q.

    rope: cos and sin from `rope_cos_sin`. segment_starts (B, T): the first token that each token
    sees, which separates packed examples. cache: keys and values of earlier tokens, which come
    before k and v; every token sees them, up to the window. window: the number of keys that a token
    sees at most, its own included (Mistral); None for all.
    """
    hd = 2 * rope[0].shape[-1]  # an angle per pair
    B, T, _ = q.shape
    q, k, v = (np.reshape(x, (B, T, -1, hd)) for x in (q, k, v))
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    if cache is not None:
        k, v = cache.extend(k, v, window)
    S, K = k.shape[1], k.shape[2]
    q, k, v = (group_heads(x, K) for x in (q, k, v))
    scores = q @ np.swapaxes(k, -1, -2) / hd**0.5  # (B, K, G, T, S); einsum is slower
    mask = attention_mask(segment_starts, S, window)[:, None, None]
    scores = np.where(mask, scores, -np.inf)
    # attention = softmax(QKᵀ/√hd + mask) V   (Vaswani et al. 2017, Eq. 1)
    p = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    p = p / np.sum(p, axis=-1, keepdims=True)
    return np.reshape(np.transpose(p @ v, (0, 3, 1, 2, 4)), (B, T, -1))


def group_heads(x: Array, K: int) -> Array:
    """Reorder (B, T, H, hd) to (B, K, G, T, hd): G = H/K neighbouring heads share a head of k."""
    B, T, _, hd = x.shape
    return np.transpose(np.reshape(x, (B, T, K, -1, hd)), (0, 2, 3, 1, 4))


def attention_mask(segment_starts: Array, S: int, window: int | None = None) -> Array:
    """Return booleans (B, T, S): which of the S keys each of the last T tokens sees.

    Token t sees the cached keys (the first S − T), and the keys from the start of its segment up to
    its own. With a window, it sees only those of them that are among the last `window` keys.
    """
    cached = S - segment_starts.shape[1]  # with a window, fewer than `cache.length`
    s, t = np.arange(S), np.arange(cached, S)[:, None]
    starts = segment_starts[..., None]
    seen = ((s < cached) | (s >= starts + cached)) & (s <= t)
    if window is None:
        return seen
    # the cached keys come before each segment: t's own segment begins `starts` tokens later
    earlier = np.where(s < cached, starts, 0)
    return seen & (t - earlier - s < window)


# --------------------------------------------------------------------------------- hidden units


def swiglu(gate: Array, up: Array) -> Array:
    """Compute the hidden units of the MLP, (..., F) like both inputs (Shazeer 2020, Eq. 6)."""
    # y = gate·σ(gate) ∘ up,  σ(a) = e^(−log(1 + e^−a)), which never overflows
    return gate * np.exp(-np.logaddexp(0, -gate)) * up


def gelu(x: Array) -> Array:
    """Compute x·Φ(x) in the tanh approximation (Hendrycks and Gimpel 2016, Sec. 2)."""
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * (x * x * x))))


# ------------------------------------------------------------------------------------ the layers


class Context(NamedTuple):
    """What a layer reads besides its input and its parameters."""

    config: ModelConfig  # of the layer: see `ModelConfig.of_layers`
    ops: Ops
    rope: Rope  # of the positions of the tokens
    segment_starts: Array  # (B, T)
    cache: LayerCache | None = None  # of the layer
    rng: RowRng | None = None  # for dropout


def decoder_layer(x: Array, node: Tree, ctx: Context) -> Array:
    """Apply one layer to x (B, T, D): add attention, then the MLP."""
    before_attention, after_attention, before_mlp, after_mlp = ctx.config.norms
    h = norm(x, node, before_attention, ctx)
    h = self_attention(h, node["self_attn"], ctx)
    x = x + norm(h, node, after_attention, ctx)
    h = norm(x, node, before_mlp, ctx)
    h = mlp(h, node["mlp"], ctx)
    return x + norm(h, node, after_mlp, ctx)


def self_attention(x: Array, node: Tree, ctx: Context) -> Array:
    """Apply the attention sublayer: (B, T, D) -> (B, T, D)."""
    config = ctx.config
    q = project(x, node, "q_proj", ctx)
    k = project(x, node, "k_proj", ctx)
    v = project(x, node, "v_proj", ctx)
    if config.qk_norm:
        q, k = norm_heads(q, node, "q_norm", ctx), norm_heads(k, node, "k_norm", ctx)
    if config.query_pre_attn_scalar is not None:  # `attention` divides by √head_dim
        q = q * (config.head_dim / config.query_pre_attn_scalar) ** 0.5
    cache = with_prefix(node, ctx, len(x)) if prefix_length(node) else ctx.cache
    window = config.sliding_window
    mixed = ctx.ops.attention(q, k, v, ctx.rope, ctx.segment_starts, cache, window)
    return project(mixed, node, "o_proj", ctx)


def norm_heads(x: Array, node: Tree, name: str, ctx: Context) -> Array:
    """Normalize each head of x (B, T, heads·hd) with the same weight (hd,)."""
    heads = np.reshape(x, (*x.shape[:-1], -1, ctx.config.head_dim))
    return np.reshape(norm(heads, node, name, ctx), x.shape)


def mlp(x: Array, node: Tree, ctx: Context) -> Array:
    """Apply the feed-forward sublayer: (B, T, D) -> (B, T, D)."""
    gate, up = project(x, node, "gate_proj", ctx), project(x, node, "up_proj", ctx)
    hidden = ctx.ops.swiglu(gate, up) if ctx.config.hidden_act == "silu" else gelu(gate) * up
    return project(hidden, node, "down_proj", ctx)


def project(x: Array, node: Tree, name: str, ctx: Context) -> Array:
    """Apply the projection of this name in a sublayer's node, with its adapters."""
    rng = ctx.rng.child(ALL_LINEAR.index(name)) if ctx.rng else None
    linear = ctx.ops.linear
    for hook in hooks_of(node[name]):
        linear = partial(hook.apply, linear)
    return linear(x, node[name], rng)


# ----------------------------------------------------------------------------------------- the loss


def cross_entropy(hidden: Array, head: Any, targets: Array, mask: Array) -> Any:
    """Compute the mean negative log-likelihood, in nats, of the targets with mask 1.

    hidden: (B, T, D), head: (V, D), targets: (B, T) token ids, mask: (B, T) 0 or 1.
    """
    logits = matmul(hidden, head)
    logits = logits - np.max(logits, axis=-1, keepdims=True)
    # L = −Σ m·log softmax(h Eᵀ)[target] / Σ m
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    b, t = np.indices(targets.shape)
    return np.sum(mask * (log_z - logits[b, t, targets])) / np.sum(mask)


# ------------------------------------------------------------------------------------- autograd


def value_and_grad(f: Function) -> Function:
    """Return a function that computes f(tree, …) and its gradient, a tree of arrays like `tree`."""

    # autograd differentiates with respect to one argument, and describes all arrays of a tuple at
    # each access to one of them. So the argument is a number, and each array keeps its gradient.
    def of_tree(tree: Tree, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        leaves = flatten(arrays(tree))
        grads: dict[str, Array] = {}

        def of_number(zero: Any) -> Any:
            traced = {path: _traced(zero, leaf, path, grads) for path, leaf in leaves.items()}
            return f(overlay(tree, unflatten(traced)), *args, **kwargs)

        value, _ = autograd.value_and_grad(of_number)(0.0)
        zeros = {path: np.zeros_like(leaf) for path, leaf in leaves.items()}
        return value, unflatten(zeros | grads)

    return of_tree


@primitive
def _traced(zero: float, leaf: Array, path: str, grads: Tree) -> Array:
    return leaf


def _keep_gradient(y: Array, zero: float, leaf: Array, path: str, grads: Tree) -> Function:
    def backward(g: Array) -> float:
        grads[path] = np.asarray(g, leaf.dtype)  # some of the plain operations compute in float64
        return 0.0

    return backward


defvjp(_traced, _keep_gradient)


def checkpoint(f: Function, x: Array, node: Tree) -> Array:
    """Compute f(x, node), and recompute it in the backward pass (Chen et al. 2016).

    The arrays inside f are not kept: a step needs less memory and more time. Dropout draws the same
    mask again, because a RowRng has no state.
    """
    # A primitive gives gradients only to its arguments, so the leaves that autograd traces (boxes)
    # are passed as one, a tuple. `autograd.checkpoint` has an argument per leaf, and recomputes f
    # once for each.
    inputs = {"x": x, "node": node}
    traced = {path: leaf for path, leaf in flatten(inputs).items() if isbox(leaf)}

    def of_leaves(leaves: Any) -> Any:
        tree = overlay(inputs, unflatten(dict(zip(traced, leaves))))
        return f(tree["x"], tree["node"])

    # autograd traces its own kind of tuple as one argument
    return _checkpoint(of_leaves, autograd.builtins.tuple(traced.values()))


@primitive
def _checkpoint(f: Function, leaves: Any) -> Array:
    return f(leaves)


# None: f has no gradient. make_vjp(f)(leaves) computes f again, recorded this time, and returns
# (a function from ∂L/∂y to ∂L/∂leaves, y).
defvjp(_checkpoint, None, lambda y, f, leaves: lambda g: autograd.make_vjp(f)(leaves)[0](g))


# ------------------------------------------------------------------------------- other methods


class Hook(NamedTuple):
    """How a method other than LoRA acts at a projection: the functions that read its entries."""

    entries: tuple[str, ...]  # of a projection; the first one tells that the method is used there
    apply: Function  # apply(inner, x, node, rng) -> y, around inner(x, node, rng)
    merge: Function | None = None  # merge(inner, node) -> node, around inner(node)


# `minilora.methods.registry` fills these tables.
HOOKS: list[Hook] = []  # in the order in which they are applied and merged
PROMPTS: dict[str, Function] = {}  # {entry of the node `model`: f(node) -> virtual tokens (n, D)}
PREFIX = ("prefix_k", "prefix_v")  # entries of `self_attn`: (n, K·hd), trained keys and values


def hooks_of(node: Tree) -> list[Hook]:
    """Return the hooks of the methods that are used at a projection."""
    return [hook for hook in HOOKS if hook.entries[0] in node]


def virtual_tokens(node: Tree) -> Array | None:
    """Return the trained virtual tokens (n, D) of the node `model`, or None."""
    for entry, tokens_of in PROMPTS.items():
        if entry in node:
            return tokens_of(node)
    return None


def prefix_length(node: Tree) -> int:
    """Return the number of trained keys in the node `self_attn`."""
    return len(node[PREFIX[0]]) if PREFIX[0] in node else 0


def with_prefix(node: Tree, ctx: Context, rows: int) -> LayerCache:
    """Return the cache of `ctx`, or a new one; a trained prefix comes before the first token."""
    cache = ctx.cache or LayerCache()
    if not cache.length:
        # [P_k; K] and [P_v; V]   (Li and Liang 2021, Sec. 4.2); P_k is not rotated
        shape = (1, -1, ctx.config.num_key_value_heads, ctx.config.head_dim)
        k, v = (np.repeat(np.reshape(node[name], shape), rows, axis=0) for name in PREFIX)
        cache.extend(k, v)
    return cache


def added_entries(name: str) -> tuple[str, ...]:
    """Return the entries that an adapter may add to a node of this name; "" is the root."""
    if name in ALL_LINEAR:
        return ("bias", *LORA, *(entry for hook in HOOKS for entry in hook.entries))
    # the head of a base may be tied to the embedding
    others = {"": ("lm_head",), "lm_head": ("weight",), "model": (*PROMPTS,), "self_attn": PREFIX}
    return others.get(name, ())

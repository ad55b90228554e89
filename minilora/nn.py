"""The operations of a Llama block, one equation a function: the text that `fused.py` must equal.

Part 4 of `lessons/00_qlora_in_one_file.py`, made general: grouped-query attention, packed rows,
caches, prefixes, and other methods than LoRA.

Everything here is `autograd.numpy`, so a debugger shows plain arrays and autograd derives the
backward pass. A model's weights come as two nodes: `trained`, which autograd follows, and
`frozen`, which it never sees. The names of the leaves say what each function does with them.

Letters: B batch, T time, S keys, D model width, F feed-forward, H heads, K key/value heads,
G = H/K, hd width of a head, V vocabulary, r rank. Weights are (out, in): y = x Wᵀ.
"""

import autograd.numpy as np

from .methods.siblings import bottleneck, row_norms
from .products import dense, lowrank, matmul, product
from .tree import leaf


def linear(x, trained, frozen, rng=None, frozen_product=None):
    """A projection with whatever is trained on it.

    x: (..., in) -> (..., out). Leaves of `frozen`: `weight` (out, in) dense or quantized, `bias`,
    and beside an adapter its `lora_scaling` and `lora_dropout`. Leaves of `trained`: `lora_A`
    (r, in) and `lora_B` (out, r) add a low-rank update, `bias` and `weight` take the place of the
    frozen ones; `lora_magnitude_vector` (out,) scales the rows, `ia3_l` the input if (1, in) or
    the output if (out, 1); `bottleneck_down` and its like come last. `lora_stack` of `frozen` holds
    adapters that are frozen too (`compose.stack`). `rng` draws the dropout mask of the adapter's
    branch; None means no dropout. `frozen_product` takes the place of `product`.
    """
    if "ia3_l" in trained and trained["ia3_l"].shape[0] == 1:
        x = x * trained["ia3_l"][0]  # W_down(l_ff ∘ h)   (IA³, Liu et al. 2022, Sec. 3.3)
    # h = W₀x + (α/r)·BAx + b   (LoRA, Eq. 3)
    if "weight" in trained:
        h = matmul(x, trained["weight"])
    else:
        h = (frozen_product or product)(x, frozen["weight"])
    for under in frozen.get("lora_stack", {}).values():
        h = h + lowrank(x, under["lora_A"], under["lora_B"], under["lora_scaling"])
    if "lora_A" in trained:
        z = dropout(x, frozen["lora_dropout"], rng)
        h = h + lowrank(z, trained["lora_A"], trained["lora_B"], frozen["lora_scaling"])
    if "lora_magnitude_vector" in trained:
        # h = m∘h/‖W₀ + (α/r)·BA‖, the norm of each row a constant   (DoRA, Eqs. 5 and 11)
        h = h * (trained["lora_magnitude_vector"] / row_norms(trained, frozen))
    if "bias" in trained or "bias" in frozen:
        h = h + leaf(trained, frozen, "bias")
    if "ia3_l" in trained and trained["ia3_l"].shape[0] > 1:
        h = h * trained["ia3_l"][:, 0]  # l_k ∘ K and l_v ∘ V
    return bottleneck(h, trained) if "bottleneck_down" in trained else h


class RowRng:
    """Random numbers for dropout: each row of a batch draws from a generator of its own.

    seeds: a list of whole numbers for each row. A row's mask depends on its seed alone, so it is
    the same for any number of cores, any split into micro-batches, and any padding.
    """

    def __init__(self, seeds):
        self.seeds = seeds

    def child(self, number):
        """The generators of a layer or a projection, by its number."""
        return RowRng([[*seed, number] for seed in self.seeds])

    def random(self, shape, dtype):
        """Uniform numbers in [0, 1) of a shape (B, …); token after token, so padding comes last."""
        rows = [np.random.default_rng(seed).random(shape[1:], dtype) for seed in self.seeds]
        return np.stack(rows)


def row_rng(rng, rows):
    """Return a RowRng or None as it is; from a NumPy generator draw a seed for each row."""
    if rng is None or isinstance(rng, RowRng):
        return rng
    return RowRng(rng.integers(2**63, size=(rows, 1)).tolist())


def dropout(x, p, rng):
    """x∘m/(1−p), m ~ Bernoulli(1−p), so the mean stays; x itself without an rng."""
    if rng is None or p == 0:
        return x
    return x * ((rng.random(x.shape, dtype=np.float32) >= p) / np.float32(1 - p)).astype(x.dtype)


def rms_norm(x, weight, eps):
    """(Zhang and Sennrich 2019, Eq. 4) over the last axis; weight (D,)."""
    # y = x / √(mean(x²) + ε) ∘ w
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def swiglu(gate, up):
    """(Shazeer 2020, Eq. 6): the hidden units of the feed-forward layer."""
    # y = gate·σ(gate) ∘ up,  σ(a) = e^(−log(1 + e^−a)), which never overflows
    return gate * np.exp(-np.logaddexp(0, -gate)) * up


def down(gate, up, trained, frozen, rng=None):
    """The feed-forward layer's second half: `linear` of its hidden units."""
    return linear(swiglu(gate, up), trained, frozen, rng)


def rotation(positions, config, dtype=np.float32):
    """cos and sin of the rotary angles: two arrays (..., T, hd/2) for positions (..., T)."""
    # angle(t, j) = t·θ_base^(−2j/hd)   (RoFormer, Sec. 3.2.2)
    angles = positions[..., None].astype(np.float32) * frequencies(config)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def frequencies(config):
    """The rotary frequencies in float32, as checkpoints are trained with: (hd/2,).

    The power is rounded once, from float64, as torch's float32 power is. NumPy's own is an ulp off
    in every sixth value, and at position 1,000 an ulp is 3e-5 in a cosine.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.float64(config.rope_theta) ** exponents.astype(np.float64)
    base = np.float32(1) / powers.astype(np.float32)
    return base if config.rope_scaling is None else stretched(base, config.rope_scaling)


def stretched(freq, scaling):
    """Frequencies for contexts longer than pretrained ones: divided by `factor`.

    `linear` divides all of them (Chen et al. 2023); `llama3` only the slow ones, with a ramp
    between (Llama 3.1's published parameters).
    """
    slow = freq / np.float32(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return slow
    turns = scaling["original_max_position_embeddings"] * freq / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    fast = np.clip((turns - low) / (high - low), 0, 1)  # 0: slow, keep divided; 1: untouched
    return ((1 - fast) * slow + fast * freq).astype(np.float32)


def rotate(x, cos, sin):
    """Rotary positions, Hugging Face's layout: element j turns with element j + hd/2.

    x: (B, T, heads, hd), cos and sin (B, T, hd/2).
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[..., None, :], sin[..., None, :]  # the same for every head
    # (a, b) → (a·cos − b·sin, b·cos + a·sin)   (RoFormer, Eq. 34)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q, k, v, angles, starts, cache=None, prefix=None):
    """Causal grouped-query attention with rotary positions.

    q: (B, T, H·hd), k, v: (B, T, K·hd) -> (B, T, H·hd). `angles` is (cos, sin) from `rotation`.
    `starts` (B, T): the first position that each token may see, so packed examples stay apart.
    `cache` appends k and v to those of earlier tokens and returns all of them. `prefix`: keys and
    values, each (n, K·hd), that every token sees and nothing rotates (Li and Liang 2021, Sec. 4.2).
    """
    hd = 2 * angles[0].shape[-1]
    B, T, _ = q.shape
    q, k, v = (np.reshape(x, (B, T, -1, hd)) for x in (q, k, v))
    q, k = rotate(q, *angles), rotate(k, *angles)
    if prefix is not None and (cache is None or cache.empty):
        # [P_k; K] and [P_v; V]
        p_k, p_v = (np.repeat(np.reshape(p, (1, -1, *k.shape[2:])), B, axis=0) for p in prefix)
        k, v = np.concatenate([p_k, k], axis=1), np.concatenate([p_v, v], axis=1)
    if cache is not None:
        k, v = cache.extend(k, v)
    S, K = k.shape[1], k.shape[2]
    q = np.reshape(q, (B, T, K, -1, hd))
    scores = np.einsum("btkgd,bskd->bkgts", q, k) / hd**0.5  # (B, K, G, T, S)
    n = 0 if prefix is None else prefix[0].shape[0]
    scores = np.where(visible(starts, S, n)[:, None, None], scores, -np.inf)
    # attention = softmax(QKᵀ/√hd + mask) V   (Vaswani et al. 2017, Eq. 1)
    p = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    p = p / np.sum(p, axis=-1, keepdims=True)
    return np.reshape(np.einsum("bkgts,bskd->btkgd", p, v), (B, T, -1))


def visible(starts, S, n=0):
    """(B, T, S) booleans: token t of the last T sees keys starts[t] … t of all S.

    The first n keys are no token's: `starts` does not count them, and every token sees them.
    """
    T = starts.shape[1]
    s, t = np.arange(S), np.arange(S - T, S)
    return ((s < n) | (s >= starts[..., None] + n)) & (s <= t[:, None])


def cross_entropy(hidden, head, targets, mask):
    """Mean negative log-likelihood, in nats, of the target tokens that the mask keeps.

    hidden: (B, T, D), head: (V, D), targets: (B, T) integers, mask: (B, T) 0 or 1.
    """
    logits = matmul(hidden, dense(head))
    logits = logits - np.max(logits, axis=-1, keepdims=True)
    # L = −Σ m·log softmax(h Eᵀ)[target] / Σ m
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    b, t = np.indices(targets.shape)
    return np.sum(mask * (log_z - logits[b, t, targets])) / np.sum(mask)

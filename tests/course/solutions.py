"""Solutions that were written from the texts of the exercises, before their checks were read.

`@right` ones differ from the reference in style or in the order of operations; `@wrong` ones are
mistakes that nobody planted.
"""

import math
from itertools import pairwise

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, layers, lora
from minilora.data.rows import encode, load_rows
from minilora.double_quant import DYNAMIC_MAP, DoubleQuantized
from minilora.evaluation.memory import activation_floats, nbytes
from minilora.layers import apply_rope, dropout
from minilora.nf4 import unpack_4bit
from minilora.tree import (
    arrays,
    flatten,
    get,
    named_leaves,
    num_parameters,
    overlay,
    set_leaf,
    tree_map,
    unflatten,
)

RIGHT, WRONG = [], []


def right(exercise):
    return lambda function: RIGHT.append((exercise, function)) or function


def wrong(exercise):
    return lambda function: WRONG.append((exercise, function)) or function


def full(w):
    return w.dequantize() if hasattr(w, "dequantize") else np.asarray(w)


# --- rms-norm ---


@right("rms-norm")
def rms_norm_by_power(x, weight, eps):
    mean = (x**2).sum(axis=-1) / x.shape[-1]
    return weight * x * ((mean + eps) ** -0.5)[..., None]


@right("rms-norm")
def rms_norm_by_norm(x, weight, eps):
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.sqrt(size**2 / x.shape[-1] + eps) * weight


@wrong("rms-norm")
def rms_norm_without_weight(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


@wrong("rms-norm")
def rms_norm_axis_minus_two(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-2, keepdims=True) + eps) * weight


@wrong("rms-norm")
def rms_norm_fixed_epsilon(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weight


@wrong("rms-norm")
def rms_norm_mean_of_sizes(x, weight, eps):
    return x / (np.mean(np.abs(x), axis=-1, keepdims=True) + eps) * weight


# --- rotation ---


@right("rotation")
def rotate_as_complex(x, cos, sin):
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)[:, :, None, :]
    return np.concatenate([z.real, z.imag], axis=-1).astype(x.dtype)


@right("rotation")
def rotate_half(x, cos, sin):
    cos, sin = (np.concatenate([t, t], -1)[:, :, None] for t in (cos, sin))
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin


@wrong("rotation")
def rotate_interleaved(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


@wrong("rotation")
def rotate_both_plus(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return np.concatenate([a * cos + b * sin, b * cos + a * sin], -1)


@wrong("rotation")
def rotate_first_row_of_batch(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[:1, :, None], sin[:1, :, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


# --- attention ---


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention_forward(q, k, v, rope, segment_starts, cache=None, mistake=""):
    B, T = q.shape[:2]
    hd = 2 * rope[0].shape[-1]
    H, K = q.shape[-1] // hd, k.shape[-1] // hd
    q, k, v = q.reshape(B, T, H, hd), k.reshape(B, T, K, hd), v.reshape(B, T, K, hd)
    q = apply_rope(q, *rope)
    k = apply_rope(k, *rope) if mistake != "keys not rotated" else k
    if cache is not None and mistake == "cache unread":
        cache.extend(k, v)
    elif cache is not None:
        k, v = cache.extend(k, v)
    past = k.shape[1] - T
    if mistake == "cache behind" and cache is not None:
        k, v = (np.roll(x, past, axis=1) for x in (k, v))
    out = np.zeros((B, T, H, hd))
    for b in range(B):
        for t in range(T):
            first, now = int(segment_starts[b, t]), t
            earlier = 0 if first and mistake == "cache of the first segment" else past
            if mistake == "one ahead":
                now = min(now + 1, T - 1)
            if mistake == "starts ignored":
                first = 0
            seen = [*range(earlier), *range(past + first, past + now + 1)]
            for h in range(H):
                group = h % K if mistake == "heads interleaved" else h // (H // K)
                scores = k[b, seen, group] @ q[b, t, h] / math.sqrt(hd)
                if mistake == "exp overflows":
                    weights = np.exp(scores) / np.exp(scores).sum()
                else:
                    weights = softmax(scores)
                out[b, t, h] = weights @ v[b, seen, group]
    return out.reshape(B, T, H * hd)


@wrong("attention")
def attention_cache_of_the_first_segment(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="cache of the first segment")


@wrong("attention")
def attention_cache_unread(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="cache unread")


@wrong("attention")
def attention_keys_not_rotated(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="keys not rotated")


@wrong("attention")
def attention_cache_behind(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="cache behind")


@wrong("attention")
def attention_one_ahead(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="one ahead")


@wrong("attention")
def attention_starts_ignored(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="starts ignored")


@wrong("attention")
def attention_heads_interleaved(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="heads interleaved")


@wrong("attention")
def attention_without_the_largest_score_taken_off(*args, **kwargs):
    return attention_forward(*args, **kwargs, mistake="exp overflows")


right("attention")(attention_forward)


# --- swiglu ---


@right("swiglu")
def swiglu_by_tanh(gate, up):
    return gate * 0.5 * (1 + np.tanh(gate / 2)) * up


@wrong("swiglu")
def swiglu_gelu(gate, up):
    return gate / (1 + np.exp(-1.702 * gate)) * up


@wrong("swiglu")
def swiglu_other_way(gate, up):
    return up / (1 + np.exp(-up)) * gate


@wrong("swiglu")
def swiglu_overflows(gate, up):
    e = np.exp(gate.astype("f4"))
    return gate * e / (1 + e) * up


# --- cross-entropy ---


def entropy_of(hidden, head, targets, mask, reduce):
    logits = hidden @ full(head).T
    top = logits.max(-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return reduce(-np.take_along_axis(logp, targets[..., None], -1)[..., 0], mask)


@right("cross-entropy")
def cross_entropy_by_picking(hidden, head, targets, mask):
    return entropy_of(hidden, head, targets, mask, lambda x, m: x[m != 0].mean())


@right("cross-entropy")
def cross_entropy_by_logaddexp(hidden, head, targets, mask):
    total, n = 0.0, 0
    for b, t in np.argwhere(mask):
        logits = full(head) @ hidden[b, t]
        total += np.logaddexp.reduce(logits) - logits[targets[b, t]]
        n += 1
    return total / n


@wrong("cross-entropy")
def cross_entropy_over_rows(hidden, head, targets, mask):
    return entropy_of(
        hidden, head, targets, mask,
        lambda x, m: np.mean((x * m).sum(-1) / np.maximum(m.sum(-1), 1)),
    )  # fmt: skip


@wrong("cross-entropy")
def cross_entropy_over_all(hidden, head, targets, mask):
    return entropy_of(hidden, head, targets, mask, lambda x, m: (x * m).mean())


@wrong("cross-entropy")
def cross_entropy_in_bits(hidden, head, targets, mask):
    return entropy_of(hidden, head, targets, mask, lambda x, m: (x * m).sum() / m.sum() / np.log(2))


@wrong("cross-entropy")
def cross_entropy_shifted(hidden, head, targets, mask):
    targets = np.roll(targets, -1, axis=1)
    return entropy_of(hidden, head, targets, mask, lambda x, m: (x * m).sum() / m.sum())


@wrong("cross-entropy")
def cross_entropy_overflows(hidden, head, targets, mask):
    logits = hidden @ full(head).T
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = np.take_along_axis(p, targets[..., None], -1)[..., 0]
    return -(np.log(p) * mask).sum() / mask.sum()


# --- lora-count ---


@right("lora-count")
def count_by_recursion(tree):
    if isinstance(tree, dict):
        return sum(count_by_recursion(node) for node in tree.values())
    return math.prod(tree.shape) if hasattr(tree, "shape") else 0


@wrong("lora-count")
def count_of_arrays(tree):
    return len(flatten(tree))


@wrong("lora-count")
def count_by_bytes(tree):
    return nbytes(tree) // 4


@wrong("lora-count")
def count_by_sum(tree):
    return sum(sum(w.shape) for _, w in named_leaves(tree))


# --- memory-estimate ---


def ledger_of(adapters, base, config, tokens, moments=2, grads=4, act=4):
    n = num_parameters(adapters)
    activations = act * tokens * activation_floats(adapters, base, config)
    return {
        "frozen weights": nbytes(base), "trained weights": 4 * n, "their gradients": grads * n,
        "Adam's two moments": 4 * moments * n, "activations": activations,
    }  # fmt: skip


right("memory-estimate")(ledger_of)


@wrong("memory-estimate")
def ledger_one_moment(adapters, base, config, tokens):
    return ledger_of(adapters, base, config, tokens, moments=1)


@wrong("memory-estimate")
def ledger_half_gradients(adapters, base, config, tokens):
    return ledger_of(adapters, base, config, tokens, grads=2)


@wrong("memory-estimate")
def ledger_of_one_token(adapters, base, config, tokens):
    return ledger_of(adapters, base, config, 1)


# --- lowrank-product ---


def linear_of(x, node, rng=None, mistake=""):
    z = dropout(x, node.get("lora_dropout", 0.0), rng)
    x = z if mistake == "dropout of all" else x
    y = x @ full(node["weight"]).swapaxes(-1, -2)
    if "lora_A" in node:
        a, b, scaling = node["lora_A"], node["lora_B"], node["lora_scaling"]
        if mistake == "over rank":
            scaling = scaling / a.shape[0]
        z = x if mistake == "no dropout" else z
        y = y + (z * scaling) @ a.swapaxes(-1, -2) @ b.swapaxes(-1, -2)
        y = scaling * y if mistake == "all scaled" else y
    return y if mistake == "no bias" else y + node.get("bias", 0)


right("lowrank-product")(linear_of)


@right("lowrank-product")
def linear_by_einsum(x, node, rng=None):
    y = np.einsum("...i,oi->...o", x, full(node["weight"]))
    if "lora_A" in node:
        z = dropout(x, node["lora_dropout"], rng)
        factors = node["lora_A"], node["lora_B"]
        y = y + node["lora_scaling"] * np.einsum("...i,ri,or->...o", z, *factors)
    return y + node["bias"] if "bias" in node else y


@wrong("lowrank-product")
def linear_over_rank(*args):
    return linear_of(*args, mistake="over rank")


@wrong("lowrank-product")
def linear_with_everything_scaled(*args):
    return linear_of(*args, mistake="all scaled")


@wrong("lowrank-product")
def linear_with_dropout_of_all(*args):
    return linear_of(*args, mistake="dropout of all")


@wrong("lowrank-product")
def linear_without_dropout(*args):
    return linear_of(*args, mistake="no dropout")


@wrong("lowrank-product")
def linear_without_bias(*args):
    return linear_of(*args, mistake="no bias")


# --- lora-init ---


def init_of(base, config, rng, a=None, b=np.zeros, names=lora.target_paths, dropout=None):
    adapters = {}
    for path in names(base, config):
        out, n = get(base, path)["weight"].shape
        r, scaling = config.rank_and_scaling(path)
        set_leaf(adapters, f"{path}.lora_A", (a or default_a)(rng, r, n).astype("f4"))
        set_leaf(adapters, f"{path}.lora_B", b((out, r)).astype("f4"))
        set_leaf(adapters, f"{path}.lora_scaling", scaling)
        p = config.lora_dropout if dropout is None else dropout
        set_leaf(adapters, f"{path}.lora_dropout", p)
    return adapters


def default_a(rng, r, n):
    return rng.uniform(-1, 1, (r, n)) / np.sqrt(n)


right("lora-init")(init_of)


@wrong("lora-init")
def init_same_numbers(base, config, rng):
    return init_of(base, config, np.random.default_rng(0))


@wrong("lora-init")
def init_b_too(base, config, rng):
    return init_of(base, config, rng, b=lambda shape: rng.normal(size=shape) * 1e-3)


@wrong("lora-init")
def init_positive_a(base, config, rng):
    return init_of(base, config, rng, a=lambda rng, r, n: np.abs(default_a(rng, r, n)))


@wrong("lora-init")
def init_narrow_a(base, config, rng):
    return init_of(base, config, rng, a=lambda rng, r, n: default_a(rng, r, n) * 0.5)


@wrong("lora-init")
def init_normal_a(base, config, rng):
    return init_of(base, config, rng, a=lambda rng, r, n: rng.normal(size=(r, n)) / np.sqrt(n))


@wrong("lora-init")
def init_equal_rows(base, config, rng):
    return init_of(base, config, rng, a=lambda rng, r, n: np.tile(default_a(rng, 1, n), (r, 1)))


@wrong("lora-init")
def init_one_a_for_all(base, config, rng):
    seed = int(rng.integers(99))
    fresh = lambda _, r, n: default_a(np.random.default_rng(seed), r, n)  # noqa: E731
    return init_of(base, config, rng, a=fresh)


@wrong("lora-init")
def init_without_dropout(base, config, rng):
    return init_of(base, config, rng, dropout=0.0)


# --- lora-merge ---


def merged_of(node, mistake=""):
    w = full(node["weight"]).astype("f4")
    if "lora_A" in node:
        scaling = 1 if mistake == "unscaled" else node["lora_scaling"]
        w = w + np.float32(scaling) * (node["lora_B"] @ node["lora_A"])
    if mistake == "bare":
        return w
    return {"weight": w} | ({"bias": node["bias"]} if "bias" in node else {})


right("lora-merge")(merged_of)


@wrong("lora-merge")
def merged_unscaled(node):
    return merged_of(node, "unscaled")


@wrong("lora-merge")
def merged_as_an_array(node):
    return merged_of(node, "bare")


@wrong("lora-merge")
def merged_in_four_bits(node):
    return node if hasattr(node["weight"], "dequantize") else merged_of(node)


# --- lowrank-gradient ---


def rows(x):
    return x.reshape(-1, x.shape[-1])


def lowrank_back_of(g, x, a, b, scaling):
    dz = scaling * (g @ b)
    return dz @ a, rows(dz).T @ rows(x), scaling * rows(g).T @ rows(x @ a.T)


right("lowrank-gradient")(lowrank_back_of)


@wrong("lowrank-gradient")
def lowrank_back_unscaled_b(g, x, a, b, scaling):
    dx, da, db = lowrank_back_of(g, x, a, b, scaling)
    return dx, da, db / scaling


@wrong("lowrank-gradient")
def lowrank_back_swapped(g, x, a, b, scaling):
    dx, da, db = lowrank_back_of(g, x, a, b, scaling)
    return dx, db, da


@wrong("lowrank-gradient")
def lowrank_back_mean_over_batch(g, x, a, b, scaling):
    dx, da, db = lowrank_back_of(g, x, a, b, scaling)
    return dx, da / x.shape[0], db / x.shape[0]


# --- adamw ---


def adamw_of(params, grads, state, learning_rates, config, mistake=""):
    step = state["step"] + 1
    b1, b2 = config.adam_beta1, config.adam_beta2
    if mistake == "beta1 fixed":
        b1 = 0.9
    new, m1, m2 = {}, {}, {}
    flat = [flatten(t) for t in (params, grads, state["m"], state["v"])]
    for path, p in flat[0].items():
        g = flat[1][path]
        m1[path] = m = b1 * flat[2][path] + (1 - b1) * g
        m2[path] = v = b2 * flat[3][path] + (1 - b2) * g * g
        mhat, vhat = m / (1 - b1**step), v / (1 - b2**step)
        if mistake == "uncorrected":
            mhat, vhat = m, v
        eps = 1e-8 if mistake == "epsilon fixed" else config.adam_eps
        move = mhat / (np.sqrt(vhat) + eps)
        if mistake == "decay in units of one":
            new[path] = p - learning_rates[path] * move - config.weight_decay * p
        else:
            new[path] = p - learning_rates[path] * (move + config.weight_decay * p)
    return unflatten(new), {"step": step, "m": unflatten(m1), "v": unflatten(m2)}


right("adamw")(adamw_of)


@wrong("adamw")
def adamw_beta1_fixed(*args):
    return adamw_of(*args, mistake="beta1 fixed")


@wrong("adamw")
def adamw_epsilon_fixed(*args):
    return adamw_of(*args, mistake="epsilon fixed")


@wrong("adamw")
def adamw_uncorrected(*args):
    return adamw_of(*args, mistake="uncorrected")


@wrong("adamw")
def adamw_decay_without_rate(*args):
    return adamw_of(*args, mistake="decay in units of one")


@wrong("adamw")
def adamw_step_behind(params, grads, state, learning_rates, config):
    new, after = adamw_of(params, grads, state, learning_rates, config)
    return new, {**after, "step": state["step"]}


# --- absmax-blocks ---


def normalize_of(w, block_size, top=None):
    m = -(-w.size // block_size)
    padded = np.pad(w, (0, m * block_size - w.size)).reshape(m, block_size)
    absmax = (top or (lambda x: np.abs(x).max(1)))(padded).astype("f4")
    x = padded / np.where(absmax == 0, 1, absmax)[:, None]
    return x.reshape(-1)[: w.size], absmax


right("absmax-blocks")(normalize_of)


@right("absmax-blocks")
def normalize_block_by_block(w, block_size):
    x, absmax = np.empty_like(w), []
    for i in range(0, len(w), block_size):
        block = w[i : i + block_size]
        top = max(abs(block.min()), abs(block.max()))
        absmax.append(top)
        x[i : i + block_size] = block / top if top > 0 else 0
    return x, np.array(absmax, "f4")


@wrong("absmax-blocks")
def normalize_signed(w, block_size):
    return normalize_of(w, block_size, lambda x: x.max(1))


@wrong("absmax-blocks")
def normalize_last_block_dropped(w, block_size):
    n = max(w.size // block_size, 1) * block_size
    x, absmax = normalize_of(w[:n], block_size)
    return np.concatenate([x, w[n:]]), absmax


@wrong("absmax-blocks")
def normalize_by_one(w, block_size):
    return normalize_of(w, block_size, lambda x: np.maximum(np.abs(x).max(1), 1))


# --- nearest-code ---


@right("nearest-code")
def nearest_by_distance(x, code):
    rank = (x[:, None] > code.midpoints).sum(1)
    return code.order[rank]


@wrong("nearest-code")
def nearest_by_argmin(x, code):
    return np.argmin(np.abs(x[:, None] - code.values), axis=1).astype(np.uint8) ^ (x == 0)


@wrong("nearest-code")
def nearest_below(x, code):
    rank = np.searchsorted(code.values[code.order], x, side="right") - 1
    return code.order[np.clip(rank, 0, 15)]


@wrong("nearest-code")
def nearest_uniform(x, code):
    return code.order[np.clip(np.round((x + 1) * 7.5), 0, 15).astype(int)]


# --- int8-rows ---


@right("int8-rows")
def row_codes_by_absmax(w):
    absmax = np.abs(w).max(axis=1)
    scaled = w * (np.float32(127) / np.maximum(absmax, np.float32(1e-36)))[:, None]
    return np.rint(scaled).astype(np.int8), absmax


@wrong("int8-rows")
def row_codes_of_128(w):
    absmax = np.abs(w).max(axis=1)
    scaled = w * (np.float32(128) / np.maximum(absmax, np.float32(1e-36)))[:, None]
    return np.clip(np.rint(scaled), -128, 127).astype(np.int8), absmax


@wrong("int8-rows")
def row_codes_truncated(w):
    absmax = np.abs(w).max(axis=1)
    scaled = w * (np.float32(127) / np.maximum(absmax, np.float32(1e-36)))[:, None]
    return scaled.astype(np.int8), absmax


@wrong("int8-rows")
def row_codes_by_column(w):
    absmax = np.abs(w).max(axis=0)
    scaled = w * (np.float32(127) / np.maximum(absmax, np.float32(1e-36)))
    return np.rint(scaled).astype(np.int8), absmax


# --- packing-nibbles ---


@right("packing-nibbles")
def pack_by_shift(codes):
    pairs = np.asarray(codes, np.uint8).reshape(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


@right("packing-nibbles")
def pack_by_loop(codes):
    pairs = zip(codes[::2].tolist(), codes[1::2].tolist())
    return np.array([16 * a + b for a, b in pairs], np.uint8)


@wrong("packing-nibbles")
def pack_halves(codes):
    half = len(codes) // 2
    return (codes[:half] << 4) | codes[half:]


@wrong("packing-nibbles")
def pack_by_ten(codes):
    return (codes[::2] * 10 + codes[1::2]).astype(np.uint8)


@wrong("packing-nibbles")
def pack_overlapping(codes):
    return (codes[:-1] << 4 | codes[1:])[: len(codes) // 2]


# --- double-quantization ---


def nest_of(absmax, offset=None, mistake=""):
    m = len(absmax)
    blocks = -(-m // 256)
    x = np.zeros(blocks * 256, np.float32)
    x[:m] = absmax - (0 if mistake == "offset forgotten" else offset)
    x = x.reshape(blocks, 256)
    top = np.abs(x).max(1)
    if mistake == "one block":
        top[:] = top.max()
    # the dynamic map over [-1, 1], in 65,536 equal steps
    scaled = x / np.where(top > 0, top, 1)[:, None]
    midpoints = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / 2
    codes = np.searchsorted(midpoints, scaled.reshape(-1)[:m]).astype(np.uint8)
    if mistake == "linear codes":
        codes = np.rint((scaled.reshape(-1)[:m] + 1) * 127.5).astype(np.uint8)
    return DoubleQuantized(codes, top.astype("f4"), np.float32(offset))


@wrong("double-quantization")
def nest_offset_forgotten(absmax, offset):
    return nest_of(absmax, offset, "offset forgotten")


@wrong("double-quantization")
def nest_one_block(absmax, offset):
    return nest_of(absmax, offset, "one block")


@wrong("double-quantization")
def nest_linear_codes(absmax, offset):
    return nest_of(absmax, offset, "linear codes")


# --- linear-4bit, linear-4bit-backward ---


@right("linear-4bit")
def product_by_einsum(x, w):
    return np.einsum("...i,oi->...o", x, full(w))


@wrong("linear-4bit")
def product_untransposed(x, w):
    w = full(w)
    return x @ (w.T if w.shape[0] != w.shape[1] else w)


@wrong("linear-4bit")
def product_in_halves(x, w):
    return (x.astype(np.float16) @ full(w).T.astype(np.float16)).astype(x.dtype)


@wrong("linear-4bit")
def product_flattened(x, w):
    return x.reshape(-1, x.shape[-1]) @ full(w).T


@right("linear-4bit-backward")
def product_back_by_tensordot(g, w):
    return np.tensordot(g, full(w), axes=(-1, 0))


@wrong("linear-4bit-backward")
def product_back_negative(g, w):
    return -g @ full(w)


@wrong("linear-4bit-backward")
def product_back_mean(g, w):
    return g @ full(w) / g.shape[0]


@wrong("linear-4bit-backward")
def product_back_of_the_sum(g, w):
    return np.broadcast_to(g.sum(tuple(range(g.ndim - 1))), g.shape) @ full(w)


# --- warmup ---


def rate_of(step, config, warm=math.ceil, ends=0.0):
    w = warm(config.warmup_ratio * config.iters)
    if step < w:
        return config.learning_rate * step / w
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - w) / max(1, config.iters - w)
    if config.lr_schedule == "linear":
        return config.learning_rate * max(ends, 1 - done)
    return config.learning_rate * max(ends, 0.5 * (1 + math.cos(math.pi * done)))


right("warmup")(rate_of)


@wrong("warmup")
def rate_floor(step, config):
    return rate_of(step, config, warm=math.floor)


@wrong("warmup")
def rate_never_zero(step, config):
    return rate_of(step, config, ends=0.1)


@wrong("warmup")
def rate_warms_from_one(step, config):
    w = math.ceil(config.warmup_ratio * config.iters)
    return config.learning_rate * (step + 1) / w if step < w else rate_of(step, config)


@wrong("warmup")
def rate_over_all_steps(step, config):
    w = math.ceil(config.warmup_ratio * config.iters)
    if step < w or config.lr_schedule != "linear":
        return rate_of(step, config)
    return config.learning_rate * (1 - step / config.iters)


# --- clipping ---


def norm_of(grads):
    return math.sqrt(
        sum(float(np.sum(np.square(g.astype(np.float64)))) for _, g in named_leaves(grads))
    )


@right("clipping")
def clip_where_larger(grads, max_norm):
    norm = norm_of(grads)
    if norm <= max_norm:
        return grads, norm
    return tree_map(lambda g: g * (max_norm / norm), grads), norm


@wrong("clipping")
def clip_leaf_by_leaf(grads, max_norm):
    def clipped(g):
        return g * min(1, max_norm / (np.linalg.norm(g) + 1e-6))

    return tree_map(clipped, grads), norm_of(grads)


@wrong("clipping")
def clip_to_always(grads, max_norm):
    norm = norm_of(grads)
    return tree_map(lambda g: g * (max_norm / (norm + 1e-6)), grads), norm


@wrong("clipping")
def clip_norm_after(grads, max_norm):
    norm = norm_of(grads)
    clipped = tree_map(lambda g: g * min(1, max_norm / (norm + 1e-6)), grads)
    return clipped, norm_of(clipped)


@wrong("clipping")
def clip_elements(grads, max_norm):
    return tree_map(lambda g: np.clip(g, -max_norm, max_norm), grads), norm_of(grads)


# --- accumulation ---


@right("accumulation")
def accumulated_by_list(parts, total):
    parts = list(parts)
    loss = sum(n / total * loss for n, loss, _ in parts)
    grads = [tree_map(lambda g, n=n: g * np.float32(n / total), grad) for n, _, grad in parts]
    return loss, tree_map(lambda *gs: sum(gs), *grads)


@wrong("accumulation")
def accumulated_plain_mean(parts, total):
    parts = list(parts)
    k = len(parts)
    mean = tree_map(lambda *gs: sum(gs) / k, *[g for _, _, g in parts])
    return sum(loss for _, loss, _ in parts) / k, mean


@wrong("accumulation")
def accumulated_last_gradient(parts, total):
    parts = list(parts)
    return sum(n * loss for n, loss, _ in parts) / total, parts[-1][2]


@wrong("accumulation")
def accumulated_sum_of_gradients(parts, total):
    parts = list(parts)
    grad = tree_map(lambda *gs: sum(gs), *[g for _, _, g in parts])
    return sum(n * loss for n, loss, _ in parts) / total, grad


# --- calibration ---


def calibration_of(confidence, hit, bins=15, edge=np.ceil, size=abs):
    which = np.clip(edge(confidence * bins).astype(int) - 1, 0, bins - 1)
    total = 0.0
    for b in range(bins):
        here = which == b
        if here.any():
            gap = confidence[here].mean() - hit[here].mean()
            total += here.mean() * size(gap)
    return float(total)


right("calibration")(calibration_of)


@wrong("calibration")
def calibration_ten_bins(confidence, hit):
    return calibration_of(confidence, hit, bins=10)


@wrong("calibration")
def calibration_signed(confidence, hit):
    return calibration_of(confidence, hit, size=lambda gap: gap)


@wrong("calibration")
def calibration_overall(confidence, hit):
    return float(abs(confidence.mean() - hit.mean()))


@wrong("calibration")
def calibration_root(confidence, hit):
    return math.sqrt(calibration_of(confidence, hit, size=lambda gap: gap**2))


# --- ia3 ---


def ia3_of(base, config, rng, names=("k_proj", "v_proj", "down_proj"), value=1.0, turned=False):
    adapters = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=["all-linear"])):
        if path.endswith(names):
            out, n = get(base, path)["weight"].shape
            inner = path.endswith("down_proj") != turned
            shape = (1, n) if inner else (out, 1)
            set_leaf(adapters, f"{path}.ia3_l", np.full(shape, value, np.float32))
    return adapters


right("ia3")(ia3_of)


@wrong("ia3")
def ia3_queries(base, config, rng):
    return ia3_of(base, config, rng, names=("q_proj", "v_proj", "down_proj"))


@wrong("ia3")
def ia3_zeros(base, config, rng):
    return ia3_of(base, config, rng, value=0.0)


@wrong("ia3")
def ia3_turned(base, config, rng):
    return ia3_of(base, config, rng, turned=True)


# --- dora-norm ---


@right("dora-norm")
def row_norms_of(w, scaling, a, b):
    norms = np.sqrt(((full(w) + scaling * b @ a) ** 2).sum(1))
    return np.where(norms == 0, 1, norms).astype("f4")


@wrong("dora-norm")
def row_norms_of_columns(w, scaling, a, b):
    return np.linalg.norm(full(w) + scaling * b @ a, axis=0)


@wrong("dora-norm")
def row_norms_of_the_base(w, scaling, a, b):
    norms = np.linalg.norm(full(w), axis=1)
    return np.where(norms == 0, 1, norms)


@wrong("dora-norm")
def row_norms_zero(w, scaling, a, b):
    return np.linalg.norm(full(w) + scaling * b @ a, axis=1)


# --- prefix ---


def prefix_of(base, config, rng, shared=False, scale=1.0, equal=False):
    adapters = {}
    first = None
    for i in base["model"]["layers"]:
        for name in "kv":
            width = get(base, f"model.layers.{i}.self_attn.{name}_proj.weight").shape[0]
            rows = rng.standard_normal((config.num_virtual_tokens, width)) * scale
            first = rows if first is None else first
            rows = first if shared else rows
            set_leaf(adapters, f"model.layers.{i}.self_attn.prefix_{name}", rows.astype("f4"))
    return adapters


right("prefix")(prefix_of)


@wrong("prefix")
def prefix_shared(base, config, rng):
    return prefix_of(base, config, rng, shared=True)


@wrong("prefix")
def prefix_small(base, config, rng):
    return prefix_of(base, config, rng, scale=0.02)


@wrong("prefix")
def prefix_own_generator(base, config, rng):
    return prefix_of(base, config, np.random.default_rng(0))


# --- tests that students write ---


@right("test-nibbles")
def check_pack(pack):
    every = np.array([(a, b) for a in range(16) for b in range(16)], np.uint8).ravel()
    before = every.copy()
    packed = pack(every)
    assert packed.dtype == np.uint8 and packed.shape == (256,)
    assert (packed == np.arange(256)).all() and (unpack_4bit(packed) == every).all()
    assert (every == before).all()


@wrong("test-nibbles")
def check_pack_of_zeros(pack):
    assert (pack(np.zeros(4, np.uint8)) == 0).all()


@wrong("test-nibbles")
def check_pack_shape(pack):
    assert pack(np.arange(16, dtype=np.uint8)).shape == (8,)


@right("test-merge")
def check_merge(merge):
    base = minilora.load("micro")[1]
    adapters, _ = minilora.get_peft_model(base, LoraConfig(r=3, lora_alpha=12), 0)
    rng = np.random.default_rng(1)
    set_leaf(adapters, "model.norm.weight", np.ones_like(get(base, "model.norm.weight")))
    filled = tree_map(lambda w: rng.standard_normal(w.shape).astype("f4"), arrays(adapters))
    adapters = overlay(adapters, filled)
    before = {path: np.array(w) for path, w in named_leaves(base)}
    merged = flatten(merge(adapters, base, layers))
    for path, w in before.items():
        try:
            node = get(adapters, path.removesuffix(".weight"))
        except KeyError:
            node = {}
        want = w
        if "lora_A" in node:
            want = want + 4 * node["lora_B"] @ node["lora_A"]
        if "weight" in node:
            want = node["weight"]
        assert np.allclose(merged[path], want, rtol=1e-4, atol=1e-4), path
        assert np.array_equal(get(base, path), w)
    assert not [path for path in merged if "lora" in path]


@wrong("test-merge")
def check_merge_runs(merge):
    base = minilora.load("micro")[1]
    adapters, _ = minilora.get_peft_model(base, LoraConfig(), 0)
    assert merge(adapters, base, layers) is not None


@right("test-frozen")
def check_frozen(train):
    model_config, base, tokenizer = minilora.load("micro")
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=2), 0)
    copy = tree_map(np.array, base)
    start = tree_map(np.array, arrays(adapters))
    settings = TrainConfig(iters=3, batch_size=2, warmup_ratio=0, learning_rate=1e-2)
    examples = [encode(row, tokenizer) for row in load_rows("questions", "train")[:6]]
    after, history = train(adapters, base, examples, model_config, settings, layers)
    for (path, w), (_, old) in zip(named_leaves(base), named_leaves(copy)):
        assert np.array_equal(w, old), path
    for path, w in named_leaves(start):
        assert np.array_equal(get(adapters, path), w), "the adapter handed in was changed"
        assert not np.array_equal(get(after, path), w), f"{path} is not trained"
    assert set(flatten(after)) == set(flatten(adapters)) and len(history) == 3


@wrong("test-frozen")
def check_frozen_only_runs(train):
    model_config, base, tokenizer = minilora.load("micro")
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=2), 0)
    examples = [encode(row, tokenizer) for row in load_rows("questions", "train")[:4]]
    settings = TrainConfig(iters=1, batch_size=2)
    train(adapters, base, examples, model_config, settings, layers)


# --- prompt-mask, combine-exact, and variants ---


def collate_of(sequences, shift=1, start_of_bin=False, keep_prompt=False, masked_pad=False):
    T = max(sum(len(e.tokens) - 1 for e in row) for row in sequences)
    kinds = {"tokens": "i8", "targets": "i8", "mask": "f4", "segment_starts": "i8"}
    batch = {name: np.zeros((len(sequences), T), kind) for name, kind in kinds.items()}
    for row, examples in enumerate(sequences):
        at = 0
        for tokens, mask, _ in examples:
            n = len(tokens) - 1
            here = np.s_[row, at : at + n]
            batch["tokens"][here] = tokens[:-1]
            batch["targets"][here] = tokens[1:] if shift else tokens[:-1]
            batch["mask"][here] = 1 if keep_prompt else mask[1:] if shift else mask[:-1]
            batch["segment_starts"][here] = 0 if start_of_bin else at
            at += n
        batch["segment_starts"][row, at:] = min(at, T - 1)
        if masked_pad:
            batch["mask"][row, at:] = 1
    return batch


right("prompt-mask")(collate_of)


@wrong("prompt-mask")
def collate_unshifted(sequences):
    return collate_of(sequences, shift=0)


@wrong("prompt-mask")
def collate_examples_see_each_other(sequences):
    return collate_of(sequences, start_of_bin=True)


@wrong("prompt-mask")
def collate_prompt_counts(sequences):
    return collate_of(sequences, keep_prompt=True)


@wrong("prompt-mask")
def collate_padding_counts(sequences):
    return collate_of(sequences, masked_pad=True)


@wrong("prompt-mask")
def collate_mask_of_inputs(sequences):
    batch = collate_of(sequences)
    for row, examples in enumerate(sequences):
        mask = [m for e in examples for m in e.mask[:-1]]
        batch["mask"][row, : len(mask)] = mask
    return batch


@right("combine-exact")
def cat_by_lists(parts, r):
    ranks = [a for _, a, _ in parts]
    return np.vstack(ranks), np.concatenate([ws * b for ws, _, b in parts], axis=1)


right("double-quantization")(nest_of)


@right("calibration")
def calibration_by_sums(confidence, hit):
    edges = np.linspace(0, 1, 16)
    gap = 0.0
    for low, high in pairwise(edges):
        here = (confidence > low) & (confidence <= high)
        gap += abs((confidence[here] - hit[here]).sum())
    return gap / confidence.size


@right("swiglu")
def swiglu_by_logaddexp(gate, up):
    return up * gate * np.exp(-np.logaddexp(0, -gate))


@right("nearest-code")
def nearest_by_digitize(x, code):
    return code.order[np.digitize(x, code.midpoints, right=True)]


@right("lora-count")
def count_by_size(tree):
    return sum(math.prod(w.shape) for w in flatten(tree).values() if hasattr(w, "shape"))


@right("clipping")
def clip_by_square(grads, max_norm):
    norm = norm_of(grads)
    return tree_map(lambda g: g * np.float32(min(1.0, max_norm / (norm + 1e-6))), grads), norm

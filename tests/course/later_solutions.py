"""A second set, written later from the texts alone, before the checks were read."""

import math

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, layers, lora
from minilora.config import ALL_LINEAR
from minilora.course import one_file
from minilora.double_quant import DYNAMIC_MAP, DoubleQuantized
from minilora.evaluation.memory import ADAM_FLOATS, activation_floats, nbytes
from minilora.layers import apply_rope, dense, dropout
from minilora.lora import target_paths
from minilora.nf4 import unpack_4bit
from minilora.tree import (
    arrays,
    flatten,
    get,
    named_leaves,
    num_parameters,
    set_leaf,
    tree_map,
    unflatten,
)

RIGHT, WRONG = [], []


def right(exercise):
    return lambda function: RIGHT.append((exercise, function)) or function


def wrong(exercise):
    return lambda function: WRONG.append((exercise, function)) or function


# --- rms-norm ---


@right("rms-norm")
def rms_norm_row_by_row(x, weight, eps):
    rows = x.reshape(-1, x.shape[-1])
    done = [row * weight / math.sqrt(float(row @ row) / len(row) + eps) for row in rows]
    return np.array(done).reshape(x.shape).astype(x.dtype)


@wrong("rms-norm")
def rms_norm_after_the_gain(x, weight, eps):
    y = x * weight
    return y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + eps)


@wrong("rms-norm")
def rms_norm_without_epsilon(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) * weight


@wrong("rms-norm")
def rms_norm_maximum_with_epsilon(x, weight, eps):
    return x / np.sqrt(np.maximum(np.mean(x * x, axis=-1, keepdims=True), eps)) * weight


@wrong("rms-norm")
def rms_norm_epsilon_squared(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps**2) * weight


@wrong("rms-norm")
def rms_norm_in_place(x, weight, eps):
    x /= np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * weight


# --- rotation ---


@right("rotation")
def rotation_by_matrices(x, cos, sin):
    hd = x.shape[-1]
    pairs = np.stack([x[..., : hd // 2], x[..., hd // 2 :]], -1)  # (B, T, H, hd/2, 2)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    out = np.einsum("btjik,bthjk->bthji", turn, pairs)
    return np.concatenate([out[..., 0], out[..., 1]], -1).astype(x.dtype)


@wrong("rotation")
def rotation_of_the_first_head_only(x, cos, sin):
    out = x.copy()
    half = x.shape[-1] // 2
    a, b = x[:, :, 0, :half], x[:, :, 0, half:]
    out[:, :, 0] = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return out


@wrong("rotation")
def rotation_overwrites_a(x, cos, sin):
    half = x.shape[-1] // 2
    out = x.copy()
    a, b = out[..., :half], out[..., half:]
    c, s = cos[:, :, None], sin[:, :, None]
    out[..., :half] = a * c - b * s
    out[..., half:] = b * c + a * s  # a is a view of what has changed
    return out


@wrong("rotation")
def rotation_returns_neighbours(x, cos, sin):
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], cos[:, :, None], sin[:, :, None]
    return np.stack([a * c - b * s, b * c + a * s], -1).reshape(x.shape)


@wrong("rotation")
def rotation_with_the_angles_of_position_zero(x, cos, sin):
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], cos[:, :1, None], sin[:, :1, None]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


# --- attention ---


def attention_by_matrix(q, k, v, rope, segment_starts, cache=None, twist=""):
    B, T, width = q.shape
    hd = rope[0].shape[-1] * 2
    H, K = width // hd, k.shape[-1] // hd
    q = apply_rope(q.reshape(B, T, H, hd), *rope)
    k = apply_rope(k.reshape(B, T, K, hd), *rope)
    v = v.reshape(B, T, K, hd)
    if cache is not None:
        k, v = cache.extend(k, v)
    if twist == "values of the first head":
        v = np.repeat(v[:, :, :1], K, axis=2)
    S = k.shape[1]
    k, v = np.repeat(k, H // K, axis=2), np.repeat(v, H // K, axis=2)
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(hd)
    if twist == "scale by the width of all heads":
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(width)
    place = np.arange(S) - (S - T)
    now = np.arange(T)[None, :, None]
    seen = (place < 0) | ((place >= segment_starts[:, :, None]) & (place <= now))
    if twist == "cache hidden from later segments":
        seen = (place >= segment_starts[:, :, None]) & (place <= now)
    if twist == "starts count cached keys":
        seen = (np.arange(S) >= segment_starts[:, :, None]) & (place <= now)
    if twist == "no mask":
        seen = np.ones_like(seen)
    if twist == "segment of the first row":
        seen = np.repeat(seen[:1], B, axis=0)
    scores = np.where(seen[:, None], scores, -1e4 if twist == "masked with -10000" else -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    if twist == "softmax over queries":
        e = np.exp(scores - scores.max(-2, keepdims=True))
        p = np.nan_to_num(e / e.sum(-2, keepdims=True))
    if twist == "mask after the softmax":
        raw = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(hd)
        e = np.exp(raw - raw.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True) * seen[:, None]
    return np.einsum("bhts,bshd->bthd", p, v).reshape(B, T, width)


right("attention")(attention_by_matrix)
for twist in (
    "values of the first head",
    "scale by the width of all heads",
    "masked with -10000",
    "cache hidden from later segments",
    "starts count cached keys",
    "no mask",
    "segment of the first row",
    "softmax over queries",
    "mask after the softmax",
):

    def attention_twisted(*args, twist=twist, **kwargs):
        return attention_by_matrix(*args, **kwargs, twist=twist)

    attention_twisted.__name__ = f"attention: {twist}"
    wrong("attention")(attention_twisted)


# --- swiglu ---


@right("swiglu")
def swiglu_in_two_cases(gate, up):
    e = np.exp(-np.abs(gate))
    return up * gate * np.where(gate >= 0, 1 / (1 + e), e / (1 + e))


@wrong("swiglu")
def swiglu_swish_of_the_product(gate, up):
    y = gate * up
    return y * 0.5 * (1 + np.tanh(y / 2))


@wrong("swiglu")
def swiglu_with_clipped_gate(gate, up):
    g = np.clip(gate, -20, 20)
    return g / (1 + np.exp(-g)) * up


@wrong("swiglu")
def swiglu_hard(gate, up):
    return gate * np.clip(gate / 6 + 0.5, 0, 1) * up


# --- cross-entropy ---


@right("cross-entropy")
def cross_entropy_loop(hidden, head, targets, mask):
    w, losses = dense(head), []
    for b, t in np.argwhere(np.asarray(mask) != 0):
        z = w @ hidden[b, t]
        losses.append(np.logaddexp.reduce(z) - z[targets[b, t]])
    return sum(losses) / len(losses)


@wrong("cross-entropy")
def cross_entropy_mean_per_row(hidden, head, targets, mask):
    z = hidden @ dense(head).T
    z = z - z.max(-1, keepdims=True)
    nll = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, targets[..., None], -1)[..., 0]
    rows = (nll * mask).sum(1) / np.maximum(mask.sum(1), 1)
    return rows.mean()


@wrong("cross-entropy")
def cross_entropy_in_bits(hidden, head, targets, mask):
    z = hidden @ dense(head).T
    z = z - z.max(-1, keepdims=True)
    nll = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, targets[..., None], -1)[..., 0]
    return (nll * mask).sum() / mask.sum() / math.log(2)


@wrong("cross-entropy")
def cross_entropy_floored_probability(hidden, head, targets, mask):
    z = hidden @ dense(head).T
    p = np.exp(z - z.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, targets[..., None], -1)[..., 0]
    return -(np.log(np.maximum(chosen, 1e-12)) * mask).sum() / mask.sum()


@wrong("cross-entropy")
def cross_entropy_softmax_over_positions(hidden, head, targets, mask):
    z = hidden @ dense(head).T
    z = z - z.max(1, keepdims=True)
    lp = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -(np.take_along_axis(lp, targets[..., None], -1)[..., 0] * mask).sum() / mask.sum()


@wrong("cross-entropy")
def cross_entropy_shifts_targets_again(hidden, head, targets, mask):
    z = hidden @ dense(head).T
    z = z - z.max(-1, keepdims=True)
    lp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    targets = np.roll(targets, -1, axis=1)
    return -(np.take_along_axis(lp, targets[..., None], -1)[..., 0] * mask).sum() / mask.sum()


# --- lora-count ---


@right("lora-count")
def lora_count_loop(tree):
    total = 0
    for _, leaf in named_leaves(tree):
        if not isinstance(leaf, float | int):
            total += int(np.prod(leaf.shape, dtype=int))
    return total


@wrong("lora-count")
def lora_count_only_lora(tree):
    return sum(
        math.prod(x.shape)
        for path, x in named_leaves(tree)
        if "lora" in path and hasattr(x, "shape")
    )


@wrong("lora-count")
def lora_count_of_leaves(tree):
    return len(list(named_leaves(tree)))


@wrong("lora-count")
def lora_count_plain_arrays_only(tree):
    return sum(x.size for _, x in named_leaves(tree) if isinstance(x, np.ndarray))


# --- memory-estimate ---


@right("memory-estimate")
def memory_estimate_in_steps(adapters, base, model_config, tokens):
    n = num_parameters(adapters)
    parts = {"activations": tokens * activation_floats(adapters, base, model_config) * 4}
    parts["frozen weights"] = nbytes(base)
    parts["trained weights"] = parts["their gradients"] = n * 4
    parts["Adam's two moments"] = n * ADAM_FLOATS * 4
    return parts


@wrong("memory-estimate")
def memory_estimate_adapter_nbytes(adapters, base, model_config, tokens):
    n = nbytes(adapters)
    return {
        "frozen weights": nbytes(base),
        "trained weights": n,
        "their gradients": n,
        "Adam's two moments": 3 * n,
        "activations": 4 * tokens * activation_floats(adapters, base, model_config),
    }


@wrong("memory-estimate")
def memory_estimate_activations_of_no_adapter(adapters, base, model_config, tokens):
    n = 4 * num_parameters(adapters)
    return {
        "frozen weights": nbytes(base),
        "trained weights": n,
        "their gradients": n,
        "Adam's two moments": ADAM_FLOATS * n,
        "activations": 4 * tokens * activation_floats({}, base, model_config),
    }


@wrong("memory-estimate")
def memory_estimate_half_gradients(adapters, base, model_config, tokens):
    n = 4 * num_parameters(adapters)
    return {
        "frozen weights": nbytes(base),
        "trained weights": n,
        "their gradients": n // 2,
        "Adam's two moments": ADAM_FLOATS * n,
        "activations": 4 * tokens * activation_floats(adapters, base, model_config),
    }


# --- lowrank-product ---


def projection(x, node, rng=None, twist=""):
    w = dense(node["weight"])
    y = x @ w.T
    if "lora_A" in node:
        scaling = node["lora_scaling"]
        z = x if twist == "no dropout" else dropout(x, node["lora_dropout"], rng)
        if twist == "dropout of the output":
            term = scaling * (x @ node["lora_A"].T @ node["lora_B"].T)
            y = y + dropout(term, node["lora_dropout"], rng)
        elif twist == "dropout of everything":
            y = z @ w.T + scaling * (z @ node["lora_A"].T @ node["lora_B"].T)
        elif twist == "scaling of the sum":
            y = scaling * (y + z @ node["lora_A"].T @ node["lora_B"].T)
        else:
            y = y + scaling * (z @ node["lora_A"].T @ node["lora_B"].T)
    bias = node.get("bias")
    if twist == "bias only without adapter" and "lora_A" in node:
        bias = None
    return y if bias is None else y + bias


right("lowrank-product")(projection)
for twist in (
    "no dropout",
    "dropout of the output",
    "dropout of everything",
    "scaling of the sum",
    "bias only without adapter",
):

    def projection_twisted(*args, twist=twist, **kwargs):
        return projection(*args, **kwargs, twist=twist)

    projection_twisted.__name__ = f"projection: {twist}"
    wrong("lowrank-product")(projection_twisted)


# --- lora-init ---


def lora_start(base, lora_config, rng, twist=""):
    rng = np.random.default_rng(rng)
    adapters = base if twist == "base changed" else {}
    for path in target_paths(base, lora_config):
        r, scaling = lora_config.rank_and_scaling(path)
        if twist == "one rank":
            r = lora_config.r
        if twist == "one scaling":
            scaling = lora_config.lora_alpha / r
        out, n = get(base, path)["weight"].shape
        limit = 1 / math.sqrt(n)
        a = rng.uniform(-1, 1, size=(r, n)) * limit
        if twist == "normal":
            a = rng.standard_normal((r, n)) * limit
        if twist == "by the outputs":
            a = rng.uniform(-1, 1, size=(r, n)) / math.sqrt(out)
        if twist == "fresh generator":
            a = np.random.default_rng(0).uniform(-1, 1, size=(r, n)) * limit
        if twist == "unseeded":
            a = np.random.default_rng().uniform(-1, 1, size=(r, n)) * limit
        if twist == "positive":
            a = rng.uniform(0, 1, size=(r, n)) * limit
        if twist == "one row repeated":
            a = np.repeat(a[:1], r, axis=0)
        set_leaf(adapters, f"{path}.lora_A", a if twist == "float64" else a.astype(np.float32))
        set_leaf(adapters, f"{path}.lora_B", np.zeros((out, r), np.float32))
        set_leaf(adapters, f"{path}.lora_scaling", scaling)
        p = 0.0 if twist == "no dropout" else lora_config.lora_dropout
        set_leaf(adapters, f"{path}.lora_dropout", p)
    return adapters


right("lora-init")(lora_start)
for twist in (
    "one rank",
    "one scaling",
    "normal",
    "by the outputs",
    "fresh generator",
    "unseeded",
    "positive",
    "one row repeated",
    "no dropout",
    "base changed",
):

    def lora_start_twisted(*args, twist=twist):
        return lora_start(*args, twist=twist)

    lora_start_twisted.__name__ = f"lora_start: {twist}"
    wrong("lora-init")(lora_start_twisted)


# --- lora-merge ---


def merge_one(node, twist=""):
    merged = {name: leaf for name, leaf in node.items() if not name.startswith("lora_")}
    merged["weight"] = np.array(dense(node["weight"]))
    if "lora_A" in node:
        scaling = node["lora_scaling"] * (1 - node["lora_dropout"] * (twist == "dropout"))
        merged["weight"] += np.float32(scaling) * (node["lora_B"] @ node["lora_A"])
        if twist == "bias of adapted ones left out":
            merged.pop("bias", None)
    return merged


right("lora-merge")(merge_one)
for twist in ("dropout", "bias of adapted ones left out"):

    def merge_twisted(*args, twist=twist):
        return merge_one(*args, twist=twist)

    merge_twisted.__name__ = f"merge: {twist}"
    wrong("lora-merge")(merge_twisted)


# --- lowrank-gradient ---


@right("lowrank-gradient")
def gradient_flat(g, x, a, b, scaling):
    G, X = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    w = scaling * b.T @ G.T @ X
    return g @ (scaling * b @ a), w, scaling * G.T @ (X @ a.T)


@wrong("lowrank-gradient")
def gradient_scaling_only_of_x(g, x, a, b, scaling):
    G, X = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    return scaling * (g @ b @ a), b.T @ G.T @ X, G.T @ (X @ a.T)


@wrong("lowrank-gradient")
def gradient_mean_over_tokens(g, x, a, b, scaling):
    G, X = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    n = len(G)
    return scaling * (g @ b @ a), scaling * b.T @ G.T @ X / n, scaling * G.T @ (X @ a.T) / n


@wrong("lowrank-gradient")
def gradient_first_of_the_batch(g, x, a, b, scaling):
    return scaling * (g @ b @ a), scaling * b.T @ g[0].T @ x[0], scaling * g[0].T @ (x[0] @ a.T)


# --- adamw ---


def adam(params, grads, state, learning_rates, train_config, twist=""):
    c, t = train_config, state["step"] + 1
    b1, b2 = c.adam_beta1, c.adam_beta2
    P, G, M, V = (dict(flatten(x)) for x in (params, grads, state["m"], state["v"]))
    new, m, v = {}, {}, {}
    for path in P:
        g = G[path]
        if twist == "coupled decay":
            g = g + c.weight_decay * P[path]
        m[path] = M[path] + (1 - b1) * (g - M[path])
        v[path] = b2 * V[path] + (1 - b2) * g**2
        T = t - 1 if twist == "step before" and t > 1 else t
        mh, vh = m[path] / (1 - b1**T), v[path] / (1 - b2**T)
        if twist == "old moments":
            mh, vh = M[path] / (1 - b1**t), V[path] / (1 - b2**t)
        if twist == "same beta":
            v[path] = b1 * V[path] + (1 - b1) * g**2
            vh = v[path] / (1 - b1**t)
        rate = learning_rates[path]
        if twist == "first rate":
            rate = next(iter(learning_rates.values()))
        decay = rate * c.weight_decay * P[path]
        if twist == "decay without rate":
            decay = c.weight_decay * P[path]
        if twist == "coupled decay":
            decay = 0
        eps = 1e-8 if twist == "fixed epsilon" else c.adam_eps
        step = rate * mh / (np.sqrt(vh) + eps)
        if twist == "nesterov":
            step = rate * (b1 * mh + (1 - b1) * g / (1 - b1**t)) / (np.sqrt(vh) + eps)
        new[path] = P[path] - decay - step
    step = state["step"] if twist == "step not counted" else t
    return unflatten(new), {"m": unflatten(m), "v": unflatten(v), "step": step}


right("adamw")(adam)
for twist in (
    "coupled decay",
    "step before",
    "old moments",
    "same beta",
    "first rate",
    "decay without rate",
    "fixed epsilon",
    "nesterov",
    "step not counted",
):

    def adam_twisted(*args, twist=twist):
        return adam(*args, twist=twist)

    adam_twisted.__name__ = f"adam: {twist}"
    wrong("adamw")(adam_twisted)


# --- tests ---


@right("test-frozen")
def frozen_check(train):
    config, base, tokenizer = minilora.load("micro")
    settings = TrainConfig(
        iters=4, batch_size=2, learning_rate=1e-2, warmup_ratio=0.0, max_seq_length=128
    )
    examples = data.encode_rows(data.load_rows("questions", "valid")[:8], tokenizer, settings)[0]
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=4), 0)
    before = [(p, np.array(x)) for p, x in flatten(base).items() if isinstance(x, np.ndarray)]
    start = {p: np.array(x) for p, x in flatten(arrays(adapters)).items()}
    after, _ = train(adapters, base, examples, config, settings, layers)
    for p, x in before:
        np.testing.assert_array_equal(x, flatten(base)[p])
    for p, x in start.items():
        np.testing.assert_array_equal(x, flatten(adapters)[p])
    after = flatten(after)
    assert after.keys() == flatten(adapters).keys()
    for p in start:
        assert np.abs(after[p] - start[p]).max() > 0
        assert after[p].dtype == start[p].dtype


@wrong("test-frozen")
def frozen_check_only_keys(train):
    config, base, tokenizer = minilora.load("micro")
    settings = TrainConfig(iters=2, batch_size=2, warmup_ratio=0.0)
    examples = data.encode_rows(data.load_rows("questions", "valid")[:8], tokenizer, settings)[0]
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=4), 0)
    after, _ = train(adapters, base, examples, config, settings, layers)
    assert flatten(after).keys() == flatten(adapters).keys()


@right("test-nibbles")
def nibbles_check(pack_4bit):
    codes = np.random.default_rng(1).integers(0, 16, 64).astype(np.uint8)
    for part in (codes, codes[:2], np.arange(16, dtype=np.uint8)):
        packed = pack_4bit(part.copy())
        assert packed.dtype == np.uint8 and packed.shape == (len(part) // 2,)
        np.testing.assert_array_equal(unpack_4bit(packed), part)


@wrong("test-nibbles")
def nibbles_check_of_equal_codes(pack_4bit):
    codes = np.full(8, 5, np.uint8)
    np.testing.assert_array_equal(pack_4bit(codes), np.full(4, 85))


@right("test-merge")
def merge_check(merge):
    config, base, _ = minilora.load("micro")
    rng = np.random.default_rng(3)
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=2, lora_alpha=6), rng)
    for path in lora.adapted_paths(adapters):
        node = get(adapters, path)
        node["lora_B"] = rng.standard_normal(node["lora_B"].shape).astype(np.float32) * 0.1
    old = get(base, "model.norm")["weight"]
    set_leaf(adapters, "model.norm.weight", old * rng.uniform(0.5, 2, old.shape).astype(np.float32))
    before = {p: np.array(x) for p, x in flatten(base).items() if isinstance(x, np.ndarray)}
    tokens = rng.integers(0, 200, (2, 9))
    merged = merge(adapters, base, layers)
    a, b = (
        minilora.forward(adapters, base, tokens, config),
        minilora.forward({}, merged, tokens, config),
    )
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    for p, x in before.items():
        np.testing.assert_array_equal(x, flatten(base)[p])


@wrong("test-merge")
def merge_check_of_shapes(merge):
    _, base, _ = minilora.load("micro")
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=2), 0)
    merged = merge(adapters, base, layers)
    for path in lora.adapted_paths(adapters):
        assert get(merged, path)["weight"].shape == get(base, path)["weight"].shape


# --- four and eight bits ---


@right("absmax-blocks")
def absmax_loop(w, block_size):
    blocks = [w[i : i + block_size] for i in range(0, len(w), block_size)]
    absmax = np.array([np.abs(b).max() for b in blocks], np.float32)
    x = np.concatenate([b / (m or 1) for b, m in zip(blocks, absmax)]).astype(np.float32)
    return x, absmax


@wrong("absmax-blocks")
def absmax_one_for_all(w, block_size):
    absmax = np.full(-(-len(w) // block_size), np.abs(w).max(), np.float32)
    return (w / max(absmax[0], 1e-38)).astype(np.float32), absmax


@wrong("absmax-blocks")
def absmax_strided(w, block_size):
    m = -(-len(w) // block_size)
    absmax = np.array([np.abs(w[i::m]).max() for i in range(m)], np.float32)
    x = w / np.maximum(np.resize(absmax, len(w)), 1e-38)
    return x.astype(np.float32), absmax


@wrong("absmax-blocks")
def absmax_plus_epsilon(w, block_size):
    blocks = [w[i : i + block_size] for i in range(0, len(w), block_size)]
    absmax = np.array([np.abs(b).max() for b in blocks], np.float32)
    return np.concatenate([b / (m + 1e-6) for b, m in zip(blocks, absmax)]).astype(
        np.float32
    ), absmax


@wrong("absmax-blocks")
def absmax_last_block_padded_with_ones(w, block_size):
    pad = np.pad(w, (0, -len(w) % block_size), constant_values=1)
    blocks = pad.reshape(-1, block_size)
    absmax = np.abs(blocks).max(1)
    return (blocks / np.maximum(absmax, 1e-38)[:, None]).ravel()[: len(w)].astype(
        np.float32
    ), absmax


@right("nearest-code")
def nearest_by_distance(x, codebook):
    below = np.array([np.sum(codebook.midpoints < v) for v in x.ravel()], int)
    return codebook.order[below].reshape(x.shape)


@wrong("nearest-code")
def nearest_lower_value(x, codebook):
    at = np.searchsorted(codebook.midpoints, x) - 1
    return codebook.order[np.maximum(at, 0)]


@wrong("nearest-code")
def nearest_never_the_last(x, codebook):
    return codebook.order[np.minimum(np.searchsorted(codebook.midpoints, x), 14)]


@wrong("nearest-code")
def nearest_sorted_order(x, codebook):
    return np.argsort(codebook.order)[np.searchsorted(codebook.midpoints, x)]


@right("int8-rows")
def int8_floor_of_half(w):
    absmax = np.abs(w).max(1)
    scale = np.where(absmax > 0, absmax, 1)
    return np.floor(w.astype(float) * 127 / scale[:, None] + 0.5).astype(np.int8), absmax


@wrong("int8-rows")
def int8_of_128(w):
    absmax = np.abs(w).max(1)
    scale = np.where(absmax > 0, absmax, 1)
    return np.clip(np.rint(w * 128 / scale[:, None]), -128, 127).astype(np.int8), absmax


@wrong("int8-rows")
def int8_signed_maximum(w):
    absmax = w.max(1)
    scale = np.where(absmax > 0, absmax, 1)
    return np.clip(np.rint(w * 127 / scale[:, None]), -127, 127).astype(np.int8), absmax


@wrong("int8-rows")
def int8_keeps_the_scale(w):
    absmax = np.abs(w).max(1)
    scale = np.where(absmax > 0, absmax, 1)
    return np.rint(w * 127 / scale[:, None]).astype(np.int8), absmax / 127


@right("packing-nibbles")
def packing_by_reshape(codes):
    high, low = codes.reshape(-1, 2).T
    return np.bitwise_or(np.left_shift(high, 4), low).astype(np.uint8)


@wrong("packing-nibbles")
def packing_first_half_high(codes):
    k = len(codes) // 2
    return codes[:k] << 4 | codes[k:]


@wrong("packing-nibbles")
def packing_with_and(codes):
    return (codes[0::2] << 4) & codes[1::2]


@wrong("packing-nibbles")
def packing_by_three_bits(codes):
    return codes[0::2] << 3 | codes[1::2]


def dq(absmax, offset=None, twist=""):
    m = len(absmax)
    if offset is None:
        offset = np.float32(np.mean(absmax.astype(float)))
    if twist == "own offset":
        offset = np.float32(np.mean(absmax))
    x = absmax - offset
    codes, scales = [], []
    size = 64 if twist == "blocks of 64" else 256
    for i in range(0, m, size):
        block = x[i : i + size]
        scale = np.abs(block).max()
        if twist == "scale of the maximum":
            scale = block.max()
        if twist == "scale before the offset":
            scale = np.abs(absmax[i : i + size]).max()
        y = block / scale if scale else np.zeros_like(block)
        distance = np.abs(y[:, None].astype(float) - DYNAMIC_MAP[None].astype(float))
        if twist == "linear":
            codes.append(np.rint((y + 1) * 127.5).clip(0, 255).astype(np.uint8))
        else:
            codes.append(distance.argmin(1).astype(np.uint8))
        scales.append(scale)
    out = np.array(scales, np.float32)
    return DoubleQuantized(np.concatenate(codes), out, np.float32(offset))


right("double-quantization")(dq)
for twist in (
    "own offset",
    "blocks of 64",
    "scale of the maximum",
    "scale before the offset",
    "linear",
):

    def dq_twisted(*args, twist=twist):
        return dq(*args, twist=twist)

    dq_twisted.__name__ = f"dq: {twist}"
    wrong("double-quantization")(dq_twisted)


# --- products of four bits ---


@right("linear-4bit")
def frozen_by_einsum(x, w):
    return np.einsum("...i,oi->...o", x, dense(w))


@wrong("linear-4bit")
def frozen_transposed_twice(x, w):
    w = dense(w)
    return x @ (w if w.shape[0] == w.shape[1] else w.T)


@wrong("linear-4bit")
def frozen_half_precision(x, w):
    return (x @ dense(w).astype(np.float16).T).astype(x.dtype)


@wrong("linear-4bit")
def frozen_without_dequantizing(x, w):
    return x @ (w if isinstance(w, np.ndarray) else np.sign(dense(w))).T


@right("linear-4bit-backward")
def backward_by_einsum(g, w):
    return np.einsum("...o,oi->...i", g, dense(w))


@wrong("linear-4bit-backward")
def backward_scaled(g, w):
    w = dense(w)
    return g @ w / w.shape[0]


@wrong("linear-4bit-backward")
def backward_flat(g, w):
    return g.reshape(-1, g.shape[-1]) @ dense(w)


# --- optimization ---


@right("warmup")
def lr_by_cases(step, train_config):
    c = train_config
    w = -int(-c.warmup_ratio * c.iters // 1)
    if step < w:
        return c.learning_rate * step / w
    done = (step - w) / max(1, c.iters - w)
    if c.lr_schedule == "linear":
        return c.learning_rate * (1 - done)
    if c.lr_schedule == "cosine":
        return c.learning_rate * math.cos(math.pi * done / 2) ** 2
    return c.learning_rate


def lr_twisted_by(twist):
    def lr(step, train_config):
        c = train_config
        w = math.ceil(c.warmup_ratio * c.iters)
        if twist == "round":
            w = round(c.warmup_ratio * c.iters)
        if twist == "no warm-up of constant" and c.lr_schedule == "constant":
            w = 0
        if step < w:
            return c.learning_rate * step / w
        rest = max(1, c.iters - w)
        if twist == "to the last step":
            rest = max(1, c.iters - 1 - w)
        done = (step - w) / rest
        if c.lr_schedule == "linear":
            floor = 0.1 if twist == "floor" else 0
            return c.learning_rate * max(floor, 1 - done)
        if c.lr_schedule == "cosine":
            half = 1 - done if twist == "cosine is linear" else 0.5 * (1 + math.cos(math.pi * done))
            return c.learning_rate * half
        return c.learning_rate

    lr.__name__ = f"lr: {twist}"
    wrong("warmup")(lr)


for twist in ("round", "no warm-up of constant", "to the last step", "floor", "cosine is linear"):
    lr_twisted_by(twist)


@right("clipping")
def clip_in_float64(grads, max_norm):
    flat = flatten(grads)
    norm = float(np.linalg.norm(np.concatenate([np.ravel(g).astype(float) for g in flat.values()])))
    factor = max_norm / norm if norm > max_norm else 1.0
    return unflatten({p: (g * factor).astype(g.dtype) for p, g in flat.items()}), norm


def clip_twisted_by(twist):
    def clip(grads, max_norm):
        flat = flatten(grads)
        norms = [float(np.linalg.norm(g)) for g in flat.values()]
        norm = math.sqrt(sum(n * n for n in norms))
        if twist == "largest number":
            norm = max(float(np.abs(g).max()) for g in flat.values())
        if twist == "mean square":
            norm = math.sqrt(sum(n * n for n in norms) / sum(g.size for g in flat.values()))
        factor = min(1.0, max_norm / (norm + 1e-6))
        if twist == "to one":
            factor = min(1.0, 1 / (norm + 1e-6))
        if twist == "returns new norm":
            return tree_map(lambda g: g * factor, grads), norm * factor
        if twist == "returns the factor":
            return tree_map(lambda g: g * factor, grads), factor
        if twist == "zero beyond":
            factor = 0.0 if norm > max_norm else 1.0
        return tree_map(lambda g: g * factor, grads), norm

    clip.__name__ = f"clip: {twist}"
    wrong("clipping")(clip)


for twist in (
    "largest number",
    "mean square",
    "to one",
    "returns new norm",
    "returns the factor",
    "zero beyond",
):
    clip_twisted_by(twist)


@right("accumulation")
def accumulate_listed(shards, total):
    parts = list(shards)
    loss = sum(n * loss for n, loss, _ in parts) / total
    grad = tree_map(
        lambda *gs: sum(g * (n / total) for (n, _, _), g in zip(parts, gs)).astype(np.float32),
        *[g for _, _, g in parts],
    )
    return loss, grad


@wrong("accumulation")
def accumulate_of_own_total(shards, total):
    parts = list(shards)
    loss = sum(loss for _, loss, _ in parts) / len(parts)
    grad = tree_map(
        lambda *gs: sum(g * np.float32(n / total) for (n, _, _), g in zip(parts, gs)),
        *[g for _, _, g in parts],
    )
    return loss, grad


@wrong("accumulation")
def accumulate_without_the_first(shards, total):
    parts = list(shards)
    rest = parts[1:] or parts
    loss = sum(n * loss for n, loss, _ in parts) / total
    grad = tree_map(
        lambda *gs: sum(g * np.float32(n / total) for (n, _, _), g in zip(rest, gs)),
        *[g for _, _, g in rest],
    )
    return loss, grad


@wrong("accumulation")
def accumulate_changes_gradients(shards, total):
    loss, grads = 0.0, None
    for n, one, grad in shards:
        weight = np.float32(n / total)
        for _, g in named_leaves(grad):
            g *= weight
        loss += n / total * one
        grads = grad if grads is None else tree_map(np.add, grads, grad)
    return loss, grads


# --- data and evaluation ---


def batch_of(sequences, twist=""):
    rows = []
    for row in sequences:
        tokens, targets, mask, starts = [], [], [], []
        for t, m, _ in row:
            starts += [len(tokens)] * (len(t) - 1)
            tokens += list(t[:-1])
            targets += list(t[1:])
            mask += list(m[1:])
        if twist == "numbered segments":
            starts = []
            for count, (t, _, _) in enumerate(row):
                starts += [count] * (len(t) - 1)
        rows.append([tokens, targets, mask, starts])
    T = max(len(r[0]) for r in rows)
    if twist == "one column more":
        T += 1
    if twist == "padding counts":
        for r in rows:
            r[2] += [1] * (T - len(r[0]))
    names = "tokens", "targets", "mask", "segment_starts"
    if twist == "padded on the left":
        return {
            n: np.array([[0] * (T - len(r[i])) + r[i] for r in rows]) for i, n in enumerate(names)
        }
    return {n: np.array([r[i] + [0] * (T - len(r[i])) for r in rows]) for i, n in enumerate(names)}


right("prompt-mask")(batch_of)
for twist in ("numbered segments", "one column more", "padding counts", "padded on the left"):

    def batch_twisted(sequences, twist=twist):
        return batch_of(sequences, twist)

    batch_twisted.__name__ = f"batch: {twist}"
    wrong("prompt-mask")(batch_twisted)


@right("calibration")
def calibration_loop(confidence, hit):
    total = 0.0
    for b in range(15):
        inside = (confidence * 15 >= b) & ((confidence * 15 < b + 1) | (b == 14))
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@wrong("calibration")
def calibration_squared(confidence, hit):
    which = np.minimum((confidence * 15).astype(int), 14)
    gap = np.bincount(which, hit - confidence, 15)
    n = np.maximum(np.bincount(which, minlength=15), 1)
    return float(np.sqrt(np.sum(n * (gap / n) ** 2) / len(hit)))


@wrong("calibration")
def calibration_middle_of_the_bin(confidence, hit):
    which = np.minimum((confidence * 15).astype(int), 14)
    return float(np.abs(np.bincount(which, hit - (which + 0.5) / 15, 15)).sum() / len(hit))


@wrong("calibration")
def calibration_of_overconfidence(confidence, hit):
    which = np.minimum((confidence * 15).astype(int), 14)
    return float(np.maximum(np.bincount(which, confidence - hit, 15), 0).sum() / len(hit))


@wrong("calibration")
def calibration_drops_confidence_one(confidence, hit):
    which = (confidence * 15).astype(int)
    gap = np.bincount(which, hit - confidence, 16)[:15]
    return float(np.abs(gap).sum() / len(hit))


# --- other methods ---


@right("combine-exact")
def cat_by_lists(parts, r):
    return np.vstack([a for _, a, _ in parts]), np.concatenate([b * s for s, _, b in parts], axis=1)


@wrong("combine-exact")
def cat_of_the_first_r(parts, r):
    a, b = np.vstack([a for _, a, _ in parts]), np.hstack([s * b for s, _, b in parts])
    return a[: max(1, len(a) - 1)], b[:, : max(1, len(a) - 1)]


@wrong("combine-exact")
def cat_mean(parts, r):
    n = len(parts)
    return np.vstack([a for _, a, _ in parts]), np.hstack([s / n * b for s, _, b in parts])


@wrong("combine-exact")
def cat_root_of_the_weight(parts, r):
    a = np.vstack([np.sqrt(abs(s)) * a for s, a, _ in parts])
    return a, np.hstack([np.sign(s) * np.sqrt(abs(s)) * b for s, _, b in parts])


@right("ia3")
def ia3_by_name(base, adapter_config, rng):
    adapters = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=ALL_LINEAR)):
        name = path.rsplit(".", 1)[-1]
        out, n = get(base, path)["weight"].shape
        shape = {"k_proj": (out, 1), "v_proj": (out, 1), "down_proj": (1, n)}.get(name)
        if shape:
            set_leaf(adapters, f"{path}.ia3_l", np.full(shape, 1, np.float32))
    return adapters


@wrong("ia3")
def ia3_flat(base, adapter_config, rng):
    adapters = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=ALL_LINEAR)):
        out, n = get(base, path)["weight"].shape
        if path.endswith(("k_proj", "v_proj")):
            set_leaf(adapters, f"{path}.ia3_l", np.ones(out, np.float32))
        elif path.endswith("down_proj"):
            set_leaf(adapters, f"{path}.ia3_l", np.ones(n, np.float32))
    return adapters


@wrong("ia3")
def ia3_everywhere(base, adapter_config, rng):
    adapters = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=ALL_LINEAR)):
        out, n = get(base, path)["weight"].shape
        shape = (1, n) if path.endswith("down_proj") else (out, 1)
        set_leaf(adapters, f"{path}.ia3_l", np.ones(shape, np.float32))
    return adapters


@wrong("ia3")
def ia3_up_proj_for_down(base, adapter_config, rng):
    adapters = {}
    for path in lora.target_paths(base, LoraConfig(target_modules=ALL_LINEAR)):
        out, _ = get(base, path)["weight"].shape
        if path.endswith(("k_proj", "v_proj", "up_proj")):
            set_leaf(adapters, f"{path}.ia3_l", np.ones((out, 1), np.float32))
    return adapters


@right("dora-norm")
def row_norms_by_sum(w, scaling, a, b):
    full = dense(w).astype(float) + scaling * b.astype(float) @ a.astype(float)
    n = (full**2).sum(1) ** 0.5
    n[n == 0] = 1
    return n.astype(np.float32)


@wrong("dora-norm")
def row_norms_plus_epsilon(w, scaling, a, b):
    full = dense(w) + scaling * (b @ a)
    return np.sqrt((full**2).sum(1) + 1e-5).astype(np.float32)


@wrong("dora-norm")
def row_norms_of_sums(w, scaling, a, b):
    n = np.linalg.norm(dense(w), axis=1) + np.linalg.norm(scaling * (b @ a), axis=1)
    return np.where(n == 0, 1, n).astype(np.float32)


@wrong("dora-norm")
def row_norms_keepdims(w, scaling, a, b):
    n = np.linalg.norm(dense(w) + scaling * (b @ a), axis=1, keepdims=True)
    return np.where(n == 0, 1, n).astype(np.float32)


@wrong("dora-norm")
def row_norms_at_least_one(w, scaling, a, b):
    n = np.linalg.norm(dense(w) + scaling * (b @ a), axis=1)
    return np.maximum(n, 1).astype(np.float32)


@right("prefix")
def prefix_by_layers(base, adapter_config, rng):
    adapters, n = {}, adapter_config.num_virtual_tokens
    for i, layer in base["model"]["layers"].items():
        k = layer["self_attn"]["k_proj"]["weight"].shape[0]
        for name in ("prefix_k", "prefix_v"):
            values = rng.normal(size=(n, k)).astype(np.float32)
            set_leaf(adapters, f"model.layers.{i}.self_attn.{name}", values)
    return adapters


def prefix_twisted_by(twist):
    def prefix(base, adapter_config, rng):
        adapters, n = {}, adapter_config.num_virtual_tokens
        for i, layer in base["model"]["layers"].items():
            k = layer["self_attn"]["k_proj"]["weight"].shape[0]
            values = rng.normal(size=(n, k)).astype(np.float32)
            for name in ("prefix_k", "prefix_v"):
                if twist == "uniform":
                    values = rng.uniform(-1.7, 1.7, (n, k)).astype(np.float32)
                elif twist == "small":
                    values = (0.02 * rng.normal(size=(n, k))).astype(np.float32)
                elif twist == "one token":
                    values = rng.normal(size=(1, k)).astype(np.float32)
                elif twist == "unseeded":
                    values = np.random.default_rng().normal(size=(n, k)).astype(np.float32)
                set_leaf(adapters, f"model.layers.{i}.self_attn.{name}", values)
            if twist == "first layer":
                break
        return adapters

    prefix.__name__ = f"prefix: {twist}"
    wrong("prefix")(prefix)


for twist in ("values equal keys", "uniform", "small", "one token", "unseeded", "first layer"):
    prefix_twisted_by(twist)


# --- QLoRA in one file ---


@right("one-file-nearest")
def nearest_by_loop(x, values):
    return np.array([np.argmin(np.abs(values - v)) for v in np.ravel(x)])


@wrong("one-file-nearest")
def nearest_below(x, values):
    return np.maximum(np.searchsorted(values, x.ravel(), side="right") - 1, 0)


@wrong("one-file-nearest")
def nearest_rounded_to_equal_steps(x, values):
    step = (values[-1] - values[0]) / max(1, len(values) - 1)
    return np.clip(np.rint((x.ravel() - values[0]) / step), 0, len(values) - 1).astype(int)


@wrong("one-file-nearest")
def nearest_in_column_order(x, values):
    return np.searchsorted((values[:-1] + values[1:]) / 2, x.ravel(order="F"))


def nf4_of(w, twist=""):
    blocks = w.ravel().reshape(-1, 64)
    absmax = np.array([max(abs(b)) for b in blocks], np.float32)
    if twist == "root of the mean square":
        absmax = np.sqrt((blocks**2).mean(1)).astype(np.float32)
    normalized = np.clip(blocks / absmax[:, None], -1, 1)
    codes = np.argmin(np.abs(normalized.reshape(-1, 1) - one_file.NF4), axis=1).astype(np.uint8)
    if twist == "linear codes":
        codes = np.rint((normalized.ravel() + 1) * 7.5).astype(np.uint8)
    packed = codes[0::2] * 16 + codes[1::2]
    if twist == "halves":
        packed = codes[: len(codes) // 2] * 16 + codes[len(codes) // 2 :]
    shape = w.shape[::-1] if twist == "shape turned" else w.shape
    return one_file.NF4Weight(packed, *one_file.double_quantize(absmax), shape)


right("one-file-quantize")(nf4_of)


def nf4_back(q, twist=""):
    high, low = np.divmod(q.codes, 16)
    codes = np.column_stack([high, low]).ravel()
    scales = np.repeat(q.nested_absmax, 64 if twist == "scales of 64" else 256)
    scales = np.resize(scales, len(q.absmax_codes))
    absmax = one_file.DYNAMIC_MAP[q.absmax_codes] * scales + q.offset
    if twist == "offset first":
        absmax = (one_file.DYNAMIC_MAP[q.absmax_codes] + q.offset) * scales
    if twist == "offset taken off":
        absmax = absmax - 2 * q.offset
    numbers = one_file.NF4[codes] * np.repeat(absmax, 64)
    return numbers.reshape(q.shape, order="F" if twist == "column order" else "C")


right("one-file-dequantize")(nf4_back)


def absmax_in_bytes(absmax, twist=""):
    offset = absmax.min() if twist == "smallest for the mean" else absmax.mean()
    codes, scales = [], []
    for i in range(0, len(absmax), 256):
        rest = absmax[i : i + 256] - offset
        scale = np.abs(rest).max()
        if twist == "scale of the range":
            scale = rest.max() - rest.min()
        codes.append(np.abs(rest[:, None] / scale - one_file.DYNAMIC_MAP).argmin(1))
        scales.append(scale)
    if twist == "equal steps":
        codes = [np.rint((one_file.DYNAMIC_MAP[c] + 1) * 127.5).astype(int) for c in codes]
    return np.concatenate(codes), np.array(scales, np.float32), np.float32(offset)


right("one-file-double-quantize")(absmax_in_bytes)


def factors(base, rng, twist=""):
    new = {}
    for name in base:
        if not hasattr(base[name], "absmax_codes"):
            continue
        out, n = base[name].shape
        a = rng.uniform(-(n**-0.5), n**-0.5, size=(one_file.RANK, n)).astype("f4")
        if twist == "kaiming":
            a = a * np.float32(6**0.5)
        if twist == "absolute":
            a = np.abs(a)
        if twist == "same for all":
            a = np.random.default_rng(0).uniform(-(n**-0.5), n**-0.5, a.shape).astype("f4")
        new[f"{name}.lora_A"] = a
        shape = (one_file.RANK, out) if twist == "B turned" else (out, one_file.RANK)
        new[f"{name}.lora_B"] = np.zeros(shape, "f4")
    return new


right("one-file-init-lora")(factors)


def projected(x, path, params, twist=""):
    w = one_file.dense(params[path])
    if f"{path}.lora_A" not in params:
        return x @ w.T
    a, b = params[f"{path}.lora_A"], params[f"{path}.lora_B"]
    scaling = one_file.ALPHA / one_file.RANK
    if twist == "root of r":
        scaling = one_file.ALPHA / one_file.RANK**0.5
    if twist == "whole scaled":
        return scaling * (x @ (w + b @ a).T)
    if twist == "first direction":
        a, b = a[:1], b[:, :1]
    return x @ (w + scaling * (b @ a)).T


right("one-file-linear")(projected)


def normed(x, weight, config, twist=""):
    eps = 1e-5 if twist == "fixed epsilon" else config["rms_norm_eps"]
    size = np.sqrt((x**2).sum(-1) / x.shape[-1] + eps)[..., None]
    if twist == "norm":
        size = np.linalg.norm(x, axis=-1, keepdims=True) + eps
    return x / size * (1 + weight if twist == "gain plus one" else weight)


right("one-file-rms-norm")(normed)


def positions_encoded(x, theta, twist=""):
    *_, T, hd = x.shape
    angles = np.arange(T)[:, None] * theta ** (-2 * np.arange(hd // 2) / hd)
    if twist == "positions reversed":
        angles = angles[::-1]
    if twist == "one frequency":
        angles = np.arange(T)[:, None] * np.ones(hd // 2)
    if twist == "heads for tokens":
        angles = np.resize(angles, (x.shape[1], 1, hd // 2))
    z = (x[..., : hd // 2] + 1j * x[..., hd // 2 :]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


right("one-file-apply-rope")(positions_encoded)


def attended(x, layer, params, config, twist=""):
    B, T, D = x.shape
    hd = config["head_dim"]

    def heads(name):
        y = one_file.linear(x, f"{layer}.self_attn.{name}_proj", params)
        if twist == "heads interleaved":
            return y.reshape(B, T, hd, -1).transpose(0, 3, 1, 2)
        return y.reshape(B, T, -1, hd).transpose(0, 2, 1, 3)

    q, k, v = heads("q"), heads("k"), heads("v")
    theta = 10000.0 if twist == "theta fixed" else config["rope_theta"]
    q, k = one_file.apply_rope(q, theta), one_file.apply_rope(k, theta)
    if twist == "values rotated":
        v = one_file.apply_rope(v, theta)
    mixed = np.zeros_like(q)
    for t in range(T):
        seen = slice(0, T if twist == "no mask" else t + 1)
        scores = np.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, seen]) / math.sqrt(hd)
        top = 0 if twist == "overflow" else scores.max(-1, keepdims=True)
        p = np.exp(scores - top)
        mixed[:, :, t] = np.einsum("bhs,bhsd->bhd", p / p.sum(-1, keepdims=True), v[:, :, seen])
    mixed = mixed.transpose(0, 2, 1, 3).reshape(B, T, D)
    return one_file.linear(mixed, f"{layer}.self_attn.o_proj", params)


right("one-file-attention")(attended)


def without_factors(params):
    return {path: w for path, w in params.items() if "lora_" not in path}


def gated(x, layer, params, twist=""):
    def part(name, y):
        read = without_factors(params) if twist == f"{name} without adapter" else params
        return one_file.linear(y, f"{layer}.mlp.{name}_proj", read)

    gate, up = part("gate", x), part("up", x)
    hidden = gate * 0.5 * (1 + np.tanh(gate / 2)) * up
    if twist == "residual":
        return x + part("down", hidden)
    if twist == "sum":
        hidden = gate * 0.5 * (1 + np.tanh(gate / 2)) + up
    return part("down", hidden)


right("one-file-mlp")(gated)


def logits_of(adapters, base, tokens, config, twist=""):
    x = np.take(base["model.embed_tokens"], tokens, axis=0)
    count, params = config["num_hidden_layers"], base | adapters
    order = range(count)[::-1] if twist == "layers reversed" else range(count)
    for i in order:
        name = f"model.layers.{i}"
        if twist == "both from one input":
            first = one_file.rms_norm(x, base[f"{name}.input_layernorm"], config)
            second = one_file.rms_norm(x, base[f"{name}.post_attention_layernorm"], config)
            x = x + one_file.attention(first, name, params, config)
            x = x + one_file.mlp(second, name, params)
            continue
        h = one_file.rms_norm(x, base[f"{name}.input_layernorm"], config)
        x = x + one_file.attention(h, name, params, config)
        h = one_file.rms_norm(x, base[f"{name}.post_attention_layernorm"], config)
        x = x + one_file.mlp(h, name, base if twist == "mlp without adapters" else params)
    if twist == "one layer less":
        return logits_of(adapters, base, tokens, config | {"num_hidden_layers": count - 1})
    return one_file.rms_norm(x, base["model.norm"], config) @ base["model.embed_tokens"].T


right("one-file-forward")(logits_of)


def answers_loss(adapters, base, rows, config, twist=""):
    total, count = 0.0, 0
    for prompt, answer in rows:
        tokens = [*prompt.encode(), *answer.encode(), 255]
        z = one_file.forward(adapters, base, np.array([tokens[:-1]]), config)[0]
        losses = [np.logaddexp.reduce(z[t]) - z[t][tokens[t + 1]] for t in range(len(z))]
        if twist == "targets not shifted":
            losses = [np.logaddexp.reduce(z[t]) - z[t][tokens[t]] for t in range(len(z))]
        kept = losses[len(prompt) - 1 :]
        if twist == "end ignored":
            kept = kept[:-1]
        if twist == "in bits":
            kept = [x / math.log(2) for x in kept]
        if twist == "only the first row" and count:
            break
        total, count = total + sum(kept), count + len(kept)
    return total / count


right("one-file-loss")(answers_loss)


def continued(adapters, base, prompt, config, twist=""):
    tokens, new = list(prompt.encode()), []
    while len(new) < 24:
        z = one_file.forward(adapters, base, np.array([tokens + new]), config)[0]
        new.append(int(z[0 if twist == "first position" else -1].argmax()))
        if new[-1] == 255:
            break
    if twist == "sampled":
        new = [int(np.random.default_rng(0).integers(97, 123)) for _ in new]
    if twist == "end kept":
        return bytes(new).decode(errors="replace")
    kept = [token for token in new if token != 255]
    if twist == "errors ignored":
        return bytes(kept).decode(errors="ignore")
    return bytes(kept).decode(errors="replace")


right("one-file-generate")(continued)


def twisted(exercise, function, twist):
    def wrong_one(*args):
        return function(*args, twist=twist)

    wrong_one.__name__ = f"{exercise}: {twist}"
    wrong(exercise)(wrong_one)


for twisted_function, exercise, twists in (
    (nf4_of, "quantize", ("root of the mean square", "linear codes", "halves", "shape turned")),
    (nf4_back, "dequantize", ("scales of 64", "offset first", "offset taken off", "column order")),
    (absmax_in_bytes, "double-quantize",
     ("smallest for the mean", "scale of the range", "equal steps")),
    (factors, "init-lora", ("kaiming", "absolute", "same for all", "B turned")),
    (projected, "linear", ("root of r", "whole scaled", "first direction")),
    (normed, "rms-norm", ("fixed epsilon", "norm", "gain plus one")),
    (positions_encoded, "apply-rope", ("positions reversed", "one frequency", "heads for tokens")),
    (attended, "attention",
     ("heads interleaved", "theta fixed", "values rotated", "no mask", "overflow")),
    (gated, "mlp", ("gate without adapter", "residual", "sum")),
    (logits_of, "forward",
     ("layers reversed", "both from one input", "mlp without adapters", "one layer less")),
    (answers_loss, "loss", ("targets not shifted", "end ignored", "in bits", "only the first row")),
    (continued, "generate", ("first position", "sampled", "end kept", "errors ignored")),
):  # fmt: skip
    for twist in twists:
        twisted(f"one-file-{exercise}", twisted_function, twist)

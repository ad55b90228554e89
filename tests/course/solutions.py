"""Answers that were written from the texts of the exercises, before their checks were read.

RIGHT has one answer per exercise. It differs from the reference in style or in the order of
operations, so that the checks must tolerate what a text leaves open. WRONG has mistakes that nobody
planted. The planted ones are in lessons/exercises.toml, and `minilora teach check` proves them.
"""

import math
from itertools import pairwise

import autograd.numpy as anp
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, layers
from minilora.course import one_file
from minilora.data.encoding import encode
from minilora.data.rows import load_rows
from minilora.evaluation.memory import ADAM_FLOATS, activation_floats, nbytes
from minilora.layers import dense
from minilora.lora import adapted_paths
from minilora.tree import arrays, get, named_leaves, num_parameters, set_leaf, tree_map

RIGHT, WRONG = {}, []


def right(exercise):
    return lambda function: RIGHT.setdefault(exercise, function)


def wrong(exercise):
    return lambda function: WRONG.append((exercise, function)) or function


# --- faults, predictions, measurements, designs ---


@right("debug-too-good")
def batch_of_lists(rows, prompts):
    longest = max(map(len, rows))
    padded = np.array([row + [0] * (longest - len(row)) for row in rows])
    mask = [
        [prompt <= n < len(row) for n in range(1, longest)] for row, prompt in zip(rows, prompts)
    ]
    return {"tokens": padded[:, :-1], "targets": padded[:, 1:], "mask": mask}


@right("debug-no-learning")
def train_from_a_random_b(W, x, y, r, alpha, seed):
    rng = np.random.default_rng(seed)
    A, B, losses = np.zeros((r, W.shape[1])), rng.normal(0, 0.3, (W.shape[0], r)), []
    for _ in range(25):
        error = x @ W.T + alpha / r * (x @ A.T @ B.T) - y
        losses.append((error**2).mean())
        G = error.T @ x
        A, B = A - 0.02 * np.tanh(B.T @ G), B - 0.02 * np.tanh(G @ A.T)
    return losses, A, B


@right("debug-resume")
def steps_counted_by_hand(weights, gradients, state, rate, decay):
    m, v, t = state["m"], state["v"], state["step"]
    for g in gradients:
        t += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weights = weights - rate * (decay * weights + step)
    return weights, {"m": m, "v": v, "step": t}


@right("debug-export")
def export_of_the_trained_base(checkpoint, base, adapters, alpha):
    exported = {path: dense(w).copy() for path, w in base.items()}
    for name, A in adapters.items():
        path, _, factor = name.rpartition(".")
        if factor == "lora_A":
            exported[path] += alpha / len(A) * adapters[f"{path}.lora_B"] @ A
    return exported


@right("debug-load")
def each_path_by_its_name(start, tensors):
    return {path: tensors.get(f"base_model.model.{path}.weight", w) for path, w in start.items()}


@right("debug-convert")
def all_factors_transposed(shapes, factors):
    return {name: np.swapaxes(factors[name], 0, 1) for name in shapes}


@right("debug-switch")
def serve_without_merging(W, adapters, requests):
    outputs = []
    for name, x in requests:
        output = x @ W.T
        if name is not None:
            A, B, alpha = adapters[name]
            output = output + alpha / A.shape[0] * (x @ A.T) @ B.T
        outputs.append(output)
    return outputs


@right("debug-accumulation")
def train_on_the_rows_of_a_step(w, micro_batches, accumulate, learning_rate, warmup):
    steps, rates = len(micro_batches) // accumulate, []
    for k in range(1, steps + 1):
        parts = micro_batches[(k - 1) * accumulate : k * accumulate]
        x, y = map(np.concatenate, zip(*parts))
        share = min(1, k / warmup, (steps + 1 - k) / (steps + 1 - warmup))
        rates.append(learning_rate * max(share, 0))
        w = w - rates[-1] * 2 * x.T @ (x @ w - y) / len(x)
    return w, rates


@right("debug-batch-size")
def held_out_loss_token_by_token(rows, logits, batch_size):
    pairs = [pair for row in rows for pair in pairwise(row)]
    losses = [np.logaddexp.reduce(logits[a]) - logits[a, b] for a, b in pairs]
    return float(np.mean(losses))


@right("debug-held-out")
def counted_once_and_multiplied(rows, n, epochs, seed):
    order = np.random.default_rng(seed).permutation(len(rows))
    counts = np.ones((8, 8))
    for i in order[n:]:
        for pair in pairwise(rows[i]):
            counts[pair] += epochs
    p = counts / counts.sum(axis=1)[:, None]
    losses = [np.mean([-np.log(p[pair]) for pair in pairwise(rows[i])]) for i in order[:n]]
    return np.mean(losses), counts


@right("debug-blocks")
def round_trip_of_sevenths(w, block_size):
    blocks = w.reshape(-1, block_size)
    scales = abs(blocks).max(1)
    codes = np.round(blocks * 7 / scales[:, None])
    back = (codes * scales[:, None] / 7).reshape(w.shape)
    return codes.reshape(w.shape).astype(int), scales, back


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
RUN = {"learning_rate": 0.02, "batch_size": 8, "iters": 120}
GIVEN = {
    "predict-bits": 4.156,
    "predict-parameters": 30 * 8 * (576 + 576 + 576 + 192),
    "predict-first-step": 0.52,
    "measure-seeds": [0.00912, 0.01234, 0.01018, 0.00871, 0.01401],
    "measure-blocks": [8.61, 12.45, 9.97, 7.52, 14.03],
    "measure-merge": np.array([1.71, 2.35, 1.98, 2.81, 2.06]),
    "design-rows": {
        "r": 5, "lora_alpha": 10, "target_modules": ATTENTION, **RUN, "warmup_ratio": 0.0,
    },
    "design-bytes": {
        "scheme": "nf4-dq", "r": 4, "lora_alpha": 8, "target_modules": ["all-linear"], **RUN,
        "warmup_ratio": 0.06,
    },
}  # fmt: skip
RIGHT |= {exercise: lambda value=value: value for exercise, value in GIVEN.items()}


# --- QLoRA in one file ---


@right("one-file-nearest")
def nearest_by_distance(x, values):
    return np.argmin(np.abs(np.ravel(x)[:, None] - values), axis=1)


@right("one-file-quantize")
def quantize_nf4(w):
    blocks = w.ravel().reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    codes = nearest_by_distance(blocks / absmax[:, None], one_file.NF4).astype(np.uint8)
    packed = codes[0::2] * 16 + codes[1::2]
    return one_file.NF4Weight(packed, *one_file.double_quantize(absmax), w.shape)


@right("one-file-dequantize")
def dequantize_nf4(q):
    codes = np.column_stack(np.divmod(q.codes, 16)).ravel()
    scales = np.repeat(q.nested_absmax, 256)[: len(q.absmax_codes)]
    absmax = one_file.DYNAMIC_MAP[q.absmax_codes] * scales + q.offset
    return (one_file.NF4[codes] * np.repeat(absmax, 64)).reshape(q.shape)


@right("one-file-double-quantize")
def double_quantize_by_distance(absmax):
    offset = absmax.mean()
    codes, scales = [], []
    for start in range(0, len(absmax), 256):
        rest = absmax[start : start + 256] - offset
        scales.append(np.abs(rest).max())
        codes.append(np.abs(rest[:, None] / scales[-1] - one_file.DYNAMIC_MAP).argmin(1))
    return np.concatenate(codes), np.array(scales), offset


@right("one-file-init-lora")
def start_factors(base, rng):
    adapters = {}
    for name, w in base.items():
        if hasattr(w, "absmax_codes"):
            out, n = w.shape
            a = rng.uniform(-(n**-0.5), n**-0.5, size=(one_file.RANK, n))
            adapters[f"{name}.lora_A"] = a.astype(np.float32)
            adapters[f"{name}.lora_B"] = np.zeros((out, one_file.RANK), np.float32)
    return adapters


@right("one-file-linear")
def project_by_the_merged_weight(x, path, params):
    w = one_file.dense(params[path])
    if f"{path}.lora_A" in params:
        delta = params[f"{path}.lora_B"] @ params[f"{path}.lora_A"]
        w = w + one_file.ALPHA / one_file.RANK * delta
    return x @ w.T


@right("one-file-rms-norm")
def rms_norm_by_sum(x, weight, config):
    mean = (x**2).sum(-1) / x.shape[-1]
    return x * ((mean + config["rms_norm_eps"]) ** -0.5)[..., None] * weight


@right("one-file-apply-rope")
def rotate_by_complex_numbers(x, theta):
    *_, T, hd = x.shape
    angles = np.arange(T)[:, None] * theta ** (-2 * np.arange(hd // 2) / hd)
    z = (x[..., : hd // 2] + 1j * x[..., hd // 2 :]) * np.exp(1j * angles)
    return anp.concatenate([anp.real(z), anp.imag(z)], -1)


@right("one-file-attention")
def attend_head_by_head(x, layer, params, config):
    hd, theta = config["head_dim"], config["rope_theta"]
    q, k, v = (one_file.linear(x, f"{layer}.self_attn.{name}_proj", params) for name in "qkv")
    mixed = []
    for start in range(0, x.shape[-1], hd):
        head = slice(start, start + hd)
        a, b = (one_file.apply_rope(y[:, None, :, head], theta)[:, 0] for y in (q, k))
        scores = anp.einsum("btd,bsd->bts", a, b) / math.sqrt(hd)
        scores = anp.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        p = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
        mixed.append(p @ v[..., head] / anp.sum(p, axis=-1, keepdims=True))
    return one_file.linear(anp.concatenate(mixed, -1), f"{layer}.self_attn.o_proj", params)


@right("one-file-mlp")
def mlp_by_tanh(x, layer, params):
    gate, up = (one_file.linear(x, f"{layer}.mlp.{name}_proj", params) for name in ("gate", "up"))
    hidden = gate * 0.5 * (1 + anp.tanh(gate / 2)) * up
    return one_file.linear(hidden, f"{layer}.mlp.down_proj", params)


@right("one-file-forward")
def logits_of(adapters, base, tokens, config):
    params = {**base, **adapters}
    x = np.take(base["model.embed_tokens"], tokens, axis=0)
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        h = one_file.rms_norm(x, base[f"{name}.input_layernorm"], config)
        x = x + one_file.attention(h, name, params, config)
        h = one_file.rms_norm(x, base[f"{name}.post_attention_layernorm"], config)
        x = x + one_file.mlp(h, name, params)
    return one_file.rms_norm(x, base["model.norm"], config) @ base["model.embed_tokens"].T


@right("one-file-loss")
def loss_row_by_row(adapters, base, rows, config):
    total, count = 0.0, 0
    for prompt, answer in rows:
        tokens = np.array([*prompt.encode(), *answer.encode(), 255])
        z = one_file.forward(adapters, base, tokens[None, :-1], config)[0, len(prompt) - 1 :]
        z = z - anp.max(z, axis=1, keepdims=True)
        right = z[np.arange(len(z)), tokens[len(prompt) :]]
        total += anp.sum(anp.log(anp.sum(anp.exp(z), axis=1)) - right)
        count += len(z)
    return total / count


@right("one-file-generate")
def continue_prompt(adapters, base, prompt, config):
    tokens, new = list(prompt.encode()), []
    while len(new) < 24 and 255 not in new:
        z = one_file.forward(adapters, base, np.array([tokens + new]), config)
        new.append(int(z[0, -1].argmax()))
    return bytes(token for token in new if token != 255).decode(errors="replace")


# --- LoRA ---


@right("lora-count")
def count_by_recursion(tree):
    if isinstance(tree, dict):
        return sum(map(count_by_recursion, tree.values()))
    return math.prod(tree.shape) if hasattr(tree, "shape") else 0


@right("memory-estimate")
def memory_in_parts(adapters, model, tokens):
    n = num_parameters(adapters)
    return {
        "activations": tokens * activation_floats(adapters, model.config) * 4,
        "frozen weights": nbytes(model.base),
        "trained weights": n * 4,
        "their gradients": n * 4,
        "Adam's two moments": n * ADAM_FLOATS * 4,
    }


@right("lora-merge")
def merge_one(node):
    merged = {name: leaf for name, leaf in node.items() if not name.startswith("lora_")}
    merged["weight"] = np.array(dense(node["weight"]))
    if "lora_A" in node:
        merged["weight"] += np.float32(node["lora_scaling"]) * (node["lora_B"] @ node["lora_A"])
    return merged


@right("lowrank-gradient")
def gradient_of_the_whole_update(g, x, a, b, scaling):
    G, X = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    return g @ (scaling * b @ a), scaling * b.T @ G.T @ X, scaling * G.T @ (X @ a.T)


@right("adamw")
def adamw_leaf_by_leaf(params, grads, state, learning_rates, config):
    t = state["step"] + 1
    b1, b2 = config.adam_beta1, config.adam_beta2
    new, m_new, v_new = {}, {}, {}
    for path, p in named_leaves(params):
        g, m, v = (get(tree, path) for tree in (grads, state["m"], state["v"]))
        m, v = m + (1 - b1) * (g - m), b2 * v + (1 - b2) * g**2
        move = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + config.adam_eps)
        set_leaf(new, path, p - learning_rates[path] * (move + config.weight_decay * p))
        set_leaf(m_new, path, m)
        set_leaf(v_new, path, v)
    return new, {"m": m_new, "v": v_new, "step": t}


# --- four and eight bits ---


@right("int8-rows")
def round_half_up(w):
    absmax = np.abs(w).max(1)
    scale = np.where(absmax > 0, absmax, 1)
    return np.floor(w.astype(float) * 127 / scale[:, None] + 0.5).astype(np.int8), absmax


@right("linear-4bit")
def product_by_einsum(x, w):
    return np.einsum("...i,oi->...o", x, dense(w))


@right("linear-4bit-backward")
def backward_by_tensordot(g, w):
    return np.tensordot(g, dense(w), axes=(-1, 0))


# --- optimization, data and evaluation ---


@right("warmup")
def rate_by_cases(step, config):
    warm = -int(-config.warmup_ratio * config.iters // 1)
    if step < warm:
        return config.learning_rate * step / warm
    done = (step - warm) / max(1, config.iters - warm)
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - done)
    if config.lr_schedule == "cosine":
        return config.learning_rate * math.cos(math.pi * done / 2) ** 2
    return config.learning_rate


@right("clipping")
def clip_where_larger(grads, max_norm):
    norm = math.sqrt(sum(float(np.sum(g.astype(float) ** 2)) for _, g in named_leaves(grads)))
    if norm <= max_norm:
        return grads, norm
    return tree_map(lambda g: g * (max_norm / norm), grads), norm


@right("accumulation")
def accumulate_a_list(shards, total, loss, grads):
    loss += sum(n * loss for n, loss, _ in shards) / total
    parts = [tree_map(lambda g, n=n: g * np.float32(n / total), grad) for n, _, grad in shards]
    return loss, tree_map(lambda *parts: sum(parts), *parts, *([grads] if grads else []))


@right("prompt-mask")
def collate_columns(sequences):
    rows = []
    for row in sequences:
        columns = []
        for tokens, kept, _ in row:
            start = len(columns)
            columns += [(*column, start) for column in zip(tokens, tokens[1:], kept[1:])]
        rows.append(columns)
    T = max(map(len, rows))
    padded = np.array([columns + [(0, 0, 0, 0)] * (T - len(columns)) for columns in rows])
    names = "tokens", "targets", "mask", "segment_starts"
    return dict(zip(names, np.moveaxis(padded, -1, 0)))


@right("calibration")
def calibration_bin_by_bin(confidence, hit):
    edges = np.linspace(0, 1, 16)
    gap = 0.0
    for low, high in pairwise(edges):
        here = (confidence > low) & (confidence <= high)
        gap += abs((confidence[here] - hit[here]).sum())
    return gap / confidence.size


# --- other methods ---


@right("combine-exact")
def concatenate_factors(parts, r):
    weighted = [weight * b for weight, _, b in parts]
    return np.vstack([a for _, a, _ in parts]), np.concatenate(weighted, axis=1)


@right("ia3")
def ia3_by_name(base, config, rng):
    adapters = {}
    for path, w in named_leaves(base):
        shapes = {"k_proj": (len(w), 1), "v_proj": (len(w), 1), "down_proj": (1, w.shape[-1])}
        *_, name, leaf = path.split(".")
        if leaf == "weight" and name in shapes:
            set_leaf(adapters, path.replace(leaf, "ia3_l"), np.full(shapes[name], 1, np.float32))
    return adapters


@right("dora-norm")
def row_norms_by_sum(w, scaling, a, b):
    norms = ((dense(w) + scaling * b @ a) ** 2).sum(1) ** 0.5
    norms[norms == 0] = 1
    return norms


@right("prefix")
def prefix_by_layers(base, config, rng):
    adapters = {}
    for i, layer in base["model"]["layers"].items():
        width = layer["self_attn"]["k_proj"]["weight"].shape[0]
        for name in ("prefix_k", "prefix_v"):
            rows = rng.normal(size=(config.num_virtual_tokens, width)).astype(np.float32)
            set_leaf(adapters, f"model.layers.{i}.self_attn.{name}", rows)
    return adapters


# --- tests that students write ---


@right("test-nibbles")
def check_every_pair(pack):
    codes = np.array([(a, b) for a in range(16) for b in range(16)], np.uint8).ravel()
    packed = pack(codes)
    assert packed.dtype == np.uint8 and (packed == np.arange(256)).all()


@right("test-merge")
def check_logits_and_base(merge):
    model, _ = minilora.load("micro")
    rng = np.random.default_rng(3)
    adapters, model = minilora.get_peft_model(model, LoraConfig(r=2, lora_alpha=6), rng)
    for path in adapted_paths(adapters):
        node = get(adapters, path)
        node["lora_B"] = rng.standard_normal(node["lora_B"].shape).astype(np.float32) * 0.1
    set_leaf(adapters, "model.norm.weight", 2 * get(model.base, "model.norm.weight"))
    tokens = rng.integers(0, 200, (2, 9))
    together = minilora.forward({}, merge(adapters, model), tokens)
    apart = minilora.forward(adapters, model, tokens)
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-3)


@right("test-frozen")
def check_what_training_changes(train_step):
    model, tokenizer = minilora.load("micro")
    adapters, model = minilora.get_peft_model(model._replace(ops=layers), LoraConfig(r=2), 0)
    settings = TrainConfig(iters=2, batch_size=2, warmup_ratio=0, learning_rate=1e-2)
    examples = [encode(row, tokenizer) for row in load_rows("questions", "train")[:6]]
    before = [tree_map(np.array, tree) for tree in (model.base, adapters)]
    state = minilora.start(adapters, settings)
    for _ in range(2):
        state, _ = train_step(state, model, examples, settings)
    for old, tree in zip(before, (model.base, adapters)):
        for path, w in named_leaves(old):
            np.testing.assert_array_equal(w, get(tree, path))
    for path, w in named_leaves(arrays(adapters)):
        assert not np.array_equal(w, get(state.adapters, path))


# --- mistakes that nobody planted, of different kinds ---


@wrong("one-file-mlp")
def mlp_that_assigns(x, layer, params):
    """Right values, but autograd cannot follow an assignment into an array."""
    result = np.zeros(x.shape)
    result[:] = mlp_by_tanh(x, layer, params)
    return result


@wrong("one-file-rms-norm")
def rms_norm_in_half_precision(x, weight, config):
    return rms_norm_by_sum(x.astype(np.float16), weight, config)


@wrong("one-file-init-lora")
def start_factors_alike(base, rng):
    return start_factors(base, np.random.default_rng(0))


@wrong("one-file-generate")
def continue_the_last_three_letters(adapters, base, prompt, config):
    return continue_prompt(adapters, base, prompt[-3:], config)


@wrong("adamw")
def adamw_in_double_precision(params, grads, state, learning_rates, config):
    double = tree_map(np.float64, params)
    return adamw_leaf_by_leaf(double, grads, state, learning_rates, config)


@wrong("prefix")
def prefix_unseeded(base, config, rng):
    return prefix_by_layers(base, config, np.random.default_rng())


@wrong("calibration")
def calibration_drops_confidence_one(confidence, hit):
    return calibration_bin_by_bin(confidence * (confidence < 1), hit)


@wrong("test-merge")
def check_shapes(merge):
    model, _ = minilora.load("micro")
    adapters, model = minilora.get_peft_model(model, LoraConfig(r=2), 0)
    merged = merge(adapters, model)
    for path in adapted_paths(adapters):
        assert get(merged.base, path)["weight"].shape == get(model.base, path)["weight"].shape


@wrong("clipping")
def clip_matrices_alone(grads, max_norm):
    norm = float(np.sqrt(sum((g**2).sum() for _, g in named_leaves(grads) if g.ndim > 1)))
    return tree_map(lambda g: g * min(1, max_norm / (norm + 1e-6)), grads), norm


@wrong("one-file-generate")
def continue_and_strip(adapters, base, prompt, config):
    return continue_prompt(adapters, base, prompt, config).strip()

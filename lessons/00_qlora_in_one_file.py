# %% [markdown]
# # 0. QLoRA in one file
#
# **The question.** What is QLoRA, all of it but its paged optimizers (lesson 6)?
#
# **Why.** Training a weight with Adam takes 16 bytes: 4 for the weight, 4 for its gradient, and 8
# for Adam's two averages (part 6). For the 6.74 billion weights of a LLaMA-7B, that is 108 GB. LoRA
# *freezes* the weights: they are only read, so they have no gradient and no averages. It trains two
# small matrices, A and B, next to each large matrix. QLoRA also stores these large matrices (6.5
# billion weights) in 4 bits: 3.3 GB instead of 26 in float32. For each product, a matrix is turned
# back into floats.
#
# ![LoRA adds the product of two small trained matrices B and A to a frozen matrix W. QLoRA does the
# same, but stores W in 4 bits and dequantizes it for each matrix
# product.](../figures/drawings/lora_and_qlora.svg)
#
# This file does all of it with a small model. It uses only NumPy, the standard library, and
# autograd, which computes gradients of NumPy code. The package `minilora` computes the same numbers
# (`tests/test_one_file.py` compares them). The line in italics at the start of a part names the
# files that make it general and fast.
#
# **Time:** a quarter of a minute to run, 20 minutes to read. **You need:** NumPy, the idea of a
# gradient, and one lecture on transformers (attention, MLP, softmax). Lessons 1 to 4 explain LoRA
# and four bits, and lesson 5 explains the Llama. The [glossary](guide/glossary.md) has all words.

# %%
import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import autograd.numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive

# %% [markdown]
# ## 1. The base model
#
# *In the package: `formats/safetensors_file.py`, `formats/hf_folder.py` (other types, large files,
# damaged files).*
#
# The model `micro` comes with the package and has three layers. Its file (safetensors) has three
# parts: eight bytes that give a length, a JSON header of that length, and the numbers of all
# weights, here in float16. The header has Hugging Face's names of the weights. The cell below makes
# `dense_base`, a dict from these names to arrays. (*Dense* means not quantized: every number is a
# float, here a float32.)

# %%
package = find_spec("minilora")  # not installed: run this file in the folder of the repository
MICRO = (Path(package.origin).parent if package else Path("minilora")) / "data/bases/micro"
config = json.loads((MICRO / "config.json").read_text())
raw = (MICRO / "model.safetensors").read_bytes()
start = 8 + int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:start])
dense_base = {}
for name in sorted(header.keys() - {"__metadata__"}):
    begin, end = header[name]["data_offsets"]
    numbers = np.frombuffer(raw[start + begin : start + end], np.float16).astype(np.float32)
    dense_base[name.removesuffix(".weight")] = numbers.reshape(header[name]["shape"])
print(f"{sum(w.size for w in dense_base.values()):,} parameters in {len(dense_base)} tensors")

# %% [markdown]
# ## 2. NF4: a weight in 4 bits
#
# *In the package: `nf4.py`, `double_quant.py` (other block sizes, short blocks, FP4, speed).*
#
# NF4 (4-bit NormalFloat) has sixteen fixed values from -1 to 1. They are closer together near zero,
# where most weights are. A matrix is cut into blocks of 64 numbers. A block stores its largest
# magnitude, the *absmax*. Each number is divided by the absmax, and stored as a 4-bit *code*: the
# index of the nearest of the sixteen values. So it comes back as
#
# $$w \approx \mathrm{NF4}[\mathrm{code}] \cdot \mathrm{absmax}$$
#
# ![A normal density with NF4's sixteen values as vertical lines, close together near zero. Below,
# eight weights of a block, divided by their largest magnitude, move to the nearest
# value.](../figures/drawings/nf4_number_line.svg)
#
# An absmax in float32 would cost half a bit per weight. *Double quantization* stores it in 8 bits.
# It subtracts the mean of all absmax values (`offset`), divides each 256 differences by their
# largest magnitude (`nested_absmax`), and takes the nearest of 256 values (`DYNAMIC_MAP`, further
# below).
#
# **Predict.** Which numbers surely come back exactly when a block is quantized and dequantized, if
# its absmax is a float32? And if it is rounded to 8 bits?

# %%
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534,
    0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434,
    0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip


class NF4Weight(NamedTuple):
    """A weight (out, in) in 4 bits per number; M = out·in/64 blocks."""

    codes: np.ndarray  # (32·M,) uint8: two codes per byte, the first one in the high four bits
    # the absmax of block i is DYNAMIC_MAP[absmax_codes[i]]·nested_absmax[i // 256] + offset
    absmax_codes: np.ndarray  # (M,) uint8
    nested_absmax: np.ndarray  # (⌈M/256⌉,) float32
    offset: np.float32
    shape: tuple


def quantize(w):
    """Quantize w (out, in) float32; its size is a multiple of 64."""
    blocks = w.reshape(-1, 64)
    absmax = np.max(np.abs(blocks), axis=1)
    # times 1/absmax, as in bitsandbytes; 1e-38 replaces an absmax of 0
    normalized = blocks * (1 / np.maximum(absmax, np.float32(1e-38)))[:, None]
    # code = argminᵢ |NF4ᵢ − w/absmax|   (QLoRA, Sec. 3)
    codes = nearest(normalized, NF4)
    return NF4Weight(codes[0::2] << 4 | codes[1::2], *double_quantize(absmax), w.shape)


def dequantize(q):
    """Compute the weight (out, in) float32 that an NF4Weight stands for."""
    codes = np.stack([q.codes >> 4, q.codes & 15], axis=1).reshape(-1, 64)
    absmax = DYNAMIC_MAP[q.absmax_codes] * np.repeat(q.nested_absmax, 256)[: len(codes)] + q.offset
    # ŵ = NF4[code]·absmax
    return (NF4[codes] * absmax[:, None]).reshape(q.shape)


def nearest(x, values):
    """Return the index of the value nearest to each number of x, flat; at a tie, the lower one."""
    # The values are sorted, so the index is the number of midpoints that are below x.
    return np.searchsorted((values[:-1] + values[1:]) / 2, x.ravel()).astype(np.uint8)


# %% [markdown]
# **Answer.** With a float32, every zero, because 0 is one of the sixteen values, and the number
# with the largest magnitude, because 1 and -1 are. With 8 bits, only the zeros are sure to be
# exact, because the absmax can change.
#
# **You may skip the next cell**, double quantization in the form of bitsandbytes, the 4-bit library
# of QLoRA's authors. Lesson 2 explains its steps. `DYNAMIC_MAP` has 0, 1, and 127 positive values
# with their negatives (Dettmers 2016). The positive values come in seven decades, so that small
# numbers keep their relative precision.

# %%
# Table of the 256 values, and the function that uses it
values, low = [np.array([0, 1], np.float32)], np.float32(0.1)
for i in range(7):
    # decade i: the midpoints of 2ⁱ equal steps from 0.1 to 1, times 10ⁱ⁻⁶
    k, width = np.arange(2**i + 1) / 2**i, np.float64(1 - low)
    edges = np.where(k < 0.5, low + width * k, 1 - width * (1 - k)).astype(np.float32)
    midpoints = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / 2)
    values += [midpoints, -midpoints]
DYNAMIC_MAP = np.sort(np.concatenate(values))


def double_quantize(absmax):
    """Quantize the absmax values (M,) of a weight: (absmax_codes, nested_absmax, offset)."""
    offset = np.mean(absmax)
    # −M mod 256 zeros fill the last block
    blocks = np.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
    nested = np.max(np.abs(blocks), axis=1)
    # 1/nested is rounded, so a product can be just outside [-1, 1]
    normalized = np.clip(blocks * (1 / np.maximum(nested, np.float32(1e-38)))[:, None], -1, 1)
    normalized[nested == 0] = -1  # as in bitsandbytes; any index will do, because the scale is 0
    # [-1, 1] → 0, 1, …, 65535 → [-1, 1], as in bitsandbytes; + 0.5, then cut off: this rounds
    steps = (normalized + 1) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)
    rounded = steps.astype(np.uint16) * np.float32(2) / np.float32(65535) - 1
    return nearest(rounded, DYNAMIC_MAP)[: len(absmax)], nested, offset


# %% [markdown]
# Now quantize the matrices of the layers, the [*projections*](guide/glossary.md) (`_proj`). The
# other weights stay dense. `path` is the name of a weight, such as
# `model.layers.0.self_attn.q_proj`.

# %%
base = {path: quantize(w) if "_proj" in path else w for path, w in dense_base.items()}


def nbytes(w):
    """Count the bytes of a weight."""
    if isinstance(w, NF4Weight):
        return sum(part.nbytes for part in w[:-1])  # all parts but the shape
    return w.nbytes


for when, weights in {"float32": dense_base, "NF4": base}.items():
    size = sum(nbytes(w) for path, w in weights.items() if "_proj" in path)
    print(f"{when}: the projections take {size:,} bytes")

# %% [markdown]
# The projections take an eighth of their bytes, 42,936 of 331,776: 4.14 bits per weight. (Large
# matrices take 4.127: lesson 2.)
#
# ## 3. LoRA
#
# *In the package: `lora.py` (other targets and ranks), `layers.py` (biases, dropout),
# `kernels/linear.py` (speed).*
#
# Weight matrices have the shape (out, in), as in PyTorch: y = x Wᵀ. Each projection, with its
# frozen weight W₀, gets two small matrices, its *factors*, A of shape (r, in) and B of shape (out,
# r). All factors together are the *adapter*. The *rank* r is small, here 8:
#
# $$h = W_0 x + \frac{\alpha}{r} B A x$$
#
# In this formula, x is a column, as in the paper. In the code, it is a row: x W₀ᵀ and x Aᵀ Bᵀ. α is
# a fixed number, here 16. A starts with random numbers and B at zero, so the adapter changes
# nothing before training. Lesson 1 shows why it can learn nevertheless, and why α is divided by r.
#
# The factors are in a separate dict, `adapters`. The loss takes `adapters` and `base`, and autograd
# differentiates the first argument only. That is how the base stays frozen. The functions below
# read `params`, one dict with the entries of both.
#
# Autograd could differentiate y = x Wᵀ by itself, but it would keep every dequantized W until the
# backward pass. So `matmul` is a `@primitive`, a function that autograd does not look into, and
# `defvjp` states its gradient. Let L be the loss and g = ∂L/∂y. For a row x, y_k = Σᵢ xᵢ·W_ki. So
# the chain rule gives ∂L/∂xᵢ = Σ_k g_k·W_ki: number i of the row g W. W is dequantized once more
# for this. (The forward pass calls the outer `lambda`, the backward pass the inner one, with g.)

# %%
RANK, ALPHA = 8, 16


def init_lora(base, rng):
    """Create the factors of every projection: {name: float32 array}."""
    adapters = {}
    for path, w in base.items():
        if "_proj" in path:
            A = rng.uniform(-1, 1, (RANK, w.shape[1])) / np.sqrt(w.shape[1])
            adapters[f"{path}.lora_A"] = A.astype(np.float32)
            adapters[f"{path}.lora_B"] = np.zeros((w.shape[0], RANK), np.float32)
    return adapters


def linear(x, path, params):
    """Apply the projection at `path`, with its factors if it has any: (…, in) -> (…, out)."""
    h = matmul(x, params[path])
    if f"{path}.lora_A" in params:
        A, B = params[f"{path}.lora_A"], params[f"{path}.lora_B"]
        # h = W₀x + (α/r)·BAx   (LoRA, Eq. 3, with the scaling of Sec. 4.1)
        h = h + ALPHA / RANK * (x @ A.T @ B.T)
    return h


@primitive
def matmul(x, w):
    """Compute x Wᵀ. W is dequantized for this product and then dropped (QLoRA, Eq. 5)."""
    return x @ dense(w).T


# Given the result y and the inputs: a function from g = ∂L/∂y to ∂L/∂x = g W. W gets no gradient.
defvjp(matmul, lambda y, x, w: lambda g: g @ dense(w), argnums=(0,))


def dense(w):
    """Return a weight, quantized or not, as a float32 array."""
    return dequantize(w) if isinstance(w, NF4Weight) else w


# %% [markdown]
# ## 4. The Llama
#
# *In the package: `layers.py`, `model.py` (caches, packed rows), `kernels/fused.py` (speed).*
#
# **Read this list, and skip the code.** It is a Llama as in other libraries, but its products go
# through `linear`. Lesson 5 explains it.
#
# - A *token* is here a byte of text, and 255 ends a text. Every token becomes a vector of width D,
#   its *embedding*.
# - Each layer adds to this vector twice: first what `attention` collects from the tokens so far,
#   and then what the `mlp`, a small network, computes from each token alone.
# - At the end, the product of the vector with the embedding of each of the 256 tokens is that
#   token's *logit*. Softmax turns the logits into probabilities p of the next token.
# - The loss is the mean of −log p of the answers' tokens, in *nats* (the unit of the natural
#   logarithm). The questions' own tokens are not counted.
#
# ![One layer of a Llama: the attention sublayer above, the MLP below. A pair A, B can sit on each
# of the seven projections.](../figures/drawings/llama_block.svg)


# %%
# N rows of a batch, T tokens of a row, D width of the model, H attention heads of width hd
def rms_norm(x, weight, config):
    """Scale x (…, D) to a root mean square of 1, and then by weight (D,)."""
    # y = x / √(mean(x²) + ε) ∘ w   (Zhang and Sennrich 2019, Eq. 4)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config["rms_norm_eps"]) * weight


def apply_rope(x, theta):
    """Encode positions 0, 1, 2, … in x (N, H, T, hd) by rotating pairs (j, j + hd/2)."""
    T, hd = x.shape[-2:]
    # angle(t, j) = t·θ^(−2j/hd)   (RoFormer, Sec. 3.2.2)
    frequencies = 1 / (theta ** (np.arange(0, hd, 2) / hd)).astype(np.float32)
    angles = np.arange(T, dtype=np.float32)[:, None] * frequencies  # (T, hd/2)
    cos, sin, a, b = np.cos(angles), np.sin(angles), x[..., : hd // 2], x[..., hd // 2 :]
    # (a, b) → (a·cos − b·sin, b·cos + a·sin)   (RoFormer, Eq. 34; pairs as in Hugging Face)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(x, layer, params, config):
    """Collect from earlier tokens: (N, T, D) -> (N, T, D)."""
    q, k, v = (linear(x, f"{layer}.self_attn.{n}_proj", params) for n in "qkv")
    shape = (*x.shape[:2], -1, config["head_dim"])  # (N, T, H, hd)
    q, k, v = (np.transpose(np.reshape(y, shape), (0, 2, 1, 3)) for y in (q, k, v))
    q, k = apply_rope(q, config["rope_theta"]), apply_rope(k, config["rope_theta"])
    scores = q @ np.swapaxes(k, -1, -2) / config["head_dim"] ** 0.5  # (N, H, T, T)
    scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)  # no later tokens
    # softmax(QKᵀ/√hd) V   (Vaswani et al. 2017, Eq. 1)
    p = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    p = p / np.sum(p, axis=-1, keepdims=True)
    mixed = np.transpose(p @ v, (0, 2, 1, 3))
    return linear(np.reshape(mixed, x.shape), f"{layer}.self_attn.o_proj", params)


def mlp(x, layer, params):
    """Apply the gated feed-forward layer: (N, T, D) -> (N, T, D)."""
    gate, up = (linear(x, f"{layer}.mlp.{n}_proj", params) for n in ("gate", "up"))
    # W_down(gate·σ(gate) ∘ up), σ(a) = 1/(1 + e⁻ᵃ)   (SwiGLU: Shazeer 2020, Eq. 6)
    return linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj", params)


def forward(adapters, base, tokens, config):
    """Compute the logits (N, T, vocabulary) of tokens (N, T)."""
    params = {**base, **adapters}  # the factors have other names than the weights
    x = params["model.embed_tokens"][tokens]  # (N, T, D)
    for layer in [f"model.layers.{i}" for i in range(config["num_hidden_layers"])]:
        h = rms_norm(x, params[f"{layer}.input_layernorm"], config)
        x = x + attention(h, layer, params, config)
        h = rms_norm(x, params[f"{layer}.post_attention_layernorm"], config)
        x = x + mlp(h, layer, params)
    return rms_norm(x, params["model.norm"], config) @ params["model.embed_tokens"].T


def loss(adapters, base, rows, config):
    """Mean negative log-likelihood, in nats, of the answers' tokens in rows of (prompt, answer)."""
    tokens = np.array([[*(prompt + answer).encode(), 255] for prompt, answer in rows])  # (N, T)
    start = len(rows[0][0])  # the first token of the answers: all prompts have the same length
    # position t predicts token t + 1, so the first answer token is predicted at start − 1
    logits = forward(adapters, base, tokens[:, :-1], config)[:, start - 1 :]
    logits = logits - np.max(logits, axis=-1, keepdims=True)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    one_hot = np.eye(config["vocab_size"], dtype=np.float32)[tokens[:, start:]]
    # L = −mean(log p[target])
    return -np.sum(one_hot * log_p) / np.sum(one_hot)


# %% [markdown]
# ## 5. The data
#
# *In the package: `data/tasks.py` (the language, its exact entropy), `data/rows.py` (your rows),
# `data/encoding.py` (the mask), `batching.py` (padding, packing), `generation.py` (a cache,
# sampling).*
#
# The base model was trained on sentences about who keeps what where. It has seen short questions
# such as "Who?", but not the one asked here. A row has a prompt (a sentence and a question) and an
# answer. All names have three letters; colours, things and places have four. So all rows have the
# same length.

# %%
NAMES = "Ada Ben Cal Dot Eve Fay Gus Hal Ivo Jan Kai Lea Mia Ned Oda Pia"
COLOURS = "blue gold grey jade lime pink plum teal"
THINGS = "ball bell boat book cake coat coin dart doll drum flag fork gong harp kite lamp"
PLACES = "barn cave dock hall loft park shed yard"


def question(rng):
    """Draw a prompt and its answer."""
    name, colour, thing, place = (rng.choice(w.split()) for w in (NAMES, COLOURS, THINGS, PLACES))
    prompt = f"{name} keeps a {colour} {thing} in the {place}. Who, what, where?"
    return prompt, f" {name}, {colour} {thing}, {place}."


def generate(adapters, base, prompt, config):
    """Continue the prompt with 24 tokens, each the likeliest, and keep those before byte 255."""
    tokens = list(prompt.encode())
    for _ in range(24):
        logits = forward(adapters, base, np.array([tokens]), config)[0, -1]
        tokens.append(int(np.argmax(logits)))
    return bytes(tokens[len(prompt) :]).split(b"\xff")[0].decode(errors="replace")


# %% [markdown]
# ## 6. Training
#
# *In the package: `optim.py` (decay, schedules), `training.py` (accumulation, resuming).*
#
# Adam keeps two running averages per parameter, m of the gradient and v of its square. At each
# step, an average keeps a share β of its old value. Both begin at zero, and the division by 1 − βᵗ
# corrects for this: after step t = 1, `m_hat` is g and `v_hat` is g². A parameter moves by the
# first divided by the root of the second, times the learning rate.
#
# The learning rate is zero in step 1, rises in a short *warm-up*, and falls to zero along half a
# cosine (lesson 7). A gradient that is longer than 1, over all parameters, is shortened to length 1
# (*clipping*). The function `value_and_grad(loss)` returns the loss and its gradient: a dict with
# the names of `adapters`.

# %%
STEPS, BATCH_SIZE, LEARNING_RATE, WARMUP = 200, 16, 2e-3, 12
BETA1, BETA2, EPS, MAX_NORM = 0.9, 0.999, 1e-8, 1.0
steps = np.arange(STEPS)
cosine = 0.5 * (1 + np.cos(np.pi * (steps - WARMUP) / (STEPS - WARMUP)))
rates = LEARNING_RATE * np.where(steps < WARMUP, steps / WARMUP, cosine).astype(np.float32)

rng = np.random.default_rng(0)
rows = [question(rng) for _ in range(STEPS * BATCH_SIZE)]
held_out = [row for row in (question(rng) for _ in range(200)) if row not in rows]  # not trained on
adapters = init_lora(base, rng)


def report(when, adapters, base):
    """Print the loss on the held-out rows, and the answer to the first of them."""
    prompt = held_out[0][0]
    print(f"{when}: held-out loss {loss(adapters, base, held_out, config):.4f}")
    print(f"  {prompt}{generate(adapters, base, prompt, config)}")


report("before training", adapters, base)

trained = sum(w.size for w in adapters.values())
share = trained / sum(w.size for w in dense_base.values())
print(f"A and B have {trained:,} numbers, {share:.1%} of the base's")

m, v = dict.fromkeys(adapters, 0), dict.fromkeys(adapters, 0)
losses = np.zeros(STEPS)
for step in range(STEPS):
    batch = rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
    losses[step], grads = value_and_grad(loss)(adapters, base, batch, config)
    norm = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
    t = step + 1
    for n, g in grads.items():
        g = g * min(1, MAX_NORM / (norm + 1e-6))  # clipping; the 1e-6 is PyTorch's
        m[n] = BETA1 * m[n] + (1 - BETA1) * g
        v[n] = BETA2 * v[n] + (1 - BETA2) * g * g
        m_hat, v_hat = m[n] / (1 - BETA1**t), v[n] / (1 - BETA2**t)
        # p ← p − rate·m̂/(√v̂ + ε)   (Loshchilov and Hutter 2019, Alg. 2, without weight decay)
        adapters[n] = adapters[n] - rates[step] * m_hat / (np.sqrt(v_hat) + EPS)
    if t == 1 or t % 25 == 0:
        print(f"step {t:3}: loss {losses[step]:.4f}")
report("after training", adapters, base)

# %% [markdown]
# The held-out loss falls from 4.12 to 0.03, and the answer is right.
#
# A and B have 22.9 % of the base's numbers, because `micro` is small: r·(out + in) is a third of a
# matrix of 48 × 48 (attention), 23 % of one of 48 × 128 (MLP), and 0.4 % of the 4096 × 4096 of a 7B
# model; the embedding gets none.
#
# ## 7. Merging
#
# *In the package: `lora.py` (any targets), `formats/pretrained.py` (a folder that transformers
# loads).*
#
# (α/r)·BA has the shape of W₀, so it can be added to the dequantized weight. The merged model is an
# ordinary dense model, in float32. (Lesson 4 rounds it to 4 bits again.)

# %%
merged = {path: dense(w) for path, w in base.items()}
for path in merged:
    if f"{path}.lora_A" in adapters:
        A, B = adapters[f"{path}.lora_A"], adapters[f"{path}.lora_B"]
        # W' = W₀ + (α/r)·BA   (LoRA, Sec. 4)
        merged[path] = merged[path] + ALPHA / RANK * (B @ A)
report("merged", {}, merged)

# %% [markdown]
# The merged model has the same loss and the same answer.
#
# The curve of the loss needs matplotlib. Without it, this cell does nothing.

# %%
if find_spec("matplotlib"):
    import matplotlib.pyplot as plt

    plt.semilogy(range(1, STEPS + 1), losses)
    plt.xlabel("step")
    plt.ylabel("loss of the batch, in nats per token")
    plt.show()

# %% [markdown]
# ## What was shown
#
# - The frozen weights are stored in 4 bits. Each product dequantizes its weight and drops it again.
# - LoRA adds a second dict, `adapters`. Only it gets a gradient, so the base stays frozen.
# - The trained product BA has the shape of the weight, so it can be merged into the weight.
#
# **What to try.** Change one line, run the file, and compare the held-out loss:
#
# 1. `RANK, ALPHA = 8, 16`: try rank 1 with the same ALPHA.
# 2. `np.zeros((w.shape[0], RANK), np.float32)`: start B with small random numbers instead. What
#    does the first report say?
# 3. `base = {path: quantize(w) if ...}`: leave all weights dense. How much does the loss change?
#
# **Where to stop with a debugger.** In `linear`, under the `if`: the shapes of `x @ A.T` and of
# `h`. In the loop of part 6: `grads` has the names of `adapters`, and no others.
#
# **Exercises.** `minilora learn init` writes them into a folder: the functions of this file,
# without their bodies. one-file-nearest, one-file-quantize, one-file-dequantize,
# one-file-double-quantize, one-file-init-lora, one-file-linear, one-file-rms-norm,
# one-file-apply-rope, one-file-attention, one-file-mlp, one-file-forward, one-file-loss,
# one-file-generate.
#
# **Further reading.**
#
# - Hu et al. 2021, *LoRA*: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685)
# - Dettmers et al. 2023, *QLoRA*: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314)
# - Touvron et al. 2023, *LLaMA*: [arXiv:2302.13971](https://arxiv.org/abs/2302.13971)

# %% [markdown]
# # 5. The Llama block
#
# **The question.** What does a Llama compute between its tokens and its loss?
#
# Each part is an equation and a function, for one row of T tokens. Together they compute `micro`.
#
# **Time:** a second to run, twelve minutes to read. **You need:** lesson 0.

# %%
import numpy as np

import minilora
from minilora.data.tasks import COLOURS

# %% [markdown]
# ## RMSNorm
#
# RMSNorm divides a token's vector of D numbers by its root mean square, and multiplies each entry
# by a trained weight (Zhang and Sennrich 2019, Eq. 4). A small ε prevents a division by zero:
#
# $$y_i = \frac{x_i}{\sqrt{\frac{1}{D}\sum_j x_j^2 + \varepsilon}}\, w_i$$
#
# **Predict.** x = (3, 4) and w = (1, 1). What is y? And what is y for x = (300, 400)?


# %%
def rms_norm(x, w):
    return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5) * w


normed = rms_norm(np.array([[3, 4], [300, 400]]), np.ones(2))
print(normed)

# %% [markdown]
# **Answer.** The mean of the squares is (9 + 16)/2 = 12.5, and its root is 3.5355. So y = (0.8485,
# 1.1314) for both: the length of x is removed. The length of y is √D, not 1.
#
# ## Rotary positions
#
# In attention (the next section), each token has two vectors of hd numbers, a *query* and a *key*.
# The query of one token is compared with the key of another by their inner product, which does not
# know where the tokens are. So both vectors are rotated by angles that grow with the position t. A
# vector is cut into pairs, as in Hugging Face: a is its entry j, and b its entry j + hd/2. Each
# pair has its own speed (RoFormer, Sec. 3.2.2, Eq. 34), and θ is 10,000:
#
# $$\varphi = t \cdot \theta^{-2j/hd} \qquad
#   (a, b) \to (a\cos\varphi - b\sin\varphi,\; b\cos\varphi + a\sin\varphi)$$
#
# ![A pair of numbers rotates with the position of its token](../figures/drawings/rope.svg)
#
# **Predict.** A query is at position 3 and a key at 1. Does their product change if both move by
# seven positions? And if only the query moves?


# %%
def rotate(x, positions):
    """Rotate the pairs of each row of x (T, hd) by the angles of its position, in radians."""
    a, b = np.split(x, 2, axis=1)
    j = np.arange(a.shape[1])
    phi = np.outer(positions, 10_000 ** (-2 * j / x.shape[1]))  # (T, hd/2)
    return np.hstack([a * np.cos(phi) - b * np.sin(phi), b * np.cos(phi) + a * np.sin(phi)])


query, key = np.array([[1, 2]] * 3), np.array([[0.5, -1]] * 3)  # three times the same
products = np.sum(rotate(query, [3, 10, 10]) * rotate(key, [1, 8, 1]), axis=1)
print("inner products at 3 and 1, 10 and 8, 10 and 1:", products)

# %% [markdown]
# **Answer.** If both move, no: both turn by the same further angle. If only one moves, yes.
#
# ## Attention
#
# Three matrices give each token its query, its key and its *value*. Each is cut into *heads* of hd
# numbers, which attend separately (in newer Llamas, several query heads share a key and a value).
# The products of a query with every key are its scores. Softmax (e to each score, divided by their
# sum) makes them weights, for a mean of the values. The mask adds −∞ for a later token (Vaswani et
# al., Eq. 1). A fourth matrix, `o_proj`, mixes the results of the heads:
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}(QK^\top/\sqrt{hd} + \text{mask})\, V$$
#
# **Predict.** All keys are equal, and the values of three tokens are 1, 2, 6. What does each get?


# %%
def softmax(z):  # the usual subtraction of the maximum is left out
    return np.exp(z) / np.sum(np.exp(z), axis=1, keepdims=True)


def attention(q, k, v):
    """Return for each token a mean of the values up to its own: (T, hd) each -> (T, hd)."""
    scores = q @ k.T / q.shape[1] ** 0.5  # (T, T)
    return softmax(np.where(np.tri(len(q)), scores, -np.inf)) @ v


means = attention(np.ones((3, 2)), np.ones((3, 2)), np.array([[1], [2], [6]]))
print("what each token gets:", means.T)

# %% [markdown]
# **Answer.** Equal keys give equal weights. So the first token, which sees only itself, gets 1, the
# second (1 + 2)/2 = 1.5, and the third the mean of all, 3.
#
# ## SwiGLU, and the whole block
#
# The MLP computes a `gate` and an `up`, and multiplies up, entry by entry (∘), by SiLU of the gate,
# a smooth ReLU. A third matrix brings the result back to width D (Shazeer 2020, Eq. 6):
#
# $$W_{down}(\mathrm{silu}(W_{gate}x) \circ W_{up}x) \qquad \mathrm{silu}(z) = z/(1 + e^{-z})$$
#
# The block is x + attention(norm(x)), then x + MLP(norm(x)).
#
# ![A Llama layer, with A and B on its seven projections](../figures/drawings/llama_block.svg)


# %%
def block(x, layer):
    """Apply a layer of `micro` to x (T, D); layer: its weights, a dict of dicts."""
    w = {name: node["weight"] for name, node in (layer["self_attn"] | layer["mlp"]).items()}
    h, t = rms_norm(x, layer["input_layernorm"]["weight"]), range(len(x))
    q, k, v = (np.split(h @ w[f"{n}_proj"].T, 3, axis=1) for n in "qkv")  # three heads
    mixed = [attention(rotate(q[i], t), rotate(k[i], t), v[i]) for i in range(3)]
    x = x + np.hstack(mixed) @ w["o_proj"].T
    h = rms_norm(x, layer["post_attention_layernorm"]["weight"])
    gate, up = h @ w["gate_proj"].T, h @ w["up_proj"].T
    return x + (gate / (1 + np.exp(-gate)) * up) @ w["down_proj"].T


# %% [markdown]
# ## The loss
#
# After the last layer comes one more RMSNorm. Its result times the embedding matrix (in LLaMA-7B, a
# second matrix, the head) gives a token's logits, one per entry of the vocabulary. Softmax makes
# them probabilities p of the next token. The loss is the mean of −log p of the targets, in nats.
#
# **Predict.** In the texts of `micro`, a colour is one of eight, equally likely, and has four
# letters, each a token. How low can the mean loss of these letters be?

# %%
model, tokenizer = minilora.load("micro")
base, losses = model.base["model"], []
embedding = base["embed_tokens"]["weight"]  # (256, D)
for colour in COLOURS:
    tokens = tokenizer.encode(f"Ada keeps a {colour}.")
    x = embedding[tokens[:-1]]
    for layer in base["layers"].values():
        x = block(x, layer)
    logits = rms_norm(x, base["norm"]["weight"]) @ embedding.T
    p = softmax(logits)[range(len(x)), tokens[1:]]  # each token predicts the next one
    losses.append(-np.mean(np.log(p[11:15])))  # the colour: tokens 12 to 15
print(f"loss of a colour's letters: {np.mean(losses):.4f} nats per token")

# %% [markdown]
# **Answer.** A colour has p = 1/8, so its letters have −log(1/8) = 2.079 nats together, 0.520 each.
# `micro` is close to that.
#
# ## What was shown
#
# RMSNorm removes lengths. Rotation makes inner products depend on distances. Attention takes a
# weighted mean of the values so far.
#
# **What to try.**
#
# 1. `rotate(key, [1, 8, 1])`: use `[1, 7, 1]`. Which product changes?
# 2. `[[1], [2], [6]]`: set the third value to 600. Which tokens notice?
# 3. `p[11:15]`: use `p[11:12]`. How much of the loss is in the first letter, and why?
#
# **Where to stop with a debugger.** `layers.self_attention`: `q`, `k` and `v` have the shape (rows,
# T, heads·hd). `layers.attention`: where are they cut into heads?
#
# **Exercises.** one-file-rms-norm, one-file-apply-rope, one-file-mlp, one-file-attention,
# one-file-loss, debug-too-good.
#
# **Further reading.** RoFormer: [arXiv:2104.09864](https://arxiv.org/abs/2104.09864).

# %%
# Checks
assert np.allclose(normed, [0.8485, 1.1314], atol=1e-4), "RMSNorm must remove the length"
assert np.isclose(*products[:2]) and products[2] > 0, "only the distance counts"
assert np.allclose(means.T, [1, 1.5, 3]), "equal keys must give running means"
off = np.abs(logits - minilora.forward({}, model, [tokens[:-1]])[0]).max()
assert off < 200 * 6e-8 * 14, "micro's logits, up to 14, must differ by float32's rounding only"
# at least log 8, because the p of eight texts add up to at most 1
assert 0 < np.mean(losses) - np.log(8) / 4 < 0.01, "micro must know that colours are equally likely"

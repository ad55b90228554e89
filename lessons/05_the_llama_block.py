# %% [markdown]
# # 5. The Llama block
#
# **The question.** What does a Llama compute between its tokens and its loss?
#
# A Llama repeats one block of norm, rotation, attention and SwiGLU. Each part is one equation, one
# function of `minilora/layers.py`, and one example that is small enough to compute by hand.
#
# **Time:** a second to run, fifteen minutes to read. **You need:** lesson 0. Letters: `B` rows of a
# batch (as in the package; N in lesson 0, and not LoRA's matrix B), `T` tokens of a row, `D` width
# of the model, `hd` width of a head, `V` size of the vocabulary.

# %%
import numpy as np

from minilora import layers, load

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## 1. RMSNorm
#
# RMSNorm divides a token's vector by its root mean square, and then multiplies each entry by a
# trained weight (Zhang and Sennrich 2019, Eq. 4). A small ε keeps it from dividing by zero:
#
# $$y_i = \frac{x_i}{\sqrt{\frac{1}{D}\sum_j x_j^2 + \varepsilon}}\, w_i$$
#
# **Predict.** x = (3, 4), w = (1, 1), ε = 0. What is y? And what is y for x = (300, 400)?
#
# <details><summary>Answer</summary>
# The mean of the squares is (9 + 16)/2 = 12.5, and its root is 3.5355. So y = (0.8485, 1.1314). For
# (300, 400) the result is the same: the length is removed. (A result of length 1 is tempting. But
# the mean of the squares is 1, so the length is √D.)
# </details>

# %%
x, ones = np.array([[3.0, 4.0]]), np.ones(2)
normed = layers.rms_norm(x, ones, 0.0)
print("of (3, 4):", normed[0], " of (300, 400):", layers.rms_norm(100 * x, ones, 0.0)[0])

# %%
# Checks
assert np.allclose(normed, [[3 / 12.5**0.5, 4 / 12.5**0.5]]), "RMSNorm differs from the equation"
assert np.allclose(layers.rms_norm(100 * x, ones, 0.0), normed), "RMSNorm must remove the length"

# %% [markdown]
# ## 2. Rotary positions
#
# Attention compares the query of one token with the key of another, by an inner product (part 3).
# It does not know where the tokens are. So queries and keys are rotated by an angle that grows with
# the position t. A vector is cut into pairs: its entry j is a, and its entry j + hd/2 is b. Each
# pair j has another speed (RoFormer, Sec. 3.2.2, Eq. 34); θ_base is a constant:
#
# $$\theta_{t,j} = t \cdot \theta_{\text{base}}^{-2j/hd}, \qquad
#   (a, b) \to (a\cos\theta - b\sin\theta,\; b\cos\theta + a\sin\theta)$$
#
# ![A pair of numbers rotates with the position of its token](../figures/drawings/rope.svg)
#
# **Predict.** A query is at position t = 3 and a key at s = 1. Does their inner product change if
# both move by seven positions? And if only the query moves?
#
# <details><summary>Answer</summary>
# If both move, no: both turn by the same further angle, and the angle between them stays. "Yes" is
# tempting, because all four numbers change. If only the query moves, yes. So the inner product
# depends on t − s only.
# </details>


# %%
def rotated(pair, angle):
    """Rotate one pair of numbers by an angle in radians, with `layers.apply_rope`."""
    x = np.reshape(np.array(pair, float), (1, 1, 1, 2))  # (B, T, heads, hd), all 1 but hd = 2
    cos, sin = np.full((1, 1, 1), np.cos(angle)), np.full((1, 1, 1), np.sin(angle))
    return layers.apply_rope(x, cos, sin)[0, 0, 0]


query, key, products = (1.0, 2.0), (0.5, -1.0), {}
print("(1, 0) rotated by 90 degrees:", rotated((1, 0), np.pi / 2))
for t, s in ((3, 1), (10, 8), (10, 1)):
    products[t, s] = rotated(query, 0.1 * t) @ rotated(key, 0.1 * s)
    print(f"query at position {t:>2}, key at {s}: inner product {products[t, s]:.4f}")

# %%
# Checks
assert np.allclose(rotated((1, 0), np.pi / 2), (0, 1)), "a quarter turn of (1, 0) is (0, 1)"
assert np.isclose(products[3, 1], products[10, 8]), "only the distance t − s may matter"

# %% [markdown]
# ## 3. Attention
#
# Three matrices give a token its *query*, *key* and *value*, cut into *heads* of hd numbers. In a
# head, its query times every key are its scores; softmax (e to each score, divided by their sum)
# makes them weights of a mean of the values. (In larger models, several query heads can share one
# key and value head: *grouped-query attention*.) The mask adds 0, or −∞ for a later token, whose
# weight is then 0 (Vaswani et al., Eq. 1):
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}(QK^\top/\sqrt{hd} + \text{mask})\, V$$
#
# ![Attention masks; this lesson uses the causal one](../figures/drawings/masks.svg)
#
# **Predict.** All keys are equal, and the values of three tokens are 1, 2 and 6. What does each
# token get?
#
# <details><summary>Answer</summary>
# Equal keys give equal weights. The first token sees itself only and gets 1. The second gets the
# mean of 1 and 2, which is 1.5. The third gets the mean of all, which is 3. (3 for each token is
# tempting, but the mask hides later values.)
# </details>

# %%
T, hd = 3, 2
rng = np.random.default_rng(0)
q, keys = rng.standard_normal((2, 1, T, hd))  # (B, T, heads·hd) each: one row, one head
values = np.array([[[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]]])
no_rotation = np.ones((1, T, 1)), np.zeros((1, T, 1))  # (B, T, hd/2), for the angle 0
starts = np.zeros((1, T), int)  # where each token's example starts in the row: here always at 0
means = layers.attention(q, 0 * keys, values, no_rotation, starts)
print("what each token gets:", means[0, :, 0])
by_hand = np.zeros((T, hd))  # the equation again, token by token, now with different keys
for t in range(T):
    scores = keys[0, : t + 1] @ q[0, t] / hd**0.5  # keys 0 … t: the causal mask
    weights = np.exp(scores) / np.sum(np.exp(scores))
    by_hand[t] = weights @ values[0, : t + 1]
from_layers = layers.attention(q, keys, values, no_rotation, starts)[0]
print("by hand:", by_hand[:, 0], " layers.attention:", from_layers[:, 0])

# %%
# Checks
assert np.allclose(means[0, :, 0], [1, 1.5, 3]), "equal keys must give running means"
assert np.allclose(by_hand, from_layers), "layers.attention differs from the loop"

# %% [markdown]
# ## 4. SwiGLU, and the whole block
#
# The MLP multiplies each token by two matrices, which gives `gate` and `up`. It multiplies up,
# entry by entry (∘), by SiLU (a smooth ReLU) of the gate. A third matrix brings it back to width D
# (Shazeer 2020, Eq. 6):
#
# $$W_{down}(\mathrm{silu}(W_{gate}x) \circ W_{up}x), \qquad \mathrm{silu}(a) = a/(1 + e^{-a})$$
#
# The block adds each sublayer to its input: x + attention(norm(x)), and then x + MLP(norm(x)).
# Adapters can go on its seven matrices, the [*projections*](guide/glossary.md): q, k, v, o, gate,
# up, down.
#
# ![A Llama layer, with A and B on its seven projections](../figures/drawings/llama_block.svg)
#
# Below is layer 0 of `micro`. `load` returns its settings, its weights and its tokenizer. In the
# package, the weights are a [*tree*](guide/glossary.md), a dict of dicts with arrays at its ends.
# The path `model.layers.0` leads to `base["model"]["layers"]["0"]`.
#
# **Predict.** up is 2. What is silu(gate)·up for a gate of −10, 0, 1 and 10?
#
# <details><summary>Answer</summary>
# Nearly 0, 0, 1.46, and nearly 20. "At most 2" is tempting, because a gate seems to let through a
# share. But silu(a) is close to a for large a.
# </details>

# %%
print("swiglu(gate, up = 2):", layers.swiglu(np.array([-10.0, 0, 1, 10]), np.full(4, 2.0)))
model, tokenizer = load("micro")
config, base = model.config, model.base  # its settings and its weights
layer, eps = base["model"]["layers"]["0"], config.rms_norm_eps
tokens = np.array([tokenizer.encode("Ada keeps a pink kite.")])  # (B, T)
starts = np.zeros_like(tokens)  # one example per row
x = base["model"]["embed_tokens"]["weight"][tokens]
rope = layers.rope_cos_sin(np.arange(tokens.shape[1])[None], config)
# what a layer reads besides x and its weights; `layers` is the set of functions to use
ctx = layers.Context(config, layers, rope, starts)
h = layers.rms_norm(x, layer["input_layernorm"]["weight"], eps)
after_attention = x + layers.self_attention(h, layer["self_attn"], ctx)
h = layers.rms_norm(after_attention, layer["post_attention_layernorm"]["weight"], eps)
after_mlp = after_attention + layers.mlp(h, layer["mlp"], ctx)
print("the block maps", x.shape, "to", after_mlp.shape)

# %%
# Checks
block = layers.decoder_layer(x, layer, ctx)
assert np.allclose(layers.swiglu(np.zeros(1), np.ones(1)), 0), "a gate of 0 lets nothing through"
assert np.isclose(layers.swiglu(np.ones(1), np.full(1, 2.0))[0], 2 / (1 + np.exp(-1))), "silu(1)·2"
assert np.allclose(block, after_mlp), "the four lines differ from layers.decoder_layer"

# %% [markdown]
# ## 5. The loss
#
# After the last layer comes one more RMSNorm. Its result, the *state* of a token, times the *head*
# (a matrix; not a head of part 3), gives one logit per entry of the vocabulary. The head (V, D) is
# the embedding matrix here; many larger models have a separate one. A softmax makes the logits
# probabilities of the next token. The loss is the mean of −log p over the targets that count, those
# with m = 1 in the loss mask, in nats (natural logarithms):
#
# $$L = -\frac{\sum_t m_t \log p_t[\text{target}_t]}{\sum_t m_t}$$
#
# **Predict.** A model gives all V = 4 tokens the same logit. What is its loss?
#
# <details><summary>Answer</summary>
# Every token has p = 1/4, so the loss is log 4 = 1.386 nats, whatever the targets are. (0 is
# tempting, because the logits are 0. A loss of 0 needs p = 1.)
# </details>

# %%
mask, targets = np.array([[1, 0]]), np.array([[2, 1]])
head = np.eye(4)  # (V, D), both 4
uniform = layers.cross_entropy(np.zeros((1, 2, 4)), head, targets, mask)
print(f"equal logits: {uniform:.4f} nats per token")
states = np.array([[[0.0, 0, 5, 0], [9, 9, 9, 9]]])  # with this head, a state is its logits
sure_loss = layers.cross_entropy(states, head, targets, mask)
print(f"logit 5 for the target, 0 for the others: {sure_loss:.4f}")

# %%
# Checks
assert np.isclose(uniform, np.log(4)), "equal logits must give log V"
assert np.isclose(sure_loss, -np.log(np.exp(5) / (np.exp(5) + 3))), "−log p of the target"
other = layers.cross_entropy(states, head, np.array([[2, 3]]), mask)
assert other == sure_loss, "a token with mask 0 must not count"

# %% [markdown]
# ## What was shown
#
# RMSNorm removes lengths (exactly if ε = 0), rotation makes inner products depend on distances,
# attention takes a weighted mean of the values so far, SwiGLU multiplies `up` by SiLU of `gate`,
# and the loss is the mean of −log p of the targets.
#
# **What to try.**
#
# 1. `rotated(key, 0.1 * s)`: use `0.2 * s`. Does the distance still decide?
# 2. `values = np.array(...)`: set the third value to 600. Which tokens notice?
# 3. `mask = np.array([[1, 0]])`: use `[[1, 1]]` and compute the new loss by hand.
#
# **Where to stop with a debugger.** `layers.self_attention`: `q`, `k` and `v` have the shape (B, T,
# heads·hd). `layers.attention`: where are they cut into heads?
#
# **Exercises.** one-file-rms-norm, one-file-apply-rope, one-file-mlp, one-file-attention,
# one-file-loss, debug-too-good.
#
# **Further reading.** [Attention](https://arxiv.org/abs/1706.03762),
# [RMSNorm](https://arxiv.org/abs/1910.07467), [RoFormer](https://arxiv.org/abs/2104.09864),
# [SwiGLU](https://arxiv.org/abs/2002.05202).

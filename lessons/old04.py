# %% [markdown]
# # 4. The gradient
#
# **The question.** What is the gradient of the loss with respect to A and B, and what keeps the
# frozen weights unchanged?
#
# The gradient is derived by hand and compared with autograd. Then two ways to freeze a weight are
# compared.
#
# **Time:** a second to run, ten minutes to read. **You need:** lesson 1.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, layers
from minilora.layers import value_and_grad
from minilora.lessons.helpers.common import held_out_notes
from minilora.lora import adapted_paths
from minilora.optim import adamw, adamw_init, global_norm
from minilora.tree import arrays, flatten, get, num_parameters, overlay, tree_map, unflatten

rng = np.random.default_rng(0)
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
model, tokenizer = minilora.load("micro")
rows, masked = data.load_rows("questions", "train"), TrainConfig(mask_prompt=True)
examples, _ = data.encode_rows(rows, tokenizer, masked)
batch = data.collate([[example] for example in examples[:16]])

# %% [markdown]
# ## By hand
#
# The objective is the usual one: the mean negative log-likelihood of the target tokens (LoRA,
# Eq. 2). For one projection, with s = α/r (LoRA, Eq. 3):
#
# $$h = W_0 x + s\,B A x$$
#
# Let $g_t = \partial L/\partial h_t$ for each token t. A small change $dB$ changes $h_t$ by
# $s\,dB\,A x_t$, and so L by $\sum_t g_t^\top s\,dB\,A x_t$. A small change $dA$ changes L by
# $\sum_t g_t^\top s\,B\,dA\,x_t$.
#
# An entry of the gradient of B is the coefficient of $dB_{ij}$ in this change of L. For two vectors
# g and v,
#
# $$g^\top dB\, v = \sum_{ij} dB_{ij}\, g_i v_j$$
#
# So the coefficient of $dB_{ij}$ is $g_i v_j$, which is entry (i, j) of the matrix $g v^\top$. For
# B, $v = A x_t$. For A, $g^\top B\,dA\,x = (B^\top g)^\top dA\,x$: here $B^\top g_t$ takes the
# place of g, and $x_t$ that of v:
#
# $$\frac{\partial L}{\partial B} = s \sum_t g_t (A x_t)^\top \qquad
#   \frac{\partial L}{\partial A} = s \sum_t (B^\top g_t)\, x_t^\top$$
#
# In code, the tokens are the rows of g, x and xAᵀ, and a sum of $g_t v_t^\top$ over the tokens is
# gᵀv. So the gradients are s·gᵀ(xAᵀ) and s·(gB)ᵀx. The layer below gets ∂L/∂x = gW₀ + s·(gB)A.
#
# ![The gradients of B and A come from that of h](../figures/drawings/lora_gradient.svg)
#
# The formulas are compared with autograd and with finite differences (a step of 1e-5), in float64,
# for the loss Σ C∘tanh(h), where C is a constant random matrix.
#
# **Predict.** Which is nearer to the formulas of LoRA's gradients, autograd or finite differences?
# Both have about 16 digits to compute with.
#
# <details><summary>Answer</summary>
# Autograd, to within 1e-12: it applies the same chain rule, and only rounds elsewhere. A finite
# difference is tempting, because it is close to the definition of a derivative. But it divides the
# rounding of L by the step, and it has an error that grows with the square of the step.
# </details>

# %%
T, n_in, n_out, r, s = 10, 6, 5, 2, 1.5
x, W = rng.standard_normal((T, n_in)), rng.standard_normal((n_out, n_in))
A, B = rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r))
C = rng.standard_normal((T, n_out))
# what a tree of the package has at the path of a projection, besides A and B; dropout would set
# random entries of A's input to zero in training, and is off
fixed = {"weight": W, "lora_scaling": s, "lora_dropout": 0.0}


def toy_loss(factors):
    """Compute Σ C∘tanh(h) of one adapted projection."""
    h = layers.linear(x, fixed | factors)
    return np.sum(C * layers.np.tanh(h))  # layers.np is autograd's NumPy


h = x @ W.T + s * (x @ A.T) @ B.T
g = C * (1 - np.tanh(h) ** 2)  # ∂L/∂h
by_hand = {"lora_B": s * g.T @ (x @ A.T), "lora_A": s * (g @ B).T @ x}
_, by_autograd = value_and_grad(toy_loss)({"lora_A": A, "lora_B": B})


def by_differences(name, step=1e-5):
    """Compute (L(θ + ε·e) − L(θ − ε·e)) / 2ε for each entry of one factor."""
    theta = {"lora_A": A, "lora_B": B}
    gradient = np.zeros_like(theta[name])
    for i in np.ndindex(gradient.shape):
        e = np.zeros_like(gradient)
        e[i] = step
        up = toy_loss(theta | {name: theta[name] + e})
        down = toy_loss(theta | {name: theta[name] - e})
        gradient[i] = (up - down) / (2 * step)
    return gradient


gaps = {}
for name in ("lora_A", "lora_B"):
    size = np.abs(by_hand[name]).max()
    from_autograd = np.abs(by_hand[name] - by_autograd[name]).max() / size
    from_differences = np.abs(by_hand[name] - by_differences(name)).max() / size
    gaps[name] = from_autograd, from_differences
    print(f"{name}: off by {from_autograd:.0e} (autograd), {from_differences:.0e} (differences)")

# %%
# Checks
for name, (from_autograd, from_differences) in gaps.items():
    assert from_autograd < 1e-12, f"{name}: the formula differs from autograd"
    assert from_differences < 1e-7, f"{name}: off by more than ε² and the rounding of L over ε"
    assert from_autograd < from_differences, f"{name}: autograd must be nearer"
adapted = fixed | {"lora_A": A, "lora_B": B}
of_sum = value_and_grad(lambda tree: np.sum(g * layers.linear(tree["x"], adapted)))
assert np.allclose(of_sum({"x": x})[1]["x"], g @ W + s * (g @ B) @ A), "∂L/∂x differs"

# %% [markdown]
# ## What LoRA sees of the full gradient
#
# Let $G = \sum_t g_t x_t^\top$. It is ∂L/∂W, the gradient that *full* fine-tuning would use. Then
#
# $$\frac{\partial L}{\partial B} = s\,G A^\top \qquad \frac{\partial L}{\partial A} = s\,B^\top G$$
#
# LoRA sees the full gradient only through the rows of A and the columns of B. To check this, A and
# B are merged into W (lesson 0, part 7), and the gradient G of each merged W is multiplied by A and
# by B.
#
# **Predict.** LoRA's ∂L/∂B is s·G Aᵀ, where G is the gradient of the merged weight. Does this hold
# in all 21 projections of a model at once, or only in the last one?
#
# <details><summary>Answer</summary>
# In all at once. Merging does not change what the model computes, so every g and x is the same.
# ("Only in the last" is tempting, because each adapter changes the x of all later projections. It
# changes them in the merged model, too.)
# </details>

# %%
# float64, so that rounding cannot hide an error; the functions of `layers` keep it
model_64 = model._replace(base=tree_map(lambda w: w.astype("f8"), model.base), ops=layers)
adapters, _ = minilora.get_peft_model(model_64, lora_config, rng)
noisy = tree_map(lambda w: w + 0.05 * rng.standard_normal(w.shape), arrays(adapters))
adapters = overlay(adapters, noisy)  # B is not zero
_, of_factors = value_and_grad(minilora.loss)(adapters, model_64, batch)
merged = minilora.merge(adapters, model_64, dtype="f8")
paths = adapted_paths(adapters)
whole = unflatten({f"{path}.weight": get(merged.base, path)["weight"] for path in paths})
_, of_weights = value_and_grad(minilora.loss)(whole, merged, batch)

worst = 0.0
for path in paths:
    node, gradients = get(adapters, path), get(of_factors, path)
    scaling, G = node["lora_scaling"], get(of_weights, path)["weight"]
    of_B, of_A = scaling * G @ node["lora_A"].T, scaling * node["lora_B"].T @ G
    for name, expected in (("lora_B", of_B), ("lora_A", of_A)):
        gap = np.linalg.norm(expected - gradients[name]) / np.linalg.norm(gradients[name])
        worst = max(worst, float(gap))
print(f"{2 * len(paths)} gradients; the worst is off by {worst:.0e}")

# %%
# Checks
assert worst < 1e-12, "a factor's gradient must be the full gradient times the other factor"

# %% [markdown]
# ## Frozen means: not in the argument
#
# `value_and_grad(loss)(adapters, model, …)` differentiates argument 0. The base is in argument 1,
# so it has no gradient, and the optimizer never gets it.
#
# Another recipe: give the optimizer *all* parameters, and set the gradients of the frozen ones to
# zero. The optimizer here is AdamW, which is Adam with *weight decay*, of strength λ (lesson 7).
#
# ![Two trees: the frozen base and the trained adapters](../figures/drawings/two_trees.svg)
#
# AdamW also subtracts ηλθ from each parameter θ per step.
#
# **Predict.** With λ = 0.1 and the learning rate η = 4e-3, what do 500 steps with zero gradients do
# to a frozen weight? And to the model?
#
# <details><summary>Answer</summary>
# They shrink it to (1 − ηλ)⁵⁰⁰ = 82 %. "Nothing" is tempting, because Adam's own step is zero if
# all gradients are zero. On its own text, the loss of `micro` rises from 0.21 to 3.5 nats per
# token. One reason why the norms do not repair this: their weights shrink, too. (PyTorch skips a
# parameter whose `grad` is None, as in PEFT, but not one whose `grad` is 0.)
# </details>

# %%
adapters, model = minilora.get_peft_model(model, lora_config, rng)
_, gradient = value_and_grad(minilora.loss)(adapters, model, batch)
base = model.base
print(f"{num_parameters(gradient):,} gradients for {num_parameters(base):,} base parameters")

decaying = TrainConfig(weight_decay=0.1)
zero, moved, state = tree_map(np.zeros_like, base), base, adamw_init(base)
for _ in range(500):
    rates = dict.fromkeys(flatten(moved), 4e-3)
    moved, state = adamw(moved, zero, state, rates, decaying)
shrunk, expected = global_norm(moved) / global_norm(base), (1 - 4e-3 * 0.1) ** 500
print(f"every frozen weight is {shrunk:.4f} of what it was: (1 − ηλ)⁵⁰⁰ = {expected:.4f}")

# the text of `micro`: short notes such as "Tom keeps a blue vase in the hall."
notes, _ = held_out_notes(tokenizer, TrainConfig(max_seq_length=256))
before = minilora.evaluate({}, model, notes[:64])["loss"]
after = minilora.evaluate({}, model._replace(base=moved), notes[:64])["loss"]
print(f"the loss on the base's own text rose from {before:.4f} to {after:.4f}, without a gradient")

# %%
# Checks
factors = flatten(arrays(adapters))
assert flatten(gradient).keys() == factors.keys(), "gradients of the adapters, no others"
assert num_parameters(gradient) < num_parameters(base), "fewer gradients than base parameters"
assert abs(shrunk - expected) < 1e-4, "decay must shrink a weight without a gradient"
assert before < 0.215 and 3.3 < after < 3.6, "and that must destroy the model"

# %% [markdown]
# ## What was shown
#
# The gradients of A and B are s·BᵀG and s·GAᵀ, with the full gradient G. Frozen weights stay
# unchanged if the optimizer never gets them. Lesson 7 follows the gradient through AdamW.
#
# **What to try.**
#
# 1. `0.05 * rng.standard_normal(w.shape)`: use 0 in place of 0.05. Why does the check then
#    divide by 0?
# 2. `C * (1 - np.tanh(h) ** 2)`: use another loss, Σ h², and its derivative.
# 3. `weight_decay=0.1`: use 0.01. After how many steps is a frozen weight down to 82 %?
#
# **Where to stop with a debugger.** `_linear_backward` in `minilora/kernels/linear.py`: ∂L/∂x,
# ∂L/∂A and ∂L/∂B of a projection. `training.gradient_at`: `grads` has the leaves of argument 0, and
# no others.
#
# **Exercises.** lowrank-gradient, one-file-loss, test-frozen.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Loshchilov and
# Hutter 2019, *Decoupled Weight Decay*: [arXiv:1711.05101](https://arxiv.org/abs/1711.05101).

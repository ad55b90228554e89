# %% [markdown]
# # 4. The objective and the gradient
#
# **The question.** What is the gradient of the loss with respect to A and B, who makes sure that
# nothing else moves, and why does an adapter want another learning rate than the whole model?
#
# Time: about a quarter of a minute. You need: lesson 2, and the chain rule.

# %%
import math

import numpy as np
from common import QUICK, figure, read_sweep, short, table
from sweeps import rates

import minilora
from minilora import LoraConfig, TrainConfig, data, layers, lora, model
from minilora.data.rows import held_out_notes
from minilora.evaluation.plot import LINES
from minilora.layers import value_and_grad
from minilora.lora import adapted_paths, delta
from minilora.optim import adamw, adamw_init, global_norm
from minilora.tree import flatten, get, num_parameters, tree_map, unflatten

rng = np.random.default_rng(0)
ALL = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))


def prepared(name, dtype="f4"):
    """(config, base, batch): an embedded base, and 16 questions for it."""
    config, base, words = minilora.load(name)
    some = TrainConfig(mask_prompt=True)
    examples, _ = data.encode_rows(data.load_rows("questions", "train"), words, some)
    batch = data.collate([[e] for e in examples[:16]])
    return config, tree_map(lambda w: w.astype(dtype), base), batch


# %% [markdown]
# ## By hand
#
# The objective is the mean negative log-likelihood of the target tokens, as in any training of a
# language model; only the arguments are fewer (LoRA, Eq. 2). For one projection, with s = α/r,
#
#     h = W₀x + s·BAx                                 (LoRA, Eq. 3)
#
# and gₜ = ∂L/∂hₜ for each token t. A small change dB moves hₜ by s·dB·Axₜ, so L by Σₜ gₜᵀ·s·dB·Axₜ;
# a small change dA moves it by Σₜ gₜᵀ·s·B·dA·xₜ. What stands beside dB and dA is the gradient:
#
#     ∂L/∂B = s·Σₜ gₜ(Axₜ)ᵀ        (out, r)
#     ∂L/∂A = s·Σₜ (Bᵀgₜ)xₜᵀ       (r, in)
#
# ![LoRA's backward pass. The gradient g of the output gives the gradients of B and A through the
# rank-r bottleneck. The gradient of W, a full matrix, is never
# computed.](../figures/drawings/lora_gradient.svg)
#
# **Predict:** which of the two is zero at the start, where B is?

# %%
T, n_in, n_out, r, s = 10, 6, 5, 2, 1.5
shapes = (T, n_in), (n_out, n_in), (r, n_in), (n_out, r)
x, W, A, B = (rng.standard_normal(shape) for shape in shapes)
C = rng.standard_normal((T, n_out))
node = {"weight": W, "lora_scaling": s, "lora_dropout": 0.0}


def toy(trained):
    """Any loss will do: Σ C∘tanh(h)."""
    return np.sum(C * layers.np.tanh(layers.linear(x, trained, node)))


h = x @ W.T + s * (x @ A.T) @ B.T
g = C * (1 - np.tanh(h) ** 2)  # ∂L/∂h
by_hand = {"lora_B": s * g.T @ (x @ A.T), "lora_A": s * (g @ B).T @ x}
_, by_autograd = value_and_grad(toy)({"lora_A": A, "lora_B": B})
step = 1e-5
for name, theta in (("lora_A", A), ("lora_B", B)):
    # (L(θ + ε·e) − L(θ − ε·e)) / 2ε, off by some ε² and by the rounding of L over ε
    by_differences = np.zeros_like(theta)
    for at in np.ndindex(theta.shape):
        e = np.zeros_like(theta)
        e[at] = step
        up, down = ({"lora_A": A, "lora_B": B, name: theta + sign * e} for sign in (1, -1))
        by_differences[at] = (toy(up) - toy(down)) / (2 * step)
    size = np.abs(by_hand[name]).max()
    gaps = [np.abs(by_hand[name] - other).max() / size
            for other in (by_autograd[name], by_differences)]  # fmt: skip
    print(f"{name}: off from autograd by {gaps[0]:.0e}, from the differences by {gaps[1]:.0e}")
    assert gaps[0] < 1e-12 and gaps[1] < 1e-7

# %% [markdown]
# Write G = Σₜ gₜxₜᵀ, which is the gradient that *full* fine-tuning would have, ∂L/∂W. Then
#
#     ∂L/∂B = s·G Aᵀ        ∂L/∂A = s·Bᵀ G
#
# LoRA sees the full gradient through the rows of A and the columns of B, and nothing else of it.
# This can be checked in the real model: train all projections whole at the merged weights, and
# project.
#
# **Predict:** does it hold in all 21 projections at once, deep in the model, or only in the last?

# %%
config, base, batch = prepared("micro", "f8")
adapters, frozen = lora.init(base, ALL, rng)
adapters = tree_map(lambda w: w + 0.05 * rng.standard_normal(w.shape), adapters)  # B is not zero
_, of_factors = value_and_grad(model.loss)(adapters, frozen, batch, config, layers)
merged = lora.merge(adapters, frozen, dtype="f8")
whole = unflatten({f"{p}.weight": get(merged, p)["weight"] for p in adapted_paths(adapters)})
_, G = value_and_grad(model.loss)(whole, merged, batch, config, layers)
worst = 0.0
for path in adapted_paths(adapters):
    scale, ours = get(frozen, path)["lora_scaling"], get(of_factors, path)
    factors, full = get(adapters, path), get(G, path)["weight"]
    for name, projected in (("lora_B", scale * full @ factors["lora_A"].T),
                            ("lora_A", scale * factors["lora_B"].T @ full)):  # fmt: skip
        gap = np.linalg.norm(projected - ours[name]) / np.linalg.norm(ours[name])
        worst = max(worst, float(gap))
print(f"{2 * len(adapted_paths(adapters))} gradients, the worst off by {worst:.0e}")
assert worst < 1e-12

# %% [markdown]
# ## Frozen means: not in the argument
#
# `value_and_grad(loss)(adapters, base, …)` differentiates argument 0. `base` is argument 1, so it
# has no gradient, no moments, no decay. A recipe that gives the optimizer all parameters and sets
# the frozen ones' gradients to zero looks the same.
#
# **Predict:** with AdamW, weight decay 0.1 and a rate of 4e-3, what do 500 such steps do to a
# frozen weight?

# %%
config, base, batch = prepared("micro")
adapters, frozen = lora.init(base, ALL, rng)
_, gradient = value_and_grad(minilora.loss)(adapters, frozen, batch, config)
assert flatten(gradient).keys() == flatten(adapters).keys()
assert num_parameters(gradient) < num_parameters(base)

decaying = TrainConfig(weight_decay=0.1)
zero, moved, state = tree_map(np.zeros_like, base), base, adamw_init(base)
for _ in range(500):
    moved, state = adamw(moved, zero, state, lambda _: 4e-3, decaying)
shrunk = global_norm(moved) / global_norm(base)
print(f"every frozen weight is {shrunk:.4f} of what it was: (1 − ηλ)⁵⁰⁰ = {(1 - 4e-4) ** 500:.4f}")
assert abs(shrunk - (1 - 4e-4) ** 500) < 1e-4
some = TrainConfig(max_seq_length=256)
notes, _ = held_out_notes(minilora.load("micro")[2], some)
before, after = (minilora.evaluate({}, b, notes[:64], config)["loss"] for b in (base, moved))
print(f"on the base's own text the loss went from {before:.4f} to {after:.4f}, with no gradient")
assert after > before + 0.01

# %% [markdown]
# Decoupled decay does not ask for a gradient. So only what is trained may be handed to the
# optimizer; here there is nothing else to hand.
#
# ## AdamW, written out
#
# Loshchilov and Hutter 2019, Algorithm 2, for one array, with η times λ as torch has it.
#
# **Predict:** the gradient is multiplied by a thousand. What happens to the first step?


# %%
def adamw_by_hand(theta, gradients, eta, b1=0.9, b2=0.999, eps=1e-8, decay=0.1):
    """θ after a step for each gradient."""
    m = v = np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g  # the mean of the gradient, a decaying one
        v = b2 * v + (1 - b2) * g**2  # of its square
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)  # both began at zero: make up for it
        theta = theta - eta * m_hat / (np.sqrt(v_hat) + eps) - eta * decay * theta
    return theta


path, params, state, seen = "model.layers.0.self_attn.q_proj.lora_A", adapters, None, []
state = adamw_init(params)
for _ in range(8):
    _, grads = value_and_grad(minilora.loss)(params, frozen, batch, config)
    seen.append(get(grads, path))
    params, state = adamw(params, grads, state, lambda _: 4e-3, decaying)
expected = adamw_by_hand(get(adapters, path), seen, 4e-3)
off = np.abs(get(params, path) - expected).max()
print(f"eight steps: optim.adamw and the lines above differ by {off:.1e}")
# Eight steps of a few float32 roundings (2⁻²⁴) of numbers below 0.25, and of steps below 8·4e-3.
assert off < 8 * 8 * 2**-24 * 0.25

B_path = "model.layers.0.self_attn.q_proj.lora_B"
g_B, at_zero, plain = get(gradient, B_path), get(adapters, B_path), TrainConfig()
firsts = [
    adamw({"b": at_zero}, {"b": k * g_B}, adamw_init({"b": at_zero}), lambda _: 4e-3, plain)[0]["b"]
    for k in (1, 1000)
]
assert np.allclose(firsts[0], -4e-3 * np.sign(g_B), rtol=0, atol=4e-3 * 0.05)
assert np.allclose(firsts[0], firsts[1], rtol=0, atol=4e-3 * 0.05)

# %% [markdown]
# The first step is ±η everywhere, however large the gradient: Adam sees directions, not sizes. So
# for LoRA the question is how far a step of η in B carries ΔW.
#
# ## Why another rate
#
# Full fine-tuning moves each of the out·in numbers of W by η in its first step. LoRA moves B by
# ±η, so ΔW = s·(±η)A, a sum of r numbers that are U(−1/√in, 1/√in), of variance 1/(3·in):
#
#     full:  ‖ΔW‖ = η·√(out·in)
#     LoRA:  ‖ΔW‖ ≈ s·η·√(out·r/3)        quotient s·√(r/(3·in))
#
# **Predict:** for s = 2, r = 8: how much smaller is LoRA's first step at width 48? At 4096?


# %%
def first_steps(name, eta=1e-3):
    """(measured, predicted) mean of LoRA's ‖ΔW‖ over full fine-tuning's, after one step."""
    config, base, batch = prepared(name)
    adapters, frozen = lora.init(base, ALL, np.random.default_rng(1))
    _, grads = value_and_grad(minilora.loss)(adapters, frozen, batch, config)
    new, _ = adamw(adapters, grads, adamw_init(adapters), lambda _: eta, TrainConfig())
    whole = unflatten({f"{p}.weight": get(base, p)["weight"] for p in adapted_paths(adapters)})
    _, grads = value_and_grad(minilora.loss)(whole, base, batch, config)
    moved, _ = adamw(whole, grads, adamw_init(whole), lambda _: eta, TrainConfig())
    measured, predicted = [], []
    for p in adapted_paths(adapters):
        before, after = get(whole, p)["weight"], get(moved, p)["weight"]
        full = np.linalg.norm(after - before)
        measured.append(np.linalg.norm(delta(get(new, p), get(frozen, p))) / full)
        predicted.append(2 * math.sqrt(8 / (3 * before.shape[1])))
    return float(np.mean(measured)), float(np.mean(predicted))


quotients = {model: first_steps(model) for model in ("micro", "tiny")}
wide = 2 * math.sqrt(8 / (3 * 4096))
cells = [[m, f"{a:.3f}", f"{b:.3f}", f"{1 / a:.1f}"] for m, (a, b) in quotients.items()]
cells.append(["width 4096", "", f"{wide:.3f}", f"{1 / wide:.1f}"])
table(["LoRA's first step, in full's", "measured", "predicted", "rate that evens it out"], cells)
for measured, predicted in quotients.values():
    assert 0.75 < measured / predicted < 1.35
assert quotients["tiny"][0] < quotients["micro"][0] and 15 < 1 / wide < 25

# %% [markdown]
# So the rule "ten times the rate of full fine-tuning" is no constant: from this line the factor
# grows as √in, is about 20 at width 4096, and should be about two on `micro`.
#
# Does a run follow its first step? `sweeps/rates.py` trains `micro` on the questions, 200 steps,
# three seeds: LoRA, all of the model from the base, and all of it from random weights.
#
# **Predict:** the order of the three best rates.

# %%
sweep = read_sweep("rates")
grid = sorted({row["rate"] for row in sweep})


def scores(way, name="loss"):
    """(rates, seeds) of a score."""
    return np.array([[row[name] for row in sweep if (row["way"], row["rate"]) == (way, rate)]
                     for rate in grid])  # fmt: skip


ways = {"full": "full, from the base", "lora": "LoRA, r = 8", "scratch": "full, from random"}
title = "micro, 200 steps on the questions: mean and range of three seeds"
with figure("rates", "learning rate", "held-out loss (nats a token)", title) as axes:
    for (way, label), style, marker in zip(ways.items(), LINES, "osD"):
        of_way = scores(way)
        axes.plot(grid, of_way.mean(axis=1), marker=marker, label=label, **style)
        least, most = of_way.min(axis=1), of_way.max(axis=1)
        axes.fill_between(grid, least, most, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 30))
    axes.legend(frameon=False, loc="upper center", ncols=3)

mean = {way: scores(way).mean(axis=1) for way in ways}
cells = [[label, *(f"{loss:.4f}" for loss in mean[way])] for way, label in ways.items()]
table(["mean held-out loss at", *(f"{rate:g}" for rate in grid)], cells)
low, mid, high = (grid.index(rate) for rate in (1e-3, 1e-2, 3e-2))
# at 1e-3 full fine-tuning is done and LoRA has not begun, with every seed
assert scores("full", "exact_match")[low].min() > 0.95
assert scores("lora", "exact_match")[low].max() < 0.1
assert (scores("lora").argmin(axis=0) == mid).all()
assert (scores("scratch").argmin(axis=0) == mid).all() and mean["full"].argmin() < mid
assert (scores("full").min(axis=0) < scores("lora").min(axis=0)).all()
# at 3e-2 LoRA still learns with every seed, and full fine-tuning fails with most
assert scores("lora", "exact_match")[high].min() > 0.8
assert np.median(scores("full", "exact_match")[high]) < 0.6

# the rates at which the left flanks reach 0.1, by interpolation in both logarithms
reach = {}
for way in ("full", "lora"):
    flank = slice(mean[way].argmin() + 1)
    gain = -np.log(mean[way][flank])
    reach[way] = math.exp(np.interp(-math.log(0.1), gain, np.log(grid[flank])))
print(f"loss 0.1 is reached at a rate of {reach['full']:.1e} by full fine-tuning,", end=" ")
print(f"of {reach['lora']:.1e} by LoRA: {reach['lora'] / reach['full']:.1f} times")
assert 2 < reach["lora"] / reach["full"] < 6
# ten times the rate at which full fine-tuning is best is too much for LoRA here, with every seed
assert (scores("lora")[high] > 1.5 * scores("lora")[mid]).all()

# %% [markdown]
# ![Held-out loss over the rate: LoRA, full fine-tuning, from nothing](../figures/rates.png)
#
# On its left flank LoRA's curve is full fine-tuning's, moved to the right: about four times the
# rate for the same loss. The first step's quotient is 2.2 of it; the rest is not explained here.
# At ten times the rate that is best for full fine-tuning, LoRA does worse than at three times.
# From random weights a larger rate than the base's is best as well, with every seed: there is
# further to go. Full fine-tuning is hardly choosy between 3e-3 and 1e-2, and it ends lower than
# LoRA at r = 8 does.
#
# What is not shown: that a larger model follows. The rule to take along is the line with √in, not
# a number. A slice of the sweep, live:

# %%
live = {}
for way in ("full", "lora"):
    live[way] = rates.run((way, 1e-3, 0), iters=short(200, 60))["loss"]
    told = next(r for r in sweep if (r["way"], r["rate"], r["seed"]) == (way, 1e-3, 0))["loss"]
    print(f"{way}: loss {live[way]:.4f}, in the sweep {told:.4f}")
    # another machine rounds otherwise, and 200 steps carry that on: within a third
    assert QUICK or 2 / 3 < live[way] / told < 3 / 2
assert live["full"] < live["lora"] / 1.5

# %% [markdown]
# **Where to stop with a debugger.**
# - `project_back` in `minilora/kernels/fused_projection.py`, without `MINILORA_PLAIN`: ∂L/∂x, ∂L/∂A
#   and ∂L/∂B of several projections at once; look at the shapes of `gs`, `thin` and `ups`.
# - `training.gradient_at`: `grads` has the leaves of argument 0 of `value_and_grad`, and no others.
# - `optim.adamw`, function `step`: `m / denominator` at the first step is ±1 up to a factor.
#
# **Exercises.** lowrank-gradient, cross-entropy, adamw, warmup, clipping, test-frozen.

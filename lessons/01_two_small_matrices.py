# %% [markdown]
# # 1. Two small matrices
#
# **The question.** LoRA writes the change of a weight as ΔW = (α/r)·BA. Why two factors, what is
# their gradient, why does one of them start at zero, and what is α/r for?
#
# **Time:** half a minute to run, a quarter of an hour to read. **You need:** lesson 0.

# %%
import autograd.numpy as np
import matplotlib.pyplot as plt
from autograd import grad

import minilora
from minilora import MethodConfig
from minilora.lessons.helpers import common
from minilora.tree import flatten

# %% [markdown]
# ## Two thin factors
#
# B (out, r) times A (r, in) has the shape of W, (out, in), but the factors have r·(out + in)
# numbers in place of out·in: if W is 4096 × 4096, and r = 16, 128 times fewer. In return, not every
# matrix is such a product: each row of BA is a sum of multiples of the r rows of A. So its
# [*rank*](guide/glossary.md), the number of its independent rows, is at most r.
#
# ![W' is W plus α/r times B (out, r) times A (r, in). B starts at zero, A at
# random.](../figures/drawings/low_rank_update.svg)
#
# ## The gradient of the factors
#
# Let s = α/r and W' = W + sBA, so $W'_{ij} = W_{ij} + s \sum_k B_{ik} A_{kj}$. Let L be the loss
# and G = ∂L/∂W', the gradient that *full* fine-tuning would use. $B_{ik}$ is in row i of W' only,
# and $A_{kj}$ is in column j only. So the chain rule gives
#
# $$\frac{\partial L}{\partial B_{ik}} = \sum_j G_{ij} \cdot s A_{kj} \qquad
#   \frac{\partial L}{\partial A_{kj}} = \sum_i G_{ij} \cdot s B_{ik}$$
#
# As matrices, these are
#
# $$\frac{\partial L}{\partial B} = s\,G A^\top \qquad \frac{\partial L}{\partial A} = s\,B^\top G$$
#
# **LoRA sees G only through A and B.** What follows for ΔW? Take one step of gradient descent
# (without Adam) with the learning rate η, from B = 0. A stays, because its gradient is zero. B
# becomes −η·s·G Aᵀ. So
#
# $$\Delta W = s B A = -\eta s^2\, G A^\top A \qquad \text{(full fine-tuning: } -\eta\,G)$$
#
# ![∂L/∂B is s times G times Aᵀ, ∂L/∂A is s times Bᵀ times G. After one step from B = 0, each row of
# ΔW is a sum of multiples of the rows of A.](../figures/drawings/seen_through_factors.svg)
#
# **Predict.** Take a pencil. G has the rows (4, 1) and (2, 3), A has the row (1, 0), B = 0 and
# s = 2. What are the two gradients? What is ΔW after one step with η = 0.1, and which numbers of G
# are lost?

# %%
G = np.array([[4.0, 1.0], [2.0, 3.0]])
A, B, s = np.array([[1.0, 0.0]]), np.zeros((2, 1)), 2
# autograd, with a loss that has the gradient G for W'
of_A, of_B = grad(lambda A, B: np.sum(G * (s * B @ A)), (0, 1))(A, B)
first_change = s * (B - 0.1 * of_B) @ (A - 0.1 * of_A)
print(f"∂L/∂A = {of_A.tolist()}, ∂L/∂B = {of_B.tolist()}, ΔW = {first_change.round(2).tolist()}")

# %% [markdown]
# **Answer.** ∂L/∂A = 0, ∂L/∂B = (8, 4)ᵀ, and ΔW has the rows (−1.6, 0) and (−0.8, 0). The second
# column of G is lost, because A's row has a zero there. Once B is not zero, A moves, too.
#
# G itself is not computed. Let x have a row of inputs per token, and g a row of gradients ∂L/∂y.
# For one token, y_i = Σⱼ xⱼ·W'_ij, so G_ij = g_i·xⱼ. Over all tokens, these are added: G = gᵀx. So
# the layer computes
#
# $$\frac{\partial L}{\partial B} = s\,g^\top (x A^\top) \qquad
#   \frac{\partial L}{\partial A} = s\,(g B)^\top x \qquad
#   \frac{\partial L}{\partial x} = g W + s\,(g B) A$$
#
# So x must be kept for the backward pass, although W is frozen.
#
# ## How much of G passes
#
# Each row of G is the sum of two parts: a sum of multiples of A's r rows, and a rest that is
# perpendicular to all of them. The rest times Aᵀ is zero. So in G AᵀA only the first part *passes*
# (and AᵀA stretches it). It is G·pinv(A)·A, where pinv is the pseudo-inverse. At the start, A's
# rows are random. Let ‖G‖² be the sum of the squares of G's numbers.
#
# **Predict.** A `q_proj` of `micro` has 48 inputs. Which share of ‖G‖² passes for r = 1, 8 and 64?

# %%
model, _ = minilora.load("micro")
batch = common.batch_of(common.questions()[:16])  # 16 rows like lesson 0's
valid = common.questions("valid")  # held-out rows

full = minilora.get_peft_model(model, MethodConfig("full"))  # all weights are trained
G_q = common.gradients_of(*full, batch)["model.layers.0.self_attn.q_proj.weight"]
rng, shares = np.random.default_rng(0), {}
for r in (1, 8, 64):
    shares[r] = []
    for _ in range(100):
        A = rng.uniform(-1, 1, (r, 48)) / 48**0.5
        passed = G_q @ np.linalg.pinv(A) @ A
        shares[r].append(np.sum(passed**2) / np.sum(G_q**2))
    low, high = min(shares[r]), max(shares[r])
    print(f"r = {r:2}: {np.mean(shares[r]):.1%} passes ({low:.1%} to {high:.1%}, 100 draws of A)")

# %% [markdown]
# **Answer.** On average r/48, because no direction is preferred: 2 %, 17 %, and all, because 64
# random rows reach all 48 directions. With 4096 inputs, r = 16 passes 0.4 % at the first step.
#
# ## Where the factors start
#
# **Predict.** A and B can each start at zero or at random numbers. For each of the four starts: is
# the model equal to the base at step 0? Can it learn?

# %%
STARTS = {
    "A random, B zero": (1, 0), "A zero, B random": (0, 1), "both random": (1, 1),
    "both zero": (0, 0),
}  # fmt: skip
bare = minilora.evaluate({}, model, valid, quiet=True)["loss"]
n = common.short(60, 20)  # 60 steps, or 20 in a quick run
results, lines = [], []
for name, (a, b) in STARTS.items():
    for seed in common.short((0, 1), (0,)):
        start = common.lora_adapters(model, a, b, seed=seed)
        before = minilora.evaluate(start, model, valid, quiet=True)["loss"]
        run = common.finetune(start=(start, model), iters=n)
        results.append((name, start, before, run.adapters, run.scores["loss"]))
        lines.append([name, f"{before:.2f}", f"{run.scores['loss']:.2f}"])
common.table([f"loss of the base: {bare:.2f}", "at step 0", f"after {n} steps"], lines)

# %% [markdown]
# **Answer.** It depends on how many are zero:
#
# - **One** (LoRA, Sec. 4.1, takes B): BA = 0, so the model equals the base. The zero factor has a
#   gradient, because the other one is not zero. So it moves, and then the other one, too. (Two
#   seeds at one rate do not show which start is better.)
# - **None**: it learns, but from a damaged model.
# - **Both**: both gradients are zero for ever.
#
# ## What α/r is for
#
# Without a warm-up, Adam's first step moves each number of B by η against the sign of its gradient,
# because `m_hat` is g there and the root of `v_hat` is |g|. If a number changes by a small δ, the
# loss changes by about gradient · δ. So the step lowers it by about η times the sum of all |∂L/∂B|.
# Each gradient contains the factor s, and each of B's r columns adds about the same. So the fall is
# about proportional to s·r.
#
# **Predict.** Two rules: "α = 2r" (s = 2 at every r) and "α = 16" (s = 16/r). The first step should
# lower the loss as much at r = 32 as at r = 2. How must the learning rate change from r = 2 to 32,
# under each rule?


# %%
def fall(r, alpha):
    """Return the sum of all |∂L/∂B| at the start."""
    gradients = common.gradients_of(common.lora_adapters(model, r=r, alpha=alpha), model, batch)
    return sum(np.abs(g).sum() for path, g in gradients.items() if path.endswith("lora_B"))


falls = {r: (fall(r, 2 * r), fall(r, 16)) for r in (2, 32)}
for r, (growing, fixed) in falls.items():
    print(f"r = {r:2}: the loss falls by {growing:4.0f} η with α = 2r, {fixed:.0f} η with α = 16")

# %%
# Picture
sweep = common.read_sweep("scaling")  # stored runs of `micro`: 100 steps, six rates, five seeds
rates, best = sorted({row["rate"] for row in sweep}), {"α = 2r": [], "α = 16": []}
for rule, stored in (("α = 2r", "constant"), ("α = 16", "alpha/r")):
    for r in (2, 32):
        losses = np.array([common.of(sweep, "loss", rule=stored, r=r, rate=x) for x in rates])
        # the best rate of each seed, by a parabola between the six rates
        best[rule].append([common.best_rates(rates, losses[:, [k]])[1] for k in range(5)])
_, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
for line, (rule, of_ranks) in enumerate(best.items()):
    common.curve_of_seeds(axes, ("r = 2", "r = 32"), of_ranks, rule, line)
axes.set(ylim=0, ylabel="best learning rate", title="means and ranges of five seeds")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# **Answer.** For the first step, with α = 16 the same rate, with α = 2r one 16 times smaller. For
# whole runs (the picture), the best rate is only 4 times smaller with α = 2r (3 to 6, by seed), and
# 1.3 times larger with α = 16 (1 to 2). So here, one rate can serve both ranks with α = 16, as LoRA
# (Sec. 4.1) says. (But at r = 32 and the best rate of each, the loss is lower with α = 2r: the
# study [What α/r does](studies/lora/what_alpha_over_r_does.py).)

# %% [markdown]
# ## The same in PyTorch
#
# `tests/peers/test_lora_module.py` runs this text, and compares output and gradients with
# minilora's.
#
# ```python
# import torch
# from torch import nn
#
# class LoRALinear(nn.Module):
#     def __init__(self, base, r=8, alpha=16):  # base: a trained nn.Linear
#         super().__init__()
#         self.base = base.requires_grad_(False)  # W is frozen
#         self.A = nn.Parameter(torch.empty(r, base.in_features))
#         self.B = nn.Parameter(torch.zeros(base.out_features, r))
#         nn.init.kaiming_uniform_(self.A, a=5**0.5)  # uniform in ±1/√in
#         self.scaling = alpha / r
#     def forward(self, x):
#         return self.base(x) + self.scaling * (x @ self.A.T) @ self.B.T
# ```
#
# ## What was shown
#
# Each factor gets the full gradient G only through the other: s·G Aᵀ and s·Bᵀ G. One of them starts
# at zero, so that training begins at the base; the other does not, so that there is a gradient.
# With a fixed α and α/r, one learning rate serves the ranks 2 and 32 of `micro` (0.1 million
# parameters), within a factor of 2.
#
# **What to try.**
#
# 1. `A, B, s = np.array([[1.0, 0.0]])`: use [[1.0, 1.0]]. What of G arrives in ΔW? (Leave the
#    checks out, here and in 2.)
# 2. `STARTS`: add `"B a tenth": (1, 0.1)`. How much does the loss at step 0 rise?
# 3. `fall(r, 2 * r)`: use α = 8·√r. How does the fall grow with r?
#
# **Where to stop with a debugger.** `lora.init`: A's `bound`, and both factors in a `node`.
# `_linear_backward` in `minilora/kernels/linear.py`: ∂L/∂A and ∂L/∂B of a projection.
#
# **Exercises.** one-file-linear, one-file-init-lora, one-file-loss, lora-merge, lora-count,
# lowrank-gradient, debug-no-learning, predict-first-step, test-frozen.
#
# **Further reading.** LoRA, Sec. 4: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Hayou et
# al. 2024 compare two starts: [arXiv:2406.08447](https://arxiv.org/abs/2406.08447).

# %%
# Checks
assert 4096 * 4096 / (16 * (4096 + 4096)) == 128, "times fewer numbers"
A, B, x, g = (rng.standard_normal(shape) for shape in ((4, 48), (64, 4), (5, 48), (5, 64)))
assert np.linalg.matrix_rank(B @ A) == 4, "the rank of BA is at most r"
by_tokens = grad(lambda A, B: np.sum(g * (s * x @ A.T @ B.T)), (0, 1))(A, B)  # ∂L/∂h = g
assert np.allclose(by_tokens[0], s * (g @ B).T @ x), "∂L/∂A is a sum over the tokens"
assert np.allclose(by_tokens[1], s * g.T @ (x @ A.T)), "∂L/∂B is a sum over the tokens"
W = rng.standard_normal((64, 48))
of_x = grad(lambda x: np.sum(g * (x @ W.T + s * x @ A.T @ B.T)))(x)
assert np.allclose(of_x, g @ W + s * (g @ B) @ A), "∂L/∂x has a part through W, and one through A"
assert np.array_equal(of_A, [[0, 0]]) and np.array_equal(of_B, [[8], [4]]), "with the pencil"
assert np.allclose(first_change, -0.1 * s**2 * G @ [[1, 0], [0, 0]]), "ΔW must be −η s² G AᵀA"
for r, share in ((1, 1 / 48), (8, 8 / 48), (64, 1)):  # the mean of 100 draws errs by 7 % and 3 %
    assert abs(np.mean(shares[r]) - share) < (0.35 if r == 1 else 0.15) * share, f"r = {r}: r/in"
assert min(shares[64]) > 0.9999, "64 random rows reach all 48 directions"
for name, start, before, trained, after in results:
    a, b = STARTS[name]
    for path, g in common.gradients_of(start, model, batch).items():
        other = b if path.endswith("lora_A") else a
        assert np.any(g) == (other > 0), f"{name}: {path} has a gradient if the other is not zero"
    moved = sum(np.any(w != flatten(start)[path]) for path, w in flatten(trained).items())
    assert moved == (42 if a or b else 0), f"{name}: all 42 factors must move, or none"
    assert before > bare + 0.3 if a and b else before == bare, f"{name}: the model at step 0"
    assert after < bare / common.short(3, 1.5) if a or b else after == bare, f"{name}: it learns"
# one start per rank; the fall varies by about a tenth from start to start
assert 0.8 < falls[32][1] / falls[2][1] < 1.25, "α = 16: the fall hardly depends on r"
assert 0.8 < falls[32][0] / falls[2][0] / 16 < 1.25, "α = 2r: it grows as r"
smaller = np.array(best["α = 2r"][0]) / best["α = 2r"][1]
larger = np.array(best["α = 16"][1]) / best["α = 16"][0]
for quotients, mean, low, high in ((smaller, 4, 3, 6), (larger, 1.3, 1, 2)):
    assert abs(np.exp(np.mean(np.log(quotients))) / mean - 1) < 0.05, f"{mean} times"
    assert (round(quotients.min()), round(quotients.max())) == (low, high), "by seed"
for rank in (2, 32):  # one sign step from the start, with η = 1e-4
    start, moved = (common.lora_adapters(model, r=rank, alpha=16) for _ in range(2))
    for path, g in common.gradients_of(start, model, batch).items():
        flatten(moved)[path] -= np.float32(1e-4) * np.sign(g)
    real = minilora.loss(start, model, batch) - minilora.loss(moved, model, batch)
    assert 0.8 < real / (1e-4 * falls[rank][1]) < 1.2, f"r = {rank}: the fall of a small step"

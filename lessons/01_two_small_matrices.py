# %% [markdown]
# # 1. Two small matrices
#
# **The question.** LoRA writes the change of a weight as ΔW = (α/r)·BA. Why two factors, why does
# one of them start at zero and the other not, and what is α/r for?
#
# The study [Is the update of low rank?](studies/lora/is_the_update_of_low_rank.py) asks whether
# full fine-tuning changes weights by a matrix of low rank, too.
#
# **Time:** half a minute to run, fifteen minutes to read. **You need:** lesson 6.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.layers import value_and_grad
from minilora.lessons.helpers.common import best_rates, of, read_sweep, short, table
from minilora.tree import arrays, get, named_leaves, overlay, unflatten

rng = np.random.default_rng(0)
model, tokenizer = minilora.load("micro")
masked = TrainConfig(mask_prompt=True)  # the loss counts only the tokens of the answers
train_set, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, masked)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), tokenizer, masked)
batch = data.collate([[example] for example in train_set[:16]])  # 16 rows of one example each

# %% [markdown]
# ## Two thin factors
#
# ΔW has the shape of W, (out, in). With B (out, r) and A (r, in), the product BA has the same
# shape. The factors have r·(out + in) numbers in place of out·in. In return, not every matrix is
# such a product: each row of BA is a sum of multiples of the r rows of A. One says that the
# [*rank*](guide/glossary.md) of BA, the number of its independent rows, is at most r.
#
# The product is never computed in training: (BA)x = B(Ax). So per token, BA costs
# r·(out + in) multiplications, not out·in.
#
# ![W' is W plus α/r times B (out, r) times A (r, in). B starts at zero, A at
# random.](../figures/drawings/low_rank_update.svg)
#
# **Predict.** For a 4096 × 4096 matrix and r = 16: how many times fewer numbers? At which r does
# LoRA no longer save anything?
#
# <details><summary>Answer</summary>
# 128 times fewer: d/(2r) for a square of side d. (256 is tempting: it counts one of the two
# factors.) At r = d/2 = 2048, W has as many numbers as A and B.
# </details>

# %%
d, r = 4096, 16
of_w, of_factors = d * d, r * (d + d)
print(f"{of_w:,} numbers in W, {of_factors:,} in A and B: {of_w / of_factors:.0f} times fewer")

B, A, x = rng.standard_normal((64, 4)), rng.standard_normal((4, 48)), rng.standard_normal(48)
rank = np.linalg.matrix_rank(B @ A)
print(f"B (64, 4) times A (4, 48): shape {(B @ A).shape}, rank {rank}")
print(f"largest difference of (BA)x and B(Ax): {np.abs((B @ A) @ x - B @ (A @ x)).max():.1e}")

# %%
# Checks
assert of_w / of_factors == 128, "d/(2r) at d = 4096 and r = 16"
assert 2048 * (4096 + 4096) == 4096 * 4096, "at r = d/2 nothing is saved"
assert rank == 4, "the rank of BA is at most r"
assert np.allclose((B @ A) @ x, B @ (A @ x), rtol=0, atol=1e-12), "(BA)x must be B(Ax)"

# %% [markdown]
# ## Where the factors start
#
# Let G = ∂L/∂(ΔW) be the gradient with respect to the whole update, and s = α/r. G has the shape of
# W, and equals ∂L/∂W' (and ∂L/∂W), because W' = W + ΔW. The chain rule gives (lesson 1 derives it)
#
# $$\frac{\partial L}{\partial B} = s\,G A^\top \qquad \frac{\partial L}{\partial A} = s\,B^\top G$$
#
# Each factor's gradient is a product with the *other* factor. There are four possible starts.
#
# **Predict.** For each start: does the model equal the base at step 0? Can it learn?
#
# - A random, B zero
# - A zero, B random
# - both random
# - both zero
#
# <details><summary>Answer</summary>
# With one or both factors at zero, BA = 0 and the model equals the base. With one at zero, the zero
# factor has a gradient, so it moves, and then the other one moves, too. Both random can learn, but
# starts from a changed model. Both zero cannot learn: both gradients are zero for ever. (It is
# tempting to say the same of one zero, because BA is zero there as well.)
# </details>


# %%
def start_factors(adapters, scale_a, scale_b, rng):
    """Replace A and B by random numbers in ±1/√(number of columns), times 1 or 0."""
    leaves = {}
    for path, w in named_leaves(arrays(adapters)):
        scale = scale_a if path.endswith("lora_A") else scale_b
        bound = 1 / w.shape[1] ** 0.5
        leaves[path] = (scale * bound * rng.uniform(-1, 1, w.shape)).astype("f4")
    return overlay(adapters, unflatten(leaves))


def gradients(adapters, model):
    """Return ∂L/∂A of all matrices as one vector, and ∂L/∂B, on one batch."""
    _, tree = value_and_grad(minilora.loss)(adapters, model, batch)
    both = []
    for factor in ("lora_A", "lora_B"):
        found = [g.ravel() for path, g in named_leaves(tree) if path.endswith(factor)]
        both.append(np.concatenate(found))
    return both


def held_out_loss(adapters, model):
    """Return the mean loss per token on held-out questions."""
    return minilora.evaluate(adapters, model, valid)["loss"]


n = short(60, 20)
settings = TrainConfig(iters=n, batch_size=16, learning_rate=4e-3, mask_prompt=True)
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
fresh, model = minilora.get_peft_model(model, lora_config, rng)
STARTS = {
    "A random, B zero": (1, 0),
    "A zero, B random": (0, 1),
    "both random": (1, 1),
    "both zero": (0, 0),
}
results, cells = [], []
for name, (a, b) in STARTS.items():
    for seed in short((0, 1), (0,)):
        start = start_factors(fresh, a, b, np.random.default_rng(seed))
        norm_a, norm_b = (np.linalg.norm(g) for g in gradients(start, model))
        before = held_out_loss(start, model)
        trained, _ = minilora.train(start, model, train_set, settings)
        after = held_out_loss(trained, model)
        moved = [p for p, w in named_leaves(arrays(trained)) if np.any(w != get(start, p))]
        results.append((name, norm_a, norm_b, before, after, moved))
        cells.append([name, seed, *(f"{x:.3f}" for x in (norm_a, norm_b, before, after))])

bare = held_out_loss({}, model)
print(f"loss of the base without adapters: {bare:.3f}")
table(["start", "seed", "‖∂L/∂A‖", "‖∂L/∂B‖", "loss before", f"after {n} steps"], cells)

# %% [markdown]
# ![The four starts of B and A, and their gradients](../figures/drawings/four_starts.svg)
#
# "Both zero" never moves. Which of the two is zero is a convention. LoRA (Sec. 4.1) sets B to zero.
# The other choice learns, too, in both runs here (which of the two is better is not shown by two
# seeds). "Both random" also learns, but it starts from a damaged model. The zero prevents that.

# %%
# Checks
for name, norm_a, norm_b, before, after, moved in results:
    a, b = STARTS[name]
    assert (norm_a > 0) == (b > 0), f"{name}: ∂L/∂A must be zero exactly if B is"
    assert (norm_b > 0) == (a > 0), f"{name}: ∂L/∂B must be zero exactly if A is"
    if a and b:
        assert before > bare + 0.3, f"{name}: a random BA must damage the model"
    else:
        assert before == bare, f"{name}: BA = 0 must leave the base unchanged"
    if a or b:
        assert after < bare / short(3, 1.5), f"{name}: it must learn"
        assert len(moved) == 42, f"{name}: both factors of all 21 matrices must move"
    else:
        assert not moved, f"{name}: not one bit may move"

# %% [markdown]
# ## What α/r is for
#
# BAx is a sum of r terms, one per row of A and column of B. Adam's first step moves each number of
# B by about the learning rate η, against the sign of its gradient (in lesson 0, m̂/√v̂ is ±1 at t =
# 1). So the loss falls by about η times the sum of all |∂L/∂B|, written ‖∂L/∂B‖₁. Let $a_k$ be row
# k of A, as a column; then $G a_k$ is column k of GAᵀ:
#
# $$\frac{\partial L}{\partial B} = \frac{\alpha}{r}\,[G a_1 \dots G a_r], \qquad
#   \text{the loss falls by about } \eta \left\lVert \frac{\partial L}{\partial B} \right\rVert_1
#   = \eta\,\frac{\alpha}{r} \sum_{k=1}^{r} \lVert G a_k \rVert_1$$
#
# **Predict.** How does ‖∂L/∂B‖₁ change from r = 1 to r = 64, with α = 16 at every r? And with α =
# 2r, which makes s = 2 at every r?
#
# <details><summary>Answer</summary>
# With α = 16 it changes by less than 15 %: the sum has r terms of about the same size, and is
# divided by r. With α = 2r it grows about in proportion to r. ("Not at all" is tempting for α = 2r,
# because s is the same.)
# </details>


# %%
def first_gain(r, alpha):
    """Return ‖∂L/∂B‖₁ at the start, the mean over seeds: the gain of the first step per rate."""
    sums = []
    for seed in range(short(3, 2)):
        scaled = LoraConfig(r=r, lora_alpha=alpha, target_modules=("all-linear",))
        start, _ = minilora.get_peft_model(model, scaled, seed)
        _, of_b = gradients(start, model)
        sums.append(np.abs(of_b).sum())
    return np.mean(sums)


gains, cells = {}, []
for r in short((1, 4, 16, 64), (4, 64)):
    gains[r] = first_gain(r, 16), first_gain(r, 2 * r)
    cells.append([str(r), *(f"{gain:.0f}" for gain in gains[r])])
table(["‖∂L/∂B‖₁ at r", "α = 16", "α = 2r"], cells)

# of: a column of the runs with these settings, one number per seed; best_rates: the best rate of
# the six, and the best rate interpolated between those
sweep = read_sweep("scaling")
rates = sorted({row["rate"] for row in sweep})
times_larger = {}
for rule, label in {"constant": "α = 2r", "alpha/r": "α = 16"}.items():  # constant: s = 2
    losses = [[of(sweep, "loss", rule=rule, r=r, rate=rate) for rate in rates] for r in (2, 32)]
    (_, at_2), (_, at_32) = (best_rates(rates, np.array(x)) for x in losses)
    times_larger[rule] = at_32 / at_2
    print(f"whole runs, {label}: best rate {at_2:.4f} at r = 2, {at_32:.4f} at r = 32")

# %% [markdown]
# So with a fixed α, the first step lowers the loss about as much at every r, and one learning rate
# can serve several ranks. Whole runs agree in direction, but not in size. A *sweep* (many runs,
# stored in a CSV) trained `micro` for 100 steps at six rates, with five seeds. With α = 2r, the
# best rate of r = 32 is a quarter of that of r = 2, not a sixteenth: one step is not a run. With α
# = 16, it is 1.3 times that of r = 2. The study [What α/r
# does](studies/lora/what_alpha_over_r_does.py) has more ranks, and the rule α/√r.

# %%
# Checks
at_16 = [fixed for fixed, _ in gains.values()]
assert max(at_16) < 1.15 * min(at_16), "with a fixed alpha, the first gain must not depend on r"
assert 12 < gains[64][1] / gains[4][1] < 20, "with alpha = 2r, 16 times from r = 4 to 64"
for rule, expected in (("constant", 1 / 4), ("alpha/r", 1.3)):
    assert 0.85 < times_larger[rule] / expected < 1.15, f"{rule}: {times_larger[rule]}"

# %% [markdown]
# ## The same layer in PyTorch
#
# This is a [projection](guide/glossary.md) with LoRA as a `torch.nn.Module`. It is shown as text,
# because the lesson does not need PyTorch. `tests/peers/test_lora_module.py` runs this text and
# compares its output and its gradients with `layers.linear`.
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
# minilora has no such object: W is in the tree `model.base`, A and B are in the tree `adapters`.

# %% [markdown]
# ## What was shown
#
# Two thin factors have fewer numbers than W if r is small, and give a matrix of its shape. One of
# them starts at zero, so that training begins at the base; the other does not, so that there is a
# gradient. With α/r, one learning rate serves ranks 2 and 32 of `micro`, within a factor of 1.3.
#
# **What to try.**
#
# 1. `STARTS`: add `"B a tenth": (1, 0.1)`. How much does the loss before training rise? (Leave the
#    checks out: they expect 0 or 1.)
# 2. `n = short(60, 20)`: train for 400 steps. Do the starts still differ?
# 3. `first_gain(r, 2 * r)`: use α = 8·√r. How does the first gain grow?
#
# **Where to stop with a debugger.** `lora.init`: A's `bound`, and both factors in a `node`.
# `layers.linear` with `MINILORA_PLAIN=1`, under `if "lora_A" in node`: which shapes does
# `lora_matmul` get?
#
# **Exercises.** one-file-linear, one-file-init-lora, lora-merge, lora-count, debug-no-learning,
# predict-first-step.
#
# **Further reading.** LoRA, Sec. 4: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Hayou et
# al. 2024 compare the two starts: *The Impact of Initialization on LoRA Finetuning Dynamics*,
# [arXiv:2406.08447](https://arxiv.org/abs/2406.08447).

# %% [markdown]
# # Do two runs find the same directions?
#
# **The question.** Two adapters are trained from different random starts. Are their updates
# similar? And how are the updates related to the weight W that they are added to?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** 15 seconds to run, ten minutes to read. **You need:** lesson 1, and singular vectors.

# %%
import numpy as np

from minilora import LoraConfig, layers, lora
from minilora.lessons.helpers.common import QUICK, agrees, finetune, of, read_sweep, short, table
from minilora.tree import get

# %% [markdown]
# ## How to compare subspaces
#
# Let the rows of U be the leading singular vectors of one matrix, and those of V of another. The
# paper compares the subspaces that the first i of the one and the first j of the other span (LoRA,
# Eq. 4):
#
# $$\varphi(i, j) = \frac{\lVert U_i V_j^\top \rVert_F^2}{\min(i, j)}$$
#
# φ is 1 if one subspace is within the other, and 0 if they are orthogonal.
#
# What does chance give? For i random orthonormal rows of length d, the mean of UᵢᵀUᵢ is the
# identity times i/d. So the mean of ‖UᵢVⱼᵀ‖² is i·j/d, and the mean of φ is max(i, j)/d.
#
# Adapters on all seven matrices are trained from different starts: r = 8 twice, and r = 32. (The
# seed also orders the batches.) ΔW = s·BA has two sides. Its right singular vectors are directions
# of the *input* (the rows of A span them), and its left ones are directions of the *output* (the
# columns of B span them).
#
# **Predict.** Between r = 8 and r = 64, the paper finds φ(1, 1) > 0.5 for A. GPT-3 has d = 12,288.
# How far is 0.5 from chance there, and at d = 48? And which side do two runs share more, the
# input's or the output's?


# %%
def directions(matrix):
    """Return the left and the right singular vectors as rows, with the largest value first."""
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u.T, vt


def phi(u, v, n):
    """Compute φ(n, n) of two matrices with orthonormal rows."""
    return float(np.sum((u[:n] @ v[:n].T) ** 2)) / n


updates, losses = {}, {}
for r, seed in ((8, 0), (8, 1), (32, 2)):  # runs of `rank_sweep.py`, again
    lora_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=("all-linear",))
    run = finetune(lora_config, seed=seed, batch_size=8, iters=short(200, 40))
    losses[r, seed] = run.scores["loss"]
    paths = lora.adapted_paths(run.adapters)
    updates[r, seed] = [layers.lora_delta(get(run.adapters, path)) for path in paths]
weights = [get(run.model.base, path)["weight"] for path in paths]

shared, cells = {}, []
for name, pair in {"r = 8, two seeds": (8, 1), "r = 8 and r = 32": (32, 2)}.items():
    for i, side in enumerate(("output", "input")):
        values = []
        for one, other in zip(updates[8, 0], updates[pair]):
            u, v = directions(one)[i], directions(other)[i]
            values.append([phi(u, v, 1), phi(u, v, 8)])
        shared[name, side] = np.mean(values, axis=0)
        cells.append([name, side, *(f"{x:.3f}" for x in shared[name, side])])
one_over_d = np.mean([1 / w.shape[1] for w in weights])  # of the input
cells.append(["chance", "input", f"{one_over_d:.3f}", f"{8 * one_over_d:.3f}"])
table(["mean of 21 matrices", "side", "φ(1, 1)", "φ(8, 8)"], cells)

# %% [markdown]
# **Answer.** Chance is 1/12,288 there, so 0.5 is 6,144 times more. At d = 48 it is 24 times more.
# Both pairs of runs of `micro` (0.1 million parameters) share directions: more than by chance, and
# φ(8, 8) is higher on the output's side than on the input's. φ(1, 1) of the input does not reach
# the paper's 0.5 for A.
#
# A possible reason is the start. With G = ∂L/∂W and B = 0, the first gradients are ∂L/∂B = s·G·Aᵀ
# and ∂L/∂A = s·Bᵀ·G = 0. So the columns of B come from G, which at the start does not depend on A.
# The rows of A begin at random.
#
# Always compare with chance: with d = 48, φ(8, 8) = 0.19 is near chance. With d = 12,288, it would
# be hundreds of times more.
#
# ## How much of W is in the directions of ΔW?
#
# The LoRA paper (Table 7) takes the first r left and right singular vectors U and V of ΔW. ‖UᵀWV‖
# measures how much of W lies in these directions. The *amplification* is
#
# $$\frac{\lVert \Delta W \rVert}{\lVert U^\top W V \rVert}$$
#
# To compare, U and V are also taken from W itself, and at random. For random U and V with r
# columns, the mean of ‖UᵀWV‖² is ‖W‖²·r²/(m·n), so ‖UᵀWV‖ is about ‖W‖·r/√(mn).
#
# **Predict.** In GPT-3, the paper's W has ‖W‖ = 61.95, m = n = 12,288, and ‖UᵀWV‖ = 0.32 for r = 4.
# How many times chance is that? Will it be as many on `micro`?


# %%
def inside(w, matrix, r):
    """Compute ‖UᵀWV‖ with the first r singular vectors of a matrix."""
    u, v = directions(matrix)
    return np.linalg.norm(u[:r] @ w @ v[:r].T)


def portions(w, update, r):
    """Return ‖ΔW‖, then ‖UᵀWV‖ with r directions of ΔW, of W, and by chance."""
    by_chance = np.linalg.norm(w) * r / np.sqrt(w.size)
    return np.linalg.norm(update), inside(w, update, r), inside(w, w, r), by_chance


measured, cells = {}, []
for (r, seed), changes in updates.items():
    of_matrices = np.array([portions(w, dw, r) for w, dw in zip(weights, changes)])
    amplification = np.median(of_matrices[:, 0] / of_matrices[:, 1])
    measured[r, seed] = [*of_matrices.mean(axis=0), amplification]
    cells.append([f"here, r = {r}", *(f"{x:.2f}" for x in measured[r, seed])])
cells.append(["GPT-3, r = 4", "6.91", "0.32", "21.67", "0.02", "21.6"])
cells.append(["GPT-3, r = 64", "3.57", "1.90", "37.71", "0.33", "1.9"])
header = ["mean of 21 matrices", "‖ΔW‖", "of ΔW", "of W", "chance", "amplification (median)"]
table(header, cells)

# %% [markdown]
# **Answer.** 61.95·4/12,288 = 0.02, so it is 16 times chance: ΔW selects directions in which W has
# *more* than by chance. Here it is less than 1.5 times chance, in each of three runs of `micro`
# (0.1 million parameters), so this claim of the paper can hardly be seen here.
#
# Two others hold here. ΔW does not repeat W's leading directions: W has less in ΔW's directions
# than in its own. And the median amplification falls as r grows, here from r = 8 to 32, there from
# r = 4 to 64. A part of that is chance, which grows with r: a number such as 21.6 needs its chance
# level next to it.
#
# ## What was shown
#
# In two pairs of runs of `micro` (0.1 million parameters), φ(8, 8) is higher on the output's side
# of ΔW than on the input's. A possible reason: B starts at zero, and A at random. In three runs, W
# has less than 1.5 times as much in ΔW's directions as in random ones (means of 21 matrices).
#
# **What to try.**
#
# 1. `batch_size=8`: add `learning_rate=1.6e-2`. Are inputs shared more?
# 2. `seed=seed`: use seed 0 for all. Is φ(8, 8) now 1?
# 3. `finetune(lora_config, …)`: add `name="tiny"`. Does the width change the amplification?
#
# **Exercises.** one-file-init-lora, one-file-linear, lowrank-gradient.
#
# **Further reading.** LoRA, Sec. 7.2 and 7.3: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
# Shuttleworth et al. 2024, *LoRA vs Full Fine-tuning: An Illusion of Equivalence*:
# [arXiv:2410.21228](https://arxiv.org/abs/2410.21228).

# %%
# Checks
sweep = read_sweep("rank")
of_rank_1 = of(sweep, "loss", targets="all", rate=4e-3, r=1)
for (r, seed), again in losses.items():
    before = of(sweep, "loss", targets="all", rate=4e-3, r=r)
    assert QUICK or agrees(again, before, of_rank_1), f"r = {r}: {again}, in the sweep {before}"
rng = np.random.default_rng(0)
random = [directions(rng.standard_normal((8, 48)))[1] for _ in range(400)]
# the standard deviation of φ(1, 1) is √2/48, so that of the mean of 200 pairs is 7 % of 1/48
for n, margin in ((1, 0.35), (8, 0.1)):
    found = np.mean([phi(u, v, n) for u, v in zip(random[::2], random[1::2])])
    assert abs(found * 48 / n - 1) < margin, f"φ({n}, {n}) of random directions is {n}/48"
for name in ("r = 8, two seeds", "r = 8 and r = 32"):
    (out_1, out_8), (in_1, in_8) = shared[name, "output"], shared[name, "input"]
    if not QUICK:
        assert out_1 > 4 * one_over_d, f"{name}: the output's first direction must be shared"
        assert out_8 > 1.25 * in_8, f"{name}: the output must be shared more than the input"
        assert 1 < in_8 / (8 * one_over_d) < 1.5, f"{name}: φ(8, 8) must be near chance"
        assert 2 * one_over_d < in_1 < 0.5, f"{name}: the input is shared less than in the paper"
assert round(61.95 * 4 / 12288, 2) == 0.02, "the formula must give the paper's 0.02"
w = weights[0]
draws = [inside(w, rng.standard_normal(w.shape), 8) for _ in range(20)]
assert abs(np.mean(draws) / portions(w, w, 8)[-1] - 1) < 0.1, "‖W‖·r/√(mn) of random directions"
for (r, _), (_, of_update, of_weight, by_chance, _) in measured.items():
    assert of_update < 0.7 * of_weight, f"r = {r}: ΔW must not repeat what is large in W"
    assert 0.9 < of_update / by_chance < 1.5, f"r = {r}: any directions, or a little more"
fall = min(measured[8, 0][-1], measured[8, 1][-1]) / measured[32, 2][-1]
assert QUICK or fall > 1.7, f"the amplification must fall with r: {fall}"

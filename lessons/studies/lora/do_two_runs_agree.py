# %% [markdown]
# # Do two runs find the same directions?
#
# **The question.** Two adapters are trained from different random starts. Are their updates
# similar?
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** the study [Where to apply
# it](where_to_apply.py), singular vectors.

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, figure, finetune, of, read_sweep, short, table
from minilora import LoraConfig, layers, lora
from minilora.evaluation import plot
from minilora.tree import get

rng = np.random.default_rng(0)
config, base, _ = minilora.load("micro")

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
# **Predict.** The paper finds φ(1, 1) > 0.5 for A, between r = 8 and r = 64. GPT-3 has d = 12,288.
# How far is 0.5 from chance there, and at d = 48?
#
# <details><summary>Answer</summary>
# Chance is 1/12,288 there, so 0.5 is thousands of times more. At d = 48 it is 24 times more.
# </details>


# %%
def phi(u, v, i, j):
    """Compute φ of the first i rows of u and the first j rows of v, each orthonormal."""
    return float(np.sum((u[:i] @ v[:j].T) ** 2)) / min(i, j)


def directions(matrix):
    """Return the right singular vectors as rows, with the largest singular value first."""
    return np.linalg.svd(matrix, full_matrices=False)[2]


random_phi, rows = {}, []
for d, i, j in ((48, 1, 1), (48, 4, 8), (128, 8, 8)):
    draws = [directions(rng.standard_normal((8, d))) for _ in range(400)]
    random_phi[d, i, j] = np.mean([phi(u, v, i, j) for u, v in zip(draws[::2], draws[1::2])])
    rows.append([f"d = {d}, φ({i}, {j})", f"{random_phi[d, i, j]:.3f}", f"{max(i, j) / d:.3f}"])
table(["random subspaces", "mean of 200", "max(i, j)/d"], rows)
print(f"GPT-3, d = 12,288, φ(1, 1): {1 / 12288:.1e} by chance")

# %%
# Checks
for (d, i, j), found in random_phi.items():  # 200 draws: i = j = 1 scatters by √(2/200)
    assert abs(found / (max(i, j) / d) - 1) < 0.35, f"chance at d = {d}, i = {i}, j = {j}: {found}"

# %% [markdown]
# ## Two runs
#
# Adapters on all seven matrices are trained from different starts: r = 4, r = 8 twice, and r = 32.
# (The seed also orders the batches.) ΔW = s·BA has two sides. Its right singular vectors are
# directions of the *input* (the rows of A span them), and its left ones are directions of the
# *output* (the columns of B span them). The paper looks at A.
#
# **Predict.** Which side do two runs share more, the input's or the output's?
#
# <details><summary>Answer</summary>
# The output's, in both pairs of runs. A possible reason: B starts at zero, so it follows the
# gradient. A starts at random numbers, which differ.
# </details>

# %%
steps = short(200, 40)
RUNS = ((4, 0), (8, 0), (8, 1), (32, 2))  # r and seed
runs = {}
for r, seed in RUNS:  # runs of `rank_sweep.py`, again
    lora_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=("all-linear",))
    runs[r, seed] = finetune(lora_config, seed=seed, learning_rate=4e-3, batch_size=8, iters=steps)
paths = lora.adapted_paths(runs[8, 0].adapters)


def directions_of(run):
    """Return {side: {path: directions}} of ΔW's output and input, and of an A without training."""
    found = {"output": {}, "input": {}, "untrained A": {}}
    for path in paths:
        node = get(run.adapters, path)
        update = layers.lora_delta(node)
        found["output"][path] = directions(update.T)
        found["input"][path] = directions(update)
        found["untrained A"][path] = directions(rng.uniform(-1, 1, node["lora_A"].shape))
    return found


found = {key: directions_of(run) for key, run in runs.items()}


def shared(one, other, side, i, j):
    """Return the mean of φ over the 21 matrices, between two runs."""
    return np.mean([phi(found[one][side][path], found[other][side][path], i, j) for path in paths])


PAIRS = {"r = 8, two seeds": ((8, 0), (8, 1)), "r = 8 and r = 32": ((8, 0), (32, 2))}
AT = ((1, 1), (1, 8), (4, 4), (8, 8))
one_over_d = np.mean([1 / get(base, path)["weight"].shape[1] for path in paths])  # of the input
rows = []
for name, pair in PAIRS.items():
    for side in ("output", "input", "untrained A"):
        rows.append([name, side, *(f"{shared(*pair, side, i, j):.3f}" for i, j in AT)])
rows.append(["chance", "input", *(f"{max(i, j) * one_over_d:.3f}" for i, j in AT)])
table(["mean of 21 matrices", "side", *(f"φ({i}, {j})" for i, j in AT)], rows)

# %%
title = "Directions that r = 8 and r = 32 share, mean of 21 matrices"
at = range(1, 9)
with figure("subspaces", "leading directions compared, i = j", "φ(i, j)", title) as axes:
    for side, marker, style in zip(("output", "input", "untrained A"), "os^", plot.LINES):
        values = [shared((8, 0), (32, 2), side, i, i) for i in at]
        axes.plot(at, values, marker=marker, markersize=4, label=side, **style)
    axes.plot(at, [i * one_over_d for i in at], label="chance (input), i/d", **plot.LINES[3])
    axes.set_ylim(0, 0.4)
    axes.legend(frameon=False, loc="upper left", ncols=2)

# %% [markdown]
# ![The output side is shared more than the input side](../../../figures/subspaces.png)
#
# Both pairs of runs share directions: more than by chance, and φ(8, 8) is higher on the output's
# side than on the input's. φ(1, 1) of the input does not reach the paper's 0.5 for A.

# %%
moved = {}
for r, seed in RUNS:
    start_config = LoraConfig(r=r, target_modules=("all-linear",))
    fresh, _ = minilora.get_peft_model(base, start_config, seed)
    lengths = []
    for path in paths:
        start, end = get(fresh, path)["lora_A"], get(runs[r, seed].adapters, path)["lora_A"]
        lengths.append(np.linalg.norm(end - start) / np.linalg.norm(start))
    moved[r, seed] = np.mean(lengths)
    print(f"r = {r}, seed {seed}: A has moved by {moved[r, seed]:.2f} of its length")

# %% [markdown]
# A possible reason is the start. With G = ∂L/∂W and B = 0, the first gradients are ∂L/∂B = s·G·Aᵀ
# and ∂L/∂A = s·Bᵀ·G = 0. So the columns of B come from G, which at the start does not depend on A.
# The rows of A begin at random, and training moves A by 0.4 to 0.7 of its length, in the mean over
# the matrices.
#
# Always compare with chance: with d = 48, φ(8, 8) = 0.19 is near chance. With d = 12,288, it would
# be hundreds of times more.

# %%
# Checks
in_sweep = read_sweep("rank")
of_rank_1 = of(in_sweep, "loss", targets="all", rate=4e-3, r=1)
for r, seed in RUNS:
    before = of(in_sweep, "loss", targets="all", rate=4e-3, r=r)
    again = runs[r, seed].scores["loss"]
    assert QUICK or agrees(again, before, of_rank_1), f"r = {r}: {again}, in the sweep {before}"
    assert moved[r, seed] < 0.8, f"r = {r}, seed {seed}: A must keep part of its start"
    assert QUICK or 0.35 < moved[r, seed] < 0.75, f"r = {r}, seed {seed}: A moves by 0.4 to 0.7"
chance = {(i, j): max(i, j) * one_over_d for i, j in AT}
for name, pair in PAIRS.items():
    ratio = shared(*pair, "untrained A", 8, 8) / chance[8, 8]
    assert abs(ratio - 1) < 0.15, f"{name}: an untrained A must be at chance"
    if not QUICK:
        out_1, out_8 = shared(*pair, "output", 1, 1), shared(*pair, "output", 8, 8)
        in_1, in_8 = shared(*pair, "input", 1, 1), shared(*pair, "input", 8, 8)
        assert out_1 > 4 * chance[1, 1], f"{name}: the output's first direction must be shared"
        assert out_8 > 1.5 * chance[8, 8], f"{name}: the output's eight must be shared"
        assert out_8 > 1.25 * in_8, f"{name}: the output must be shared more than the input"
        assert chance[8, 8] < in_8 < 1.5 * chance[8, 8], f"{name}: φ(8, 8) must be near chance"
        assert 2 * chance[1, 1] < in_1 < 0.5, f"{name}: the input is shared less than in the paper"

# %% [markdown]
# ## What was shown
#
# In two pairs of runs of `micro` (0.1 million parameters), φ(8, 8) is higher on the output's side
# of ΔW than on the input's. A possible reason: B starts at zero, and A at random.
#
# **What to try.**
#
# 1. `learning_rate=4e-3`: use 1.6e-2. Does A move further, and are inputs shared more?
# 2. `RUNS`: compare r = 1 and r = 8.
# 3. `seed=seed`: use seed 0 for all. Is φ(8, 8) now 1?
#
# **Exercises.** lora-init, lowrank-product.
#
# **Further reading.** LoRA, Sec. 7.2: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).

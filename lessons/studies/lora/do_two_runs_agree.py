# %% [markdown]
# # Do two runs find the same directions?
#
# **The question.** Two adapters are trained from different random starts. Are their updates
# similar? And how are the updates related to the weight W that they are added to?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** 20 seconds to run, fifteen minutes to read. **You need:** lesson 1, and singular
# vectors.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, layers, lora
from minilora.lessons.helpers.common import QUICK, agrees, finetune, of, read_sweep, short, table
from minilora.tree import get

rng = np.random.default_rng(0)
model = minilora.load("micro").model

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
# Chance is 1/12,288 there, so 0.5 is thousands of times more. At d = 48 it is 24 times more. (That
# 0.5 says as much in both is tempting, because φ is between 0 and 1 in both.)
# </details>


# %%
def phi(u, v, i, j):
    """Compute φ of the first i rows of u and the first j rows of v, each orthonormal."""
    return float(np.sum((u[:i] @ v[:j].T) ** 2)) / min(i, j)


def directions(matrix):
    """Return the right singular vectors as rows, with the largest singular value first."""
    return np.linalg.svd(matrix, full_matrices=False)[2]


for d in (12_288, 48):
    print(f"d = {d:,}: φ(1, 1) is {1 / d:.1e} by chance, and 0.5 is {0.5 * d:,.0f} times that")

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
# The output's, in both pairs of runs. (The input's is tempting: the paper looks at A.) A possible
# reason: B starts at zero, so it follows the gradient. A starts at random numbers, which differ.
# </details>

# %%
runs, updates, moved = {}, {}, {}
for r, seed in ((4, 0), (8, 0), (8, 1), (32, 2)):  # runs of `rank_sweep.py`, again
    lora_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=("all-linear",))
    run = finetune(lora_config, seed=seed, learning_rate=4e-3, batch_size=8, iters=short(200, 40))
    runs[r, seed] = run
    paths = lora.adapted_paths(run.adapters)
    updates[r, seed] = [layers.lora_delta(get(run.adapters, path)) for path in paths]
    fresh, _ = minilora.get_peft_model(model, lora_config, seed)
    lengths = []
    for path in paths:
        start, end = (get(tree, path)["lora_A"] for tree in (fresh, run.adapters))
        lengths.append(np.linalg.norm(end - start) / np.linalg.norm(start))
    moved[r, seed] = np.mean(lengths)
weights = [get(model.base, path)["weight"] for path in paths]

SIDES = {
    "output": lambda update: directions(update.T),
    "input": directions,
    "random": lambda update: directions(rng.uniform(-1, 1, (8, update.shape[1]))),
}
AT = ((1, 1), (1, 8), (4, 4), (8, 8))
one_over_d = np.mean([1 / w.shape[1] for w in weights])  # of the input
chance = {(i, j): max(i, j) * one_over_d for i, j in AT}
shared, cells = {}, []
for name, pair in {
    "r = 8, two seeds": ((8, 0), (8, 1)),
    "r = 8 and r = 32": ((8, 0), (32, 2)),
}.items():
    for side, directions_of in SIDES.items():
        found = [[directions_of(update) for update in updates[run]] for run in pair]
        for i, j in AT:
            shared[name, side, i, j] = np.mean([phi(u, v, i, j) for u, v in zip(*found)])
        cells.append([name, side, *(f"{shared[name, side, i, j]:.3f}" for i, j in AT)])
cells.append(["chance", "input", *(f"{chance[at]:.3f}" for at in AT)])
table(["mean of 21 matrices", "side", *(f"φ({i}, {j})" for i, j in AT)], cells)
for (r, seed), by in moved.items():
    print(f"r = {r}, seed {seed}: A has moved by {by:.2f} of its length")

# %% [markdown]
# Both pairs of runs share directions: more than by chance, and φ(8, 8) is higher on the output's
# side than on the input's. φ(1, 1) of the input does not reach the paper's 0.5 for A. ("Random" is
# an A without training.)
#
# A possible reason is the start. With G = ∂L/∂W and B = 0, the first gradients are ∂L/∂B = s·G·Aᵀ
# and ∂L/∂A = s·Bᵀ·G = 0. So the columns of B come from G, which at the start does not depend on A.
# The rows of A begin at random, and training moves A by 0.4 to 0.7 of its length, in the mean over
# the matrices.
#
# Always compare with chance: with d = 48, φ(8, 8) = 0.19 is near chance. With d = 12,288, it would
# be hundreds of times more.

# %%
# Checks
sweep = read_sweep("rank")
of_rank_1 = of(sweep, "loss", targets="all", rate=4e-3, r=1)
for (r, seed), run in runs.items():
    before, again = of(sweep, "loss", targets="all", rate=4e-3, r=r), run.scores["loss"]
    assert QUICK or agrees(again, before, of_rank_1), f"r = {r}: {again}, in the sweep {before}"
    assert moved[r, seed] < 0.8, f"r = {r}, seed {seed}: A must keep part of its start"
    assert QUICK or 0.35 < moved[r, seed] < 0.75, f"r = {r}, seed {seed}: A moves by 0.4 to 0.7"
for name in ("r = 8, two seeds", "r = 8 and r = 32"):
    (out_1, *_, out_8), (in_1, *_, in_8), random = (
        [shared[name, side, i, j] for i, j in AT] for side in SIDES
    )
    off = np.abs(np.array(random) / list(chance.values()) - 1)
    assert off.max() < 0.35, f"{name}: random directions must be at chance, max(i, j)/d"
    assert off[-1] < 0.15, f"{name}: an untrained A must be at chance"
    if not QUICK:
        assert out_1 > 4 * chance[1, 1], f"{name}: the output's first direction must be shared"
        assert out_8 > 1.5 * chance[8, 8], f"{name}: the output's eight must be shared"
        assert out_8 > 1.25 * in_8, f"{name}: the output must be shared more than the input"
        assert chance[8, 8] < in_8 < 1.5 * chance[8, 8], f"{name}: φ(8, 8) must be near chance"
        assert 2 * chance[1, 1] < in_1 < 0.5, f"{name}: the input is shared less than in the paper"

# %% [markdown]
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
# **Predict.** The amplification is 21.5 in the paper, for r = 4. Is it larger or smaller here?
#
# <details><summary>Answer</summary>
# Less than a third of that. ("The same" is tempting: a ratio seems to have no unit.) For random
# directions, the amplification is about ‖ΔW‖/‖W‖·√(mn)/r. At the same ‖ΔW‖/‖W‖ and r, this grows
# with the width.
# </details>


# %%
def inside(w, matrix, r):
    """Compute ‖UᵀWV‖ with the first r singular vectors of a matrix."""
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.linalg.norm(u[:, :r].T @ w @ vt[:r].T)


def portions(w, update, r):
    """Return ‖ΔW‖, then ‖UᵀWV‖ with r directions of ΔW, of W, and at random."""
    random = np.mean([inside(w, rng.standard_normal(w.shape), r) for _ in range(5)])
    return np.linalg.norm(update), inside(w, update, r), inside(w, w, r), random


amplification, means, cells = {}, {}, []
for r, seed in ((4, 0), (8, 0), (32, 2)):
    of_matrices = np.array([portions(w, dw, r) for w, dw in zip(weights, updates[r, seed])])
    amplification[r] = np.median(of_matrices[:, 0] / of_matrices[:, 1])
    means[r] = of_matrices.mean(axis=0)
    cells.append([f"here, r = {r}", *(f"{x:.2f}" for x in (*means[r], amplification[r]))])
cells.append(["GPT-3, r = 4", "6.91", "0.32", "21.67", "0.02", f"{6.91 / 0.32:.1f}"])
cells.append(["GPT-3, r = 64", "3.57", "1.90", "37.71", "0.33", f"{3.57 / 1.9:.1f}"])
header = ["mean of 21 matrices", "‖ΔW‖", "of ΔW", "of W", "random", "amplification (median)"]
table(header, cells)

# %% [markdown]
# Two claims of the paper hold here, with one run of `micro` (0.1 million parameters) per rank, of
# seeds 0, 0 and 2. ΔW does not repeat W's leading directions: at r = 4, the mean ‖UᵀWV‖ is less
# than a quarter of W's own. And the median amplification falls as r grows, here from r = 4 to 32,
# there from 21.5 to 1.9.
#
# A third claim can hardly be seen here: that ΔW selects directions in which W has *more* than by
# chance. Here it is less than 1.5 times chance, and in GPT-3 16 times, at r = 4. And what chance
# gives depends on the width.

# %%
# Checks
# the paper's own column of random directions: ‖W_q‖ = 61.95, and 0.02 and 0.33 at r = 4 and 64
assert round(61.95 * 4 / 12288, 2) == 0.02, "the formula must give the paper's 0.02"
assert abs(61.95 * 64 / 12288 - 0.33) < 0.01, "the formula must give the paper's 0.33"
for r, (_, of_update, of_weight, random) in means.items():
    expected = np.mean([np.linalg.norm(w) * r / np.sqrt(w.size) for w in weights])
    assert abs(random / expected - 1) < 0.1, f"r = {r}: random directions"
    assert of_update < 0.7 * of_weight, f"r = {r}: ΔW must not repeat what is large in W"
    assert 0.9 < of_update / random < 1.5, f"r = {r}: any directions, or a little more"
    assert r > 4 or of_update < of_weight / 4, "r = 4: ΔW must have less than a quarter"
if not QUICK:
    assert amplification[4] > 1.4 * amplification[8], "the amplification must fall with r"
    assert amplification[8] > 1.7 * amplification[32], "and fall further"
    assert amplification[4] < 21.5 / 3, "and be far below the paper's"

# %% [markdown]
# ## What was shown
#
# In two pairs of runs of `micro` (0.1 million parameters), φ(8, 8) is higher on the output's side
# of ΔW than on the input's. A possible reason: B starts at zero, and A at random. In three runs, W
# has less than 1.5 times as much in ΔW's directions as in random ones (means of 21 matrices). A
# number such as 21.5 needs its chance level next to it.
#
# **What to try.**
#
# 1. `learning_rate=4e-3`: use 1.6e-2. Does A move further, and are inputs shared more?
# 2. `seed=seed`: use seed 0 for all. Is φ(8, 8) now 1?
# 3. `minilora.load("micro")`: load "tiny" (and `name="tiny"` in `finetune`). Does the width
#    change the amplification?
#
# **Exercises.** one-file-init-lora, one-file-linear, lowrank-gradient.
#
# **Further reading.** LoRA, Sec. 7.2 and 7.3: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
# Shuttleworth et al. 2024, *LoRA vs Full Fine-tuning: An Illusion of Equivalence*:
# [arXiv:2410.21228](https://arxiv.org/abs/2410.21228).

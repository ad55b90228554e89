# %% [markdown]
# # MERGE 3c. Amplification
#
# **The question.** How is the update ΔW related to the weight W that it is added to?
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** a quarter of a minute to run, five minutes to read. **You need:** the study [Do two runs
# find the same directions?](do_two_runs_agree.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, finetune, of, read_sweep, short, table
from minilora import LoraConfig, layers, lora
from minilora.tree import get

rng = np.random.default_rng(0)
config, base, _ = minilora.load("micro")

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
# Less than a third of that. For random directions, the amplification is about ‖ΔW‖/‖W‖·√(mn)/r. At
# the same ‖ΔW‖/‖W‖ and r, this grows with the width.
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


runs, results, rows = {}, {}, []
for r, seed in ((4, 0), (8, 0), (32, 2)):
    lora_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=("all-linear",))
    run = finetune(lora_config, seed=seed, learning_rate=4e-3, batch_size=8, iters=short(200, 40))
    of_matrices, expected = [], []
    for path in lora.adapted_paths(run.adapters):
        w = get(base, path)["weight"]
        update = layers.lora_delta(get(run.adapters, path))
        of_matrices.append(portions(w, update, r))
        expected.append(np.linalg.norm(w) * r / np.sqrt(w.size))
    of_matrices = np.array(of_matrices)
    amplification = np.median(of_matrices[:, 0] / of_matrices[:, 1])
    runs[r, seed] = run
    results[r] = {
        "means": of_matrices.mean(axis=0),
        "expected": np.mean(expected),
        "amplification": amplification,
    }
    numbers = [*results[r]["means"], amplification]
    rows.append([f"here, r = {r}", *(f"{x:.2f}" for x in numbers)])
rows.append(["GPT-3, r = 4", "6.91", "0.32", "21.67", "0.02", f"{6.91 / 0.32:.1f}"])
rows.append(["GPT-3, r = 64", "3.57", "1.90", "37.71", "0.33", f"{3.57 / 1.9:.1f}"])
header = ["mean of 21 matrices", "‖ΔW‖", "of ΔW", "of W", "random", "amplification (median)"]
table(header, rows)

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
for r, result in results.items():
    _, of_update, of_weight, random = result["means"]
    assert abs(random / result["expected"] - 1) < 0.1, f"r = {r}: random directions"
    assert of_update < 0.7 * of_weight, f"r = {r}: ΔW must not repeat what is large in W"
    assert 0.9 < of_update / random < 1.5, f"r = {r}: any directions, or a little more"
_, of_update, of_weight, _ = results[4]["means"]
assert of_update < of_weight / 4, "r = 4: ΔW must have less than a quarter"
sweep = read_sweep("rank")
of_rank_1 = of(sweep, "loss", targets="all", rate=4e-3, r=1)
for (r, _), run in runs.items():
    before, again = of(sweep, "loss", targets="all", rate=4e-3, r=r), run.scores["loss"]
    assert QUICK or agrees(again, before, of_rank_1), f"r = {r}: {again}, in the sweep {before}"
if not QUICK:
    at = {r: result["amplification"] for r, result in results.items()}
    assert at[4] > 1.4 * at[8] and at[8] > 1.7 * at[32], "the amplification must fall with r"
    assert at[4] < 21.5 / 3, "and be far below the paper's"

# %% [markdown]
# ## What was shown
#
# In three runs, W has less than 1.5 times as much in ΔW's directions as in random ones (means of 21
# matrices). A number such as 21.5 needs its chance level next to it.
#
# **What to try.**
#
# 1. `minilora.load("micro")`: load "tiny" (and `model="tiny"` in `finetune`). Does the width
#    matter?
# 2. `np.median`: use the mean. Which matrices decide it?
# 3. `inside(w, w, r)`: use W's last r directions instead of the first.
#
# **Exercises.** lowrank-product, lowrank-gradient.
#
# **Further reading.** LoRA, Sec. 7.3: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
# Shuttleworth et al. 2024, *LoRA vs Full Fine-tuning: An Illusion of Equivalence*:
# [arXiv:2410.21228](https://arxiv.org/abs/2410.21228).

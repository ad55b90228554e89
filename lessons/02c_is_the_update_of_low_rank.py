# %% [markdown]
# # 2c. Is the update of low rank?
#
# **The question.** LoRA assumes that the change of the weights in fine-tuning "has a low intrinsic
# rank" (Sec. 4.1). Is that true of full fine-tuning, where nothing limits the rank?
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 2, and what a
# singular value decomposition is.

# %%
import numpy as np
from common import QUICK, figure, finetune, short, table

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.plot import LINES
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, named_leaves, unflatten

rng = np.random.default_rng(0)
config, base, words = minilora.load("micro")
masked = TrainConfig(mask_prompt=True)
train_set, _ = data.encode_rows(data.load_rows("questions", "train"), words, masked)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), words, masked)
PROJECTIONS = {path: w for path, w in named_leaves(base) if is_projection(path)}

# %% [markdown]
# ## The energy of the update
#
# All projections of `micro` are trained in full, on the questions. Then ΔW = W_trained − W is
# decomposed for each matrix:
#
# $$\Delta W = \sum_k \sigma_k u_k v_k^\top, \qquad \lVert\Delta W\rVert^2 = \sum_k \sigma_k^2$$
#
# Each term is a *direction* of rank one. If a few directions carry nearly all of ‖ΔW‖², the update
# is close to a matrix of low rank.
#
# ![A matrix is a sum of rank-one matrices. Keeping the largest three gives the best matrix of rank
# three; the rest is the error.](../figures/drawings/singular_values.svg)
#
# **Predict.** Of 48 directions, how many carry nine tenths of ‖ΔW‖²? And how many do it in a random
# matrix?
#
# <details><summary>Answer</summary>
# 10 to 26, 17.5 on average: about a third of the directions, and for each matrix fewer than for a
# random one. So the update is more concentrated than chance, but not of low rank.
# </details>

# %%
settings = TrainConfig(iters=short(200, 60), batch_size=16, learning_rate=3e-3, mask_prompt=True)
start = unflatten({path: w.copy() for path, w in PROJECTIONS.items()})
trained = flatten(minilora.train(start, base, train_set, config, settings)[0])


def energy_shares(decomposed):
    """Return (matrices, directions): the share of the energy in the first 1, 2, … directions."""
    squares = np.array([sigma**2 for _, sigma, _ in decomposed.values()])
    return np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)


change, noise = {}, {}
for path, w in PROJECTIONS.items():
    change[path] = np.linalg.svd(trained[path] - w, full_matrices=False)
    noise[path] = np.linalg.svd(rng.standard_normal(w.shape), full_matrices=False)
share, chance = energy_shares(change), energy_shares(noise)
needed = 1 + (share < 0.9).sum(axis=1)
by_chance = 1 + (chance < 0.9).sum(axis=1)
table(
    ["directions for 0.9 of ‖ΔW‖²", "fewest", "most", "mean"],
    [
        ["full fine-tuning", int(needed.min()), int(needed.max()), f"{needed.mean():.1f}"],
        ["random matrices", int(by_chance.min()), int(by_chance.max()), f"{by_chance.mean():.1f}"],
    ],
)

# %%
# Checks
assert (needed < by_chance).all(), "every ΔW must be nearer to low rank than a random matrix"
if not QUICK:
    assert 0.3 < needed.mean() / 48 < 0.42, "but a third of the directions is needed"
    assert by_chance.mean() / 48 > 0.5, "and more than half of those of a random matrix"

# %% [markdown]
# ## What the directions do
#
# By its energy, the hypothesis looks weak. But the energy does not say what a direction does for
# the task. So each ΔW is cut to its strongest k directions (the best approximation of rank k:
# Eckart and Young 1936), and, for comparison, to k random directions of its input. Then each cut
# model answers the held-out questions.
#
# **Predict.** Which k is enough to answer the questions? Is it the rank that LoRA needs?
#
# <details><summary>Answer</summary>
# The strongest 16 directions answer nearly everything, 16 random ones nothing. Two directions of
# ΔW are useless, but LoRA with r = 2 learns most of the task. So LoRA needs a much lower rank than
# the update of full fine-tuning has.
# </details>


# %%
def cut_to_strongest(k):
    """Return the weights with only the k strongest directions of each change."""
    weights = {}
    for path, (u, sigma, vt) in change.items():
        weights[path] = (PROJECTIONS[path] + (u[:, :k] * sigma[:k]) @ vt[:k]).astype("f4")
    return unflatten(weights)


def cut_to_random(k):
    """Return the weights with only what each change does to k random directions of the input."""
    weights = {}
    for path, w in PROJECTIONS.items():
        q, _ = np.linalg.qr(rng.standard_normal((w.shape[1], k)))
        weights[path] = (w + (trained[path] - w) @ q @ q.T).astype("f4")
    return unflatten(weights)


KEPT = short((1, 2, 4, 8, 16, 32, 48), (2, 16, 48))
strongest, random, rows = {}, {}, []
for k in KEPT:
    strongest[k] = minilora.evaluate(cut_to_strongest(k), base, valid, config)
    random[k] = minilora.evaluate(cut_to_random(k), base, valid, config)
    cells = [k, f"{share[:, k - 1].mean():.2f}"]
    for scores in (strongest[k], random[k]):
        cells += [f"{scores['loss']:.3f}", f"{scores['exact_match']:.3f}"]
    rows.append(cells)
table(["k", "share of ‖ΔW‖²", "strongest: loss", "exact", "random: loss", "exact"], rows)

rank_two = LoraConfig(r=2, lora_alpha=4, target_modules=("all-linear",))
lora_two = finetune(rank_two, iters=short(200, 60), learning_rate=1e-2).scores
print(f"LoRA, r = 2, same number of steps: loss {lora_two['loss']:.3f},", end=" ")
print(f"exact match {lora_two['exact_match']:.3f}")

# %% [markdown]
# The strongest 16 of 48 directions answer nearly everything, and 16 random ones nothing. So the
# task is in the leading directions of ΔW. But ΔW cut to its strongest two directions is useless,
# while LoRA at r = 2 answers most questions after as many steps.
#
# So "the update of fine-tuning has low rank" **does not hold here**, for `micro` (0.1 million
# parameters) on one task in one run each, and it is not why LoRA works here. A weaker statement
# holds: *among the updates that solve the task, some have low rank*, and training with two thin
# factors finds one of them.

# %%
# Checks
assert strongest[16]["loss"] < random[16]["loss"] / 2, "16 strong directions must beat 16 random"
assert lora_two["loss"] < strongest[2]["loss"] / 2, "LoRA at r = 2 must beat ΔW cut to rank 2"
if not QUICK:
    assert strongest[16]["exact_match"] > 0.9, "16 directions must answer nearly everything"
    assert strongest[4]["exact_match"] < 0.5, "4 directions must not be enough"
    assert random[16]["exact_match"] < 0.05, "16 random directions must answer nothing"
    assert strongest[2]["exact_match"] < 0.05, "2 directions must be useless"
    assert lora_two["exact_match"] > 0.5, "LoRA at r = 2 must answer most questions"

# %% [markdown]
# The first panel shows the energy, the second the loss of the cut models.

# %%
xlabel, ylabels = "directions kept, k", ["share of ‖ΔW‖²", "held-out loss (nats per token)"]
titles = ["nearer to low rank than chance", "but far from rank 2"]
with figure("spectrum", xlabel, ylabels, titles, columns=2, width=9.6, height=3.6) as (left, right):
    ks = np.arange(1, 49)
    left.plot(ks, share.mean(axis=0), label="ΔW of full fine-tuning", **LINES[0])
    left.plot(ks, chance.mean(axis=0), label="random matrices", **LINES[1])
    least, most, color = share.min(axis=0), share.max(axis=0), LINES[0]["color"]
    left.fill_between(ks, least, most, color=color, alpha=0.15, linewidth=0)
    left.legend(frameon=False, loc="lower right")
    for i, (label, scores) in enumerate({"strongest k": strongest, "random k": random}.items()):
        cut_losses = [scores[k]["loss"] for k in KEPT]
        right.plot(KEPT, cut_losses, marker="os"[i], label=f"ΔW, {label}", **LINES[i])
    right.plot(2, lora_two["loss"], marker="D", label="LoRA trained at r = 2", **LINES[2])
    right.set(xscale="log", yscale="log", ylim=(2e-4, 6), xticks=KEPT, xticklabels=KEPT)
    right.minorticks_off()
    right.legend(frameon=False, loc="lower left")

# %% [markdown]
# ![Energy of the directions of ΔW; the loss of models cut to k directions](../figures/spectrum.png)
#
# ## What was shown
#
# Full fine-tuning of `micro` changes weights in many directions. LoRA does not approximate that
# change: it finds another solution, one of low rank. (In a large model, a third of the directions
# may not be needed: this is not shown here.)
#
# **What to try.**
#
# 1. `iters=short(200, 60)` in `settings`: train ten times longer. Is ΔW more concentrated or less?
# 2. `LoraConfig(r=2, ...)`: use r = 1. Is rank one enough?
# 3. `(trained[path] - w) @ q @ q.T`: keep random directions of the output instead, `q @ q.T @ ...`.
#
# **Exercises.** lowrank-product, lora-merge.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Aghajanyan et al.
# 2020, *Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning*:
# [arXiv:2012.13255](https://arxiv.org/abs/2012.13255).

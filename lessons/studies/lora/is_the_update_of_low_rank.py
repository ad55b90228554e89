# %% [markdown]
# # Is the update of low rank?
#
# **The question.** LoRA assumes that the change of the weights in fine-tuning "has a low intrinsic
# rank" (Sec. 4.1). Is that true of full fine-tuning, where nothing limits the rank?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 1, and what a
# singular value decomposition is.

# %%
import numpy as np

import minilora
from minilora import data
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    QUICK,
    belongs,
    claim,
    of,
    read_sweep,
    scores_of,
    short,
    spread,
    table,
)
from minilora.lessons.studies.lora import directions_sweep as experiment

model, valid = minilora.load("micro").model, data.load_rows("questions", "valid")
rng = np.random.default_rng(0)

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
# **Predict.** Of 48 directions, how many carry nine tenths of ‖ΔW‖²? And how many do it in a random
# matrix?
#
# <details><summary>Answer</summary>
# 17 to 18 in the mean (of eight seeds), about a third of the directions, and 29 in a random matrix.
# So the update is more concentrated than chance. (Fewer than 8 is tempting if LoRA of rank 8 is
# enough. But nothing makes full fine-tuning choose a small update.)
# </details>

# %%
sweep = read_sweep("directions")
needed, by_chance = (np.array(of(sweep, name)) for name in ("needed", "by_chance"))
before, trained = experiment.train_projections(model, 0, short(200, 60))
share, random_share = experiment.energies(before, trained, rng)
here, random_here = experiment.needed(share), experiment.needed(random_share)
cells = [
    ["full fine-tuning", f"{here.min()} to {here.max()}", f"{here.mean():.1f}", spread(needed)],
    ["random", f"{random_here.min()} to {random_here.max()}", f"{random_here.mean():.1f}"],
]
cells[1].append(spread(by_chance))
table(["directions for 0.9 of ‖ΔW‖²", "21 matrices", "mean", "means of eight seeds"], cells)

# %%
# Checks
assert (here < random_here).all(), "every ΔW must be nearer to low rank than a random matrix"
assert needed.min() > 17 and needed.max() < 18, "about a third of the directions is needed"
assert (np.rint(by_chance) == 29).all(), "29 in a random matrix"
if not QUICK:  # the first seed of the sweep again
    assert belongs(here.mean(), needed, by_chance), "not the sweep's"

# %% [markdown]
# ## What the directions do
#
# By its energy, the hypothesis looks weak. But the energy does not say what a direction does for
# the task. So each ΔW is cut to its strongest k directions (the best approximation of rank k:
# Eckart and Young 1936), and, for comparison, to k random directions of its input. Then each cut
# model answers the held-out questions.
#
# **Predict.** ΔW of full fine-tuning is cut to its strongest k directions. Which k is enough to
# answer the questions? Is it the rank that LoRA needs?
#
# <details><summary>Answer</summary>
# The strongest 16 directions answer nearly everything, 16 random ones nothing. Two directions of ΔW
# answer nothing, but LoRA with r = 2 answers most questions. (One k for both is tempting. But LoRA
# looks for the best change of rank 2; cutting takes a part of another change.)
# </details>

# %%
loss, cells = {}, []
for k in short((1, 2, 4, 8, 16, 32, 48), (2, 16)):
    cells.append([k, f"{share[:, k - 1].mean():.2f}"])
    for name, weights in {
        "strongest": experiment.cut_to_strongest(before, trained, k),
        "random": experiment.cut_to_random(before, trained, k, rng),
    }.items():
        scores = scores_of(weights, model, valid)
        loss[name, k] = scores["loss"]
        cells[-1] += [f"{scores['loss']:.3f}", f"{scores['exact_match']:.3f}"]
table(["k", "share of ‖ΔW‖²", "strongest: loss", "exact", "random: loss", "exact"], cells)

lora_two = experiment.lora_of_rank_two(0, short(200, 60))
print(f"LoRA, r = 2, same number of steps: loss {lora_two['loss']:.3f},", end=" ")
print(f"exact match {lora_two['exact_match']:.3f}")

# %% [markdown]
# With each of eight seeds (below), the strongest 16 of 48 directions answer nearly everything, and
# 16 random ones nothing. ΔW cut to its strongest two directions answers nothing; LoRA of rank 2
# answers most questions after as many steps.
#
# ## Eight seeds
#
# One run could be an accident. `directions_sweep.py` repeats it with eight seeds. A claim is
# tested with the *paired* differences, one number per seed, and the 95 % interval of their mean
# (Student's t). The verdict is *holds here* if the whole interval agrees with the claim, *does not
# hold here* if the whole interval contradicts it, and *not shown either way* in between.

# %%
names = ("strongest_2", "strongest_4", "strongest_16", "random_16", "lora_2")
exact = {name: np.array(of(sweep, f"exact_{name}")) for name in names}
more = exact["strongest_16"] - exact["random_16"]
ratio = np.log(of(sweep, "loss_strongest_2")) - np.log(of(sweep, "loss_lora_2"))
verdicts = {
    "concentrated": claim("ΔW needs fewer directions than chance", by_chance - needed, digits=1),
    "low rank": claim("ΔW needs at most 8 of 48 directions", needed, 0, 8, digits=1),
    "task": claim("16 strongest answer more than 16 random", more, above=0.5),
    "cut": claim("rank 4 of ΔW answers half", exact["strongest_4"], above=0.5),
    "lora": claim("ΔW cut to rank 2 has a loss above LoRA's", ratio, np.log(2), times=True),
}
print(f"LoRA with r = 2 answers {exact['lora_2'].min():.0%} to {exact['lora_2'].max():.0%}")

# %% [markdown]
# So "the update of fine-tuning has low rank" does not hold here, in full fine-tuning of a model of
# 0.1 million parameters. A weaker statement holds: *among the updates that answer most questions,
# some have low rank*, and training with two thin factors finds one of them, with every seed.
# Whether a large model's update has low rank, this model cannot show.

# %%
# Checks
for name in ("concentrated", "task", "lora"):
    assert verdicts[name] == HOLDS, name
for name in ("low rank", "cut"):
    assert verdicts[name] == FAILS, name
none = max(exact["random_16"].max(), exact["strongest_2"].max())
assert none == 0, "16 random directions, and the strongest two, must answer nothing"
assert exact["strongest_16"].min() > 0.95, "the strongest 16 must answer nearly everything"
assert exact["lora_2"].min() > 0.75, "LoRA at r = 2 must answer most questions, with every seed"
assert loss["strongest", 16] < loss["random", 16] / 2, "16 strong directions must beat 16 random"
assert lora_two["loss"] < loss["strongest", 2] / 2, "LoRA at r = 2 must beat ΔW cut to rank 2"

# %% [markdown]
# ## What was shown
#
# Full fine-tuning of `micro` (0.1 million parameters): with each of eight seeds, about a third of
# all directions carry nine tenths of the change (mean over the matrices). Cut to rank 2, that
# change answers nothing; LoRA at r = 2 answers most questions. This is one model and one task; it
# says nothing about large models.
#
# **What to try.**
#
# 1. `short(200, 60)` in `train_projections(…)`: train ten times longer. Is ΔW more concentrated or
#    less?
# 2. `lora_of_rank_two` in `directions_sweep.py`: use r = 1. Is rank one enough?
# 3. `cut_to_random` in `directions_sweep.py`: keep random directions of the output instead, `q @
#    q.T @ ...`.
#
# **Exercises.** one-file-linear, lora-merge.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Aghajanyan et al.
# 2020, *Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning*:
# [arXiv:2012.13255](https://arxiv.org/abs/2012.13255).

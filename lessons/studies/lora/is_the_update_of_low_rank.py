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
    show_losses,
    spread,
)
from minilora.lessons.studies.lora import directions_sweep as experiment

model, valid = minilora.load("micro").model, data.load_rows("questions", "valid")
rng = np.random.default_rng(0)
sweep = read_sweep("directions")

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
# **Predict.** LoRA of rank 8 learns this task. Of the 48 directions of ΔW, how many carry nine
# tenths of ‖ΔW‖²: fewer than 8? And how many do it in a random matrix?

# %%
before, trained = experiment.train_projections(model, 0, short(200, 60))
changes = [trained[path] - w for path, w in before.items()]
random = [rng.standard_normal(w.shape) for w in changes]
here, random_here = experiment.needed(changes), experiment.needed(random)
needed, by_chance = (np.array(of(sweep, name)) for name in ("needed", "by_chance"))
print("directions for 0.9 of ‖ΔW‖², means of 21 matrices: this run, eight seeds")
print(f"full fine-tuning: {here.mean():.1f}, {spread(needed)}")
print(f"random matrices: {random_here.mean():.1f}, {spread(by_chance)}")

# %% [markdown]
# **Answer.** 17 to 18 with each of eight seeds (`directions_sweep.py`), about a third of all
# directions, and 29 in a random matrix. So the update is more concentrated than chance. But nothing
# makes full fine-tuning choose a small update.
#
# ## What the directions do
#
# By its energy, the hypothesis looks weak. But the energy does not say what a direction does for
# the task. So each ΔW is cut to its strongest k directions (the best approximation of rank k:
# Eckart and Young 1936), and, for comparison, to k random directions of its input. Then each cut
# model answers the held-out questions.
#
# **Predict.** LoRA with r = 2 answers most questions. Are two directions of ΔW enough, too?

# %%
KS = short((1, 2, 4, 8, 16, 32, 48), (2, 16))
loss = {"strongest": [], "random": []}
for k in KS:
    for name, weights in {
        "strongest": experiment.cut(before, trained, k),
        "random": experiment.cut(before, trained, k, rng),
    }.items():
        loss[name].append([scores_of(weights, model, valid)["loss"]])
show_losses(loss, KS, "directions", "the change of one run, cut to some of its directions")

# %%
# Table
names = ("strongest_2", "strongest_16", "random_16", "lora_2")
exact = {name: np.array(of(sweep, f"exact_{name}")) for name in names}
for name, of_seeds in exact.items():
    print(f"{name} answers {of_seeds.min():.0%} to {of_seeds.max():.0%}, eight seeds")
more = exact["strongest_16"] - exact["random_16"]
ratio = np.log(of(sweep, "loss_strongest_2")) - np.log(of(sweep, "loss_lora_2"))
concentrated = claim("ΔW needs fewer directions than chance", by_chance - needed, digits=1)
low_rank = claim("ΔW needs at most 8 of 48 directions", needed, 0, 8, digits=1)
task = claim("16 strongest answer more than 16 random", more, above=0.5)
cut = claim("ΔW cut to rank 2 has a loss above LoRA's", ratio, np.log(2), times=True)

# %% [markdown]
# **Answer.** No. With each of eight seeds, the strongest two directions answer nothing, and LoRA
# with r = 2 answers most questions after as many steps. LoRA looks for the best change of rank 2;
# cutting takes a part of another change. The strongest 16 of 48 directions answer nearly
# everything, and 16 random ones nothing.
#
# So "the update of fine-tuning has low rank" does not hold here, in full fine-tuning of a model of
# 0.1 million parameters. A weaker statement holds: *among the updates that answer most questions,
# some have low rank*, and training with two thin factors finds one of them, with every seed.
# Whether a large model's update has low rank, this model cannot show.
#
# ## What was shown
#
# Full fine-tuning of `micro` (0.1 million parameters): with each of eight seeds, about a third of
# all directions carry nine tenths of the change (mean over the matrices). Cut to rank 2, that
# change answers nothing; LoRA at r = 2 answers most questions. This is one model and one task.
#
# **What to try.**
#
# 1. `short(200, 60)`: train ten times longer. Is ΔW more concentrated or less?
# 2. `LoraConfig(r=2, …)` in `directions_sweep.py`: use r = 1. Is rank one enough?
# 3. `cut` in `directions_sweep.py`: keep random directions of the output instead.
#
# **Exercises.** one-file-linear, lora-merge.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Aghajanyan et al.
# 2020, *Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning*:
# [arXiv:2012.13255](https://arxiv.org/abs/2012.13255).

# %%
# Checks
assert (here < random_here).all(), "every ΔW must be nearer to low rank than a random matrix"
assert needed.min() > 17 and needed.max() < 18, "about a third of the directions is needed"
assert (np.rint(by_chance) == 29).all(), "29 in a random matrix"
assert QUICK or belongs(here.mean(), needed, by_chance), "the run must agree with the sweep"
assert concentrated == task == cut == HOLDS and low_rank == FAILS, "the four claims"
none = max(exact["random_16"].max(), exact["strongest_2"].max())
assert none == 0, "16 random directions, and the strongest two, must answer nothing"
assert exact["strongest_16"].min() > 0.95, "the strongest 16 must answer nearly everything"
assert exact["lora_2"].min() > 0.75, "LoRA at r = 2 must answer most questions, with every seed"
at_16 = KS.index(16)
assert loss["strongest"][at_16][0] < loss["random"][at_16][0] / 2, "16 strong must beat 16 random"

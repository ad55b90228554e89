# %% [markdown]
# # Is the update of low rank?
#
# **The question.** LoRA assumes that the change of the weights in fine-tuning "has a low intrinsic
# rank" (Sec. 4.1). Is that true of full fine-tuning, where nothing limits the rank?
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 3, and what a
# singular value decomposition is.

# %%
import numpy as np

import minilora
from lessons.helpers.common import (
    FAILS,
    HOLDS,
    QUICK,
    belongs,
    claim,
    figure,
    of,
    read_sweep,
    short,
    table,
)
from lessons.studies.lora import directions_sweep as experiment
from minilora import TrainConfig, data
from minilora.evaluation.plot import LINES

rng = np.random.default_rng(0)
config, base, words = minilora.load("micro")
masked = TrainConfig(mask_prompt=True)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), words, masked)

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
# So the update is more concentrated than chance.
# </details>

# %%
before, trained = experiment.train_projections(base, 0, short(200, 60))
singular_values, random_values = [], []
for path, w in before.items():
    singular_values.append(np.linalg.svd(trained[path] - w, compute_uv=False))
    random_values.append(np.linalg.svd(rng.standard_normal(w.shape), compute_uv=False))
share, chance = experiment.energy_shares(singular_values), experiment.energy_shares(random_values)
needed, by_chance = experiment.needed(singular_values), experiment.needed(random_values)
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
sweep = read_sweep("directions")
in_sweep = {name: np.array(of(sweep, name)) for name in ("needed", "by_chance")}
if not QUICK:  # the first seed of the sweep again
    assert belongs(needed.mean(), in_sweep["needed"], in_sweep["by_chance"]), "not the sweep's"

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
# The strongest 16 directions answer nearly everything, 16 random ones nothing. Two directions of ΔW
# answer nothing, but LoRA with r = 2 answers most questions. So LoRA at rank 2 does what ΔW cut to
# rank 2 does not.
# </details>

# %%
KEPT = short((1, 2, 4, 8, 16, 32, 48), (2, 16, 48))
strongest, random, rows = {}, {}, []
for k in KEPT:
    strongest_k = experiment.cut_to_strongest(before, trained, k)
    random_k = experiment.cut_to_random(before, trained, k, rng)
    strongest[k] = minilora.evaluate(strongest_k, base, valid, config)
    random[k] = minilora.evaluate(random_k, base, valid, config)
    cells = [k, f"{share[:, k - 1].mean():.2f}"]
    for scores in (strongest[k], random[k]):
        cells += [f"{scores['loss']:.3f}", f"{scores['exact_match']:.3f}"]
    rows.append(cells)
table(["k", "share of ‖ΔW‖²", "strongest: loss", "exact", "random: loss", "exact"], rows)

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
loss = {name: np.array(of(sweep, f"loss_{name}")) for name in ("strongest_2", "lora_2")}
exact = {
    name: np.array(of(sweep, f"exact_{name}")) for name in ("strongest_4", "strongest_16", "lora_2")
}
fewer = in_sweep["by_chance"] - in_sweep["needed"]
ratio = np.log(loss["strongest_2"] / loss["lora_2"])
more = exact["strongest_16"] - np.array(of(sweep, "exact_random_16"))
verdicts = {
    "concentrated": claim("ΔW needs fewer directions than chance", fewer, digits=1),
    "low rank": claim("ΔW needs at most 8 of 48 directions", in_sweep["needed"], 0, 8, digits=1),
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
needs = in_sweep["needed"]
assert needs.min() > 17 and needs.max() < 18, "a third of the directions is needed"
assert (np.rint(in_sweep["by_chance"]) == 29).all(), "29 in a random matrix"
none = max(*of(sweep, "exact_random_16"), *of(sweep, "exact_strongest_2"))
assert none == 0, "16 random directions, and the strongest two, must answer nothing"
assert exact["strongest_16"].min() > 0.95, "the strongest 16 must answer nearly everything"
assert exact["lora_2"].min() > 0.75, "LoRA at r = 2 must answer most questions, with every seed"
assert strongest[16]["loss"] < random[16]["loss"] / 2, "16 strong directions must beat 16 random"
assert lora_two["loss"] < strongest[2]["loss"] / 2, "LoRA at r = 2 must beat ΔW cut to rank 2"

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
# ![Energy of the directions of ΔW; the loss of models cut to k
# directions](../../../figures/spectrum.png)
#
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
# **Exercises.** lowrank-product, lora-merge.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Aghajanyan et al.
# 2020, *Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning*:
# [arXiv:2012.13255](https://arxiv.org/abs/2012.13255).

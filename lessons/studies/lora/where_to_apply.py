# %% [markdown]
# # Where to apply it
#
# **The question.** A layer of a Llama has seven matrices. Which of them should get an adapter, and
# of what rank?
#
# Two experiments of the LoRA paper in miniature: its Table 5 (one budget, which matrices) and
# Table 6 (which rank). GPT-3 has a width of 12,288 and `micro` has one of 48, so results that
# depend on the width may differ. The study [Do two runs find the same
# directions?](do_two_runs_agree.py) looks at the trained matrices.
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 5 seconds to run, five minutes to read. **You need:** lessons 0 and 8.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minilora.lessons.helpers.common import QUICK, agrees, of, read_sweep, show_losses
from minilora.lessons.studies.lora import rank_sweep, targets_sweep

sweep = read_sweep("targets")


def column(part, name, column="loss", **where):
    """Return a column of the runs of a case, one number per seed."""
    return np.array(of(sweep, column, part=part, name=name, **where))


def show_cases(cases):
    """Show the losses of cases, {name: one per seed}, as dots, the first case at the top."""
    _, axes = plt.subplots(figsize=(6, 0.8 + 0.25 * len(cases)), layout="constrained")
    for name, losses in reversed(cases.items()):
        axes.semilogx(losses, [name] * len(losses), "o", color="C0", alpha=0.5)
    axes.set(xlim=(0.005, 0.6), xlabel="held-out loss, in nats per token; a dot is a seed")
    plt.show()


# %% [markdown]
# ## One budget
#
# Each case below trains 10,944 parameters, or within 2 % of that: one matrix of attention at r =
# 38, two at r = 19, or all seven at r = 4. There are five seeds each, at the best of three learning
# rates. (Seed 0 chose the rate. One rate for all would favour whichever method it suits.)
#
# The paper's Table 5 has the accuracy of GPT-3 on WikiSQL: q 70.4, k 70.0, v 73.0, o 73.2, q and k
# 71.4, q and v 73.7, all four of attention 73.7 %.
#
# **Predict.** The task is to repeat words of the prompt in another order. Is q or v the better
# place for a single large adapter?

# %%
# Picture
budget = {name: column("budget", name, rate=rate) for name, rate in targets_sweep.BEST.items()}
show_cases(budget)

# %% [markdown]
# **Answer.** q. On `micro` (0.1 million parameters), the paper's conclusion holds, but not the
# place of v among its columns.
#
# - *Spread the budget* **holds here**: every seed of q, k, v, o together, and of all seven, has a
#   lower loss than every seed of q, k, v, o or down alone. Rank 38 is near the full rank of 48, and
#   one matrix of attention has it. **Not shown either way**: whether all seven have a lower loss
#   than attention's four. There the seeds overlap.
# - *"v before q and k"* **does not hold here**: v alone has the highest loss of the ten, with every
#   seed. One possible reason: the base can already copy a word, because its own language needs
#   that. The questions need it to look at other places, and q and k decide where a head looks.
#
# ## When a task underfits
#
# A usual ladder: begin with q and v, add o, then the MLP of some layers, then everything. Each rung
# has r = 8, the rate 0.01 and five seeds.
#
# **Predict.** Which rung brings most? Does it matter which layer's MLP is added?

# %%
# Picture
rungs = {name: column("climb", name) for name in targets_sweep.CLIMB}
show_cases(rungs)

# %% [markdown]
# **Answer.** Adding o more than halves the mean loss (lesson 8), and all seven matrices more than
# halve it again. Which layer's MLP should come first is not shown: their seeds overlap.
#
# All seven have a lower loss than q, v, o and every MLP with every seed, and than each rung below
# with at least four of five. So on `micro`, begin with all seven. The QLoRA paper (Sec. 4) says for
# LLaMA that adapters on all linear layers are needed to match full fine-tuning.
#
# ## Rank
#
# In the paper's Table 6, from r = 1 to 64 on q and v of GPT-3, WikiSQL stays between 73.3 and 73.8.
#
# **Predict.** Is r = 1 enough here, on q and v and on all seven?

# %%
# Picture
of_rank, RANKS = read_sweep("rank"), rank_sweep.RANKS
by_rank = {}
for where in rank_sweep.TARGETS:
    cells = [of(of_rank, "loss", targets=where, rate=1e-2, r=r) for r in RANKS]
    by_rank[where] = np.array(cells)
show_losses(by_rank, RANKS, "rank", "rate 0.01: means and ranges of five seeds")

# %% [markdown]
# **Answer.** At this rate, r = 1 is too little: it has more than four times the loss of r = 4 on
# all seven, and of r = 32 on q and v, where the mean loss falls up to there. "Rank hardly matters"
# **holds here in a range** (lesson 8): on all seven matrices of `micro` (0.1 million parameters)
# and at rate 0.01, the mean losses from r = 4 to 32 differ by less than a factor of 2.5. r = 64 has
# a higher loss than r = 32, because the rate is too high for it (lesson 8).
#
# ## What was shown
#
# On `micro` at r = 8, adapters on all seven matrices have a lower loss than each rung with fewer,
# with at least four of five seeds. At rate 0.01, their mean losses at ranks 4 to 32 differ by less
# than a factor of 2.5.
#
# **What to try.**
#
# 1. `rate=rate`: use `rate=1e-2`. Which cases get a higher loss?
# 2. `SPENT` in `targets_sweep.py`: add "gate" alone and run
#    `python -m minilora.lessons.helpers.sweep targets`.
# 3. `WHERE` in `rank_sweep.py`: add `("q v", 4e-3)` and run the sweep. Which r is the best?
#
# **Exercises.** lora-count, one-file-init-lora.
#
# **Further reading.** LoRA, Sec. 7: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). QLoRA,
# Sec. 4: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

# %%
# Checks
for name, best in targets_sweep.BEST.items():
    n = column("budget", name, "trained")[0]
    assert abs(n / targets_sweep.BUDGET - 1) < 0.02, f"{name}: {n} parameters are not the budget"
    of_seed_0 = [column("budget", name, rate=rate)[0] for rate in targets_sweep.RATES]
    assert targets_sweep.RATES[np.argmin(of_seed_0)] == best, f"{name}: seed 0's best rate"
one_each = np.concatenate([budget[name] for name in ("q", "k", "v", "o", "down")])
assert budget["q k v o"].max() < 0.75 * one_each.min(), "q k v o must beat any single matrix"
assert budget["all"].max() < 0.6 * one_each.min(), "all seven must beat any single matrix"
four, seven = budget["q k v o"], budget["all"]
assert max(four.min(), seven.min()) < min(four.max(), seven.max()), "their seeds must overlap"
of_others = max(loss.max() for name, loss in budget.items() if name != "v")
assert budget["v"].min() > 1.2 * of_others, "v must be the worst, unlike in GPT-3"
mean = {name: losses.mean() for name, losses in rungs.items()}
assert mean["all seven"] < mean["q v o"] / 2 < mean["q v"] / 4, "o halves it, all seven once more"
top = rungs["all seven"]
assert (top < rungs["q v o, every MLP"]).all(), "k must help, with every seed"
for name, loss in rungs.items():
    assert name == "all seven" or (top < loss).sum() >= 4, f"all seven must beat {name}"
one_layer = [rungs[f"q v o, MLP of layer {i}"] for i in range(3)]
best, worst = max(loss.min() for loss in one_layer), min(loss.max() for loss in one_layer)
assert best < worst, "the three layers must overlap"
two, all_seven = (dict(zip(RANKS, losses.mean(axis=1))) for losses in by_rank.values())
assert (np.diff([two[r] for r in RANKS[:-1]]) < 0).all(), "q and v: better up to 32"
assert two[1] > 4 * two[32] and all_seven[1] > 4 * all_seven[4], "r = 1 must be too little"
middle = [all_seven[r] for r in (4, 8, 16, 32)]
assert max(middle) / min(middle) < 2.5 < all_seven[64] / all_seven[32], "4 to 32: less than 2.5"
if not QUICK:  # a run of the sweep again, told apart from another case
    again = targets_sweep.run(("budget", "v", targets_sweep.BEST["v"], 0))["loss"]
    assert agrees(again, budget["v"], budget["q"]), f"v: {again}, not {budget['v']}"

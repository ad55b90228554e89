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
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 0 and 8.

# %%
import numpy as np

from minilora.lessons.helpers.common import QUICK, agrees, of, read_sweep, table
from minilora.lessons.studies.lora import rank_sweep, targets_sweep

sweep = read_sweep("targets")


def case(part, name, **where):
    """Return a case's number of parameters, its mean training loss, and the losses of its seeds."""
    where |= {"part": part, "name": name}
    trained, on_train, loss = (of(sweep, x, **where) for x in ("trained", "train_loss", "loss"))
    return int(trained[0]), np.mean(on_train), np.array(loss)


def seeds(loss):
    """Return two cells of a table: the mean, and each seed."""
    return [f"{loss.mean():.3f}", " ".join(f"{x:.3f}" for x in loss)]


# %% [markdown]
# ## One budget
#
# Each row of the table below trains 10,944 parameters, or within 2 % of that: one matrix of
# attention at r = 38, two at r = 19, or all seven at r = 4. There are five seeds each, at the best
# of three learning rates. (Seed 0 chose the rate. One rate for all would favour whichever method it
# suits.)
#
# The paper's Table 5 has the accuracy of GPT-3 on WikiSQL: q 70.4, k 70.0, v 73.0, o 73.2, q and k
# 71.4, q and v 73.7, all four of attention 73.7 %.
#
# **Predict.** The task is to repeat words of the prompt in another order. Is q or v the better
# place for a single large adapter?
#
# <details><summary>Answer</summary>
# q. v alone has the highest loss of the ten here. (v is tempting: for GPT-3, its accuracy is above
# q's.)
# </details>

# %%
budget, trained, cells = {}, {}, []
for name, rate in targets_sweep.BEST.items():
    trained[name], _, budget[name] = case("budget", name, rate=rate)
    cells.append([name, trained[name], f"{rate:g}", *seeds(budget[name])])
table(["trained matrices", "parameters", "rate", "held-out loss", "of seeds"], cells)

# %% [markdown]
# On `micro` (0.1 million parameters), the paper's conclusion holds, but not the place of v among
# its columns.
#
# - *Spread the budget* **holds here**: every seed of q, k, v, o together has a lower loss than
#   every seed of q, k, v, o or down alone, and so is every seed of all seven at r = 4. Rank 38 is
#   near the full rank of 48, and one matrix of attention has it. **Not shown either way**: whether
#   all seven have a lower loss than attention's four, and q and v than q alone. There the seeds
#   overlap.
# - *"v before q and k"* **does not hold here**: v alone has the highest loss of the ten, with every
#   seed. One possible reason: the base can already copy a word, because its own language needs
#   that. The questions need it to look at other places, and q and k decide where a head looks.

# %%
# Checks
for name, n in trained.items():
    assert abs(n / targets_sweep.BUDGET - 1) < 0.02, f"{name}: {n} parameters are not the budget"
one_each = np.concatenate([budget[name] for name in ("q", "k", "v", "o", "down")])
assert budget["q k v o"].max() < 0.75 * one_each.min(), "q k v o must beat any single matrix"
assert budget["all"].max() < 0.6 * one_each.min(), "all seven must beat any single matrix"
for a, b in (("all", "q k v o"), ("q v", "q")):
    overlap = max(budget[a].min(), budget[b].min()) < min(budget[a].max(), budget[b].max())
    assert overlap, f"{a} and {b}: the seeds overlap, no verdict"
of_others = max(loss.max() for name, loss in budget.items() if name != "v")
assert budget["v"].min() > 1.2 * of_others, "v must be the worst, unlike in GPT-3"
for name, best in targets_sweep.BEST.items():
    of_seed_0 = {rate: case("budget", name, rate=rate)[2][0] for rate in targets_sweep.RATES}
    assert min(of_seed_0, key=of_seed_0.get) == best, f"{name}: seed 0's best rate"

# %% [markdown]
# ## When a task underfits
#
# A usual ladder: begin with q and v, add o, then the MLP of some layers, then everything. A usual
# sign to climb: the training loss is as high as the held-out loss, as for q and v here. Each rung
# has r = 8, the rate 0.01 and five seeds.
#
# **Predict.** Begin with q and v, add o, then the MLP of some layers, then everything. Which rung
# brings most? Does it matter which layer's MLP is added?
#
# <details><summary>Answer</summary>
# Adding o more than halves the mean loss (lesson 8), and all seven matrices more than halve it
# again. Which layer's MLP should come first is not shown: their seeds overlap. (The last is
# tempting, because it is nearest to the answer.)
# </details>

# %%
rungs, cells = {}, []
for name in targets_sweep.CLIMB:
    parameters, on_train, rungs[name] = case("climb", name)
    cells.append([name, parameters, f"{on_train:.3f}", *seeds(rungs[name])])
table(["rung", "parameters", "training loss", "held-out loss", "of seeds"], cells)

# %% [markdown]
# All seven have a lower loss than q, v, o and every MLP with every seed, and than each rung below
# with at least four of five. So on `micro`, begin with all seven. The QLoRA paper (Sec. 4) says for
# LLaMA that adapters on all linear layers are needed to match full fine-tuning.

# %%
# Checks
top = rungs["all seven"]
assert (rungs["q v o"] < rungs["q v"]).all(), "adding o must help, with every seed (lesson 8)"
assert (top < rungs["q v o, every MLP"]).all(), "k must help, with every seed"
for name, loss in rungs.items():
    assert name == "all seven" or (top < loss).sum() >= 4, f"all seven must beat {name}"
one_layer = [rungs[f"q v o, MLP of layer {i}"] for i in range(3)]
best, worst = max(loss.min() for loss in one_layer), min(loss.max() for loss in one_layer)
assert best < worst, "the three layers must overlap"

# %% [markdown]
# ## Rank
#
# In the paper's Table 6, from r = 1 to 64 on q and v of GPT-3, WikiSQL stays between 73.3 and 73.8.
#
# **Predict.** Is r = 1 enough here? Can r = 64 be worse than r = 32?
#
# <details><summary>Answer</summary>
# r = 1 is too little: it has more than four times the loss of r = 16 on q and v, and of r = 4 on
# all seven. On all seven at rate 0.01, r = 64 has a higher loss than r = 32. ("Never worse" is
# tempting, because r = 64 can express all that r = 32 can.)
# </details>

# %%
of_rank, RANKS = read_sweep("rank"), rank_sweep.RANKS
by_rank = []
for where, rate in rank_sweep.WHERE:
    losses = {r: np.array(of(of_rank, "loss", targets=where, rate=rate, r=r)) for r in RANKS}
    by_rank.append(losses)
two, seven, slower = by_rank
cells = [[str(r), *(f"{losses[r].mean():.3f}" for losses in by_rank)] for r in RANKS]
table(["r", *(f"{where}, rate {rate:g}" for where, rate in rank_sweep.WHERE)], cells)

# %% [markdown]
# "Rank hardly matters" **holds here in a range** (lesson 8): on all seven matrices of `micro` and
# at rate 0.01, the mean losses from r = 4 to 32 differ by less than a factor of 2.5. r = 1 is too
# little, and on q and v the mean loss falls up to r = 32. On all seven, rank 64 has a higher loss
# than rank 32 at rate 0.01, and the lowest of its column at 0.4 of that rate, each with every seed.
# A possible reason: with alpha = 2r, a larger rank also means a longer first step (the study [What
# α/r does](what_alpha_over_r_does.py)). BA cannot have a rank above 48 here, the width.

# %%
# Checks
assert (np.diff([two[r].mean() for r in RANKS[:-1]]) < 0).all(), "q and v: better up to 32"
worse = seven[64] / seven[32]
assert worse.min() > 1.5 and worse.mean() > 5, "r = 64 must fail at rate 0.01, with every seed"
for r in RANKS[:-1]:
    assert (slower[64] < slower[r]).all(), f"at 0.004, r = 64 must beat r = {r}, with every seed"
assert slower[64].max() < 0.1 * seven[64].min(), "the rate was too large, not the rank"
if not QUICK:  # runs of both sweeps again, each told apart from another case
    for name, other in (("q", "v"), ("v", "q"), ("all", "q")):
        again = targets_sweep.run(("budget", name, targets_sweep.BEST[name], 0))["loss"]
        assert agrees(again, budget[name], budget[other]), f"{name}: {again}, not {budget[name]}"
    again = rank_sweep.run(("all", 64, 1e-2, 0))["loss"]
    assert agrees(again, seven[64], seven[32]), f"r = 64: {again}, in the sweep {seven[64]}"

# %% [markdown]
# ## What was shown
#
# On `micro` at r = 8, adapters on all seven matrices have a lower loss than each rung with fewer,
# with at least four of five seeds. At rate 0.01, their mean losses at ranks 4 to 32 differ by less
# than a factor of 2.5.
#
# **What to try.**
#
# 1. `rate=rate` in the first loop: use `rate=1e-2`. Which rows get a higher loss?
# 2. `SPENT` in `targets_sweep.py`: add "gate" alone and run
#    `python -m minilora.lessons.helpers.sweep targets`.
# 3. `WHERE` in `rank_sweep.py`: add `("q v", 4e-3)` and run the sweep. Which r is the best?
#
# **Exercises.** lora-count, one-file-init-lora.
#
# **Further reading.** LoRA, Sec. 7: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). QLoRA,
# Sec. 4: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

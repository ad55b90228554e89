# %% [markdown]
# # 8c. Dropout, and what a wrong choice costs
#
# **The question.** When does dropout help an adapter? And which wrong setting costs most?
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 8 and 8b.

# %%
import sys

import numpy as np
from common import QUICK, SWEEPS, figure, of, read_sweep, table

from minilora.evaluation import plot

sys.path.insert(0, str(SWEEPS))
import dropout  # the sweep's noisy labels and runs

# %% [markdown]
# ## Dropout
#
# `lora_dropout` sets inputs of the adapter's branch to zero, at random, while training. It works
# against memorizing. So it can only help if something is memorized. There are four cases:
#
# - 4,000 rows, of which a run sees 1,600 once, or 64 rows, which it sees 25 times
# - with right answers, or with 30 % of the training rows having another row's answer
#
# The held-out rows are always right.
#
# ![Dropout zeroes three of ten entries of the input of A and divides the others by
# 0.7](../figures/drawings/dropout_entries.svg)
#
# **Predict.** In which of the four cases does dropout 0.1 help? Are wrong answers alone a reason to
# use it?
#
# <details><summary>Answer</summary>
# With 64 rows, both with right and with wrong answers. With 4,000 rows it does not help, not even
# against wrong answers: a run sees no row twice, so it memorizes none.
# </details>

# %%
sweep = read_sweep("dropout")
losses, rows = {}, []
for n in (4000, 64):
    for noise in (0.0, 0.3):
        for p in dropout.ROWS[n]:
            loss = np.array(of(sweep, "loss", rows=n, noise=noise, dropout=p))
            train_loss = np.mean(of(sweep, "train_loss", rows=n, noise=noise, dropout=p))
            losses[n, noise, p] = loss
            seeds = " ".join(f"{x:.3f}" for x in loss)
            cells = [f"{noise:.0%}", f"{p:g}", f"{train_loss:.3f}", f"{loss.mean():.3f}", seeds]
            rows.append([str(n), *cells])
table(["rows", "wrong answers", "dropout", "training loss", "held-out loss", "of seeds"], rows)

# %%
title, xlabel, ylabel = "64 rows, seen 25 times", "dropout", "held-out loss (nats per token)"
with figure("dropout", xlabel, ylabel, title) as axes:
    for noise, style, marker in ((0.0, plot.LINES[0], "o"), (0.3, plot.LINES[1], "s")):
        seeds = np.array([losses[64, noise, p] for p in dropout.ROWS[64]])
        label = f"{noise:.0%} wrong answers"
        axes.plot(dropout.ROWS[64], seeds.mean(axis=1), marker=marker, label=label, **style)
        low, high = seeds.min(axis=1), seeds.max(axis=1)
        axes.vlines(dropout.ROWS[64], low, high, color=style["color"], alpha=0.5)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")

# %% [markdown]
# ![Held-out loss over dropout, with and without wrong answers](../figures/dropout.png)
#
# Dropout 0.1 helps if rows are seen many times, with right and with wrong answers, for every seed.
# 0.3 is too much. If no row is seen twice, dropout costs a little. Against wrong answers that are
# never seen again it does nothing.
#
# There is a sign of memorizing: the training loss is far below the held-out loss.
#
# Wrong answers are worse than any of this. With 4,000 rows, 30 % of wrong answers keep the adapter
# from learning the task at all in these 200 steps. Fix the data before you tune dropout.

# %%
# Checks
right = {p: losses[64, 0.0, p] for p in dropout.ROWS[64]}
wrong = {p: losses[64, 0.3, p] for p in dropout.ROWS[64]}
assert (right[0.1] < right[0.0]).all(), "64 rows: 0.1 must help, with every seed"
assert (wrong[0.1] < wrong[0.0]).all(), "64 rows, wrong answers: 0.1 must help, with every seed"
assert wrong[0.1].mean() < 0.85 * wrong[0.0].mean(), "and clearly so with wrong answers"
assert right[0.3].mean() > right[0.0].mean(), "0.3 must be too much with right answers"
assert wrong[0.3].mean() > wrong[0.1].mean(), "0.3 must be too much with wrong answers"
assert (losses[4000, 0.0, 0.1] > losses[4000, 0.0, 0.0]).all(), "4,000 rows: it must cost a little"
ratio = losses[4000, 0.3, 0.1].mean() / losses[4000, 0.3, 0.0].mean()
assert 0.95 < ratio < 1.05, "4,000 rows, wrong answers: dropout must do nothing"
for row in sweep:
    if row["dropout"] == 0:
        share = row["train_loss"] / row["loss"]
        if row["rows"] == 64:
            assert share < 0.25, "64 rows: the training loss must be far below the held-out loss"
        else:
            assert 0.75 < share < 1.33, "4,000 rows: the two losses must be similar"
for p in () if QUICK else (0.0, 0.1):  # two runs of the sweep again
    live = dropout.train(64, 0.3, p, seed=0).scores["loss"]
    # other machines round differently, which training magnifies: half or double is the same run
    assert 0.5 < live / wrong[p][0] < 2, f"dropout {p}: {live} is not the sweep's loss"

# %% [markdown]
# ## What a wrong choice costs
#
# Each of these is the loss with a wrong choice, divided by the loss with a right one.
#
# **Predict.** Put them in order, from the smallest to the largest:
#
# - dropout 0.1 that nothing needs
# - another r between 4 and 32
# - an alpha that is 16 times too small, with a rate that suits it
# - the same alpha, with the rate as it was
# - a rate that is 4 times too large
#
# <details><summary>Answer</summary>
# See the table: the first three cost little. The last two cost more than 12 times.
# </details>

# %%
alphas, ranks = read_sweep("alpha"), read_sweep("rank")


def rate_loss(alpha, rate):
    """Return the mean loss at r = 8 with this alpha and rate."""
    return np.mean(of(alphas, "loss", part="rate", alpha=alpha, rate=rate))


def alpha_loss(alpha):
    """Return the mean loss at r = 4 and rate 0.004 with this alpha."""
    return np.mean(of(alphas, "loss", part="r", r=4, alpha=alpha))


RATES = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
at_best_rate = [min(rate_loss(alpha, rate) for rate in RATES) for alpha in (4, 16, 64)]
of_rank = [np.mean(of(ranks, "loss", targets="all", rate=1e-2, r=r)) for r in (4, 8, 16, 32)]
small_costs = {
    "dropout 0.1 that nothing needs": losses[4000, 0, 0.1].mean() / losses[4000, 0, 0].mean(),
    "r from 4 to 32 (all seven, rate 0.01)": max(of_rank) / min(of_rank),
    "alpha 16 times too small, with its rate": max(at_best_rate) / min(at_best_rate),
}
large_costs = {
    "alpha 16 times too small, the rate as it was": alpha_loss(4) / alpha_loss(64),
    "the rate 4 times too large (r = 8, alpha = 64)": rate_loss(64, 1.6e-2) / rate_loss(64, 4e-3),
}
costs = small_costs | large_costs
table(["wrong choice", "loss, times"], [[name, f"{cost:.1f}"] for name, cost in costs.items()])

# %%
# Checks
for name, cost in small_costs.items():
    assert cost < 6, f"{name} must cost little, not {cost:.1f} times"
for name, cost in large_costs.items():
    assert cost > 12, f"{name} must cost much, not {cost:.1f} times"

# %% [markdown]
# ## What was shown
#
# A recipe, in this order: correct data. All seven matrices. Any r from 4 to 32, and any fixed
# alpha. A sweep of the rate in steps of two to four, until both ends are worse. Dropout last, and
# only if the training loss falls below the held-out loss.
#
# **What to try.**
#
# 1. `dropout.ROWS[64]`: which p is best for each seed?
# 2. `of_rank`: add r = 64.
# 3. `rate_loss(64, 1.6e-2)`: compare with a rate 4 times too small, `rate_loss(64, 1e-3)`.
#
# **Where to stop with a debugger.** `layers.dropout` (with `MINILORA_PLAIN=1`): which x is zeroed?
#
# **Exercises.** warmup, clipping.
#
# **Further reading.** QLoRA, appendix, on dropout:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Lin et al. 2024, *LoRA Dropout as a Sparsity
# Regularizer*: [arXiv:2404.09610](https://arxiv.org/abs/2404.09610).

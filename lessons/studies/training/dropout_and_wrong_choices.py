# %% [markdown]
# # Dropout, and what a wrong choice costs
#
# **The question.** When does dropout help an adapter? And which wrong setting costs most?
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 8 and the study [What α/r
# does](../lora/what_alpha_over_r_does.py).

# %%
import numpy as np

from minilora.lessons.helpers.common import (
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    claim,
    interval,
    of,
    read_sweep,
    verdict,
)
from minilora.lessons.studies.training import dropout_sweep

# %% [markdown]
# ## Dropout
#
# `lora_dropout` sets inputs of the adapter's branch to zero, at random, while training. It is meant
# to work against memorizing. There are four cases:
#
# - 4,000 rows, of which a run sees 1,600 once, or 64 rows, which it sees 25 times
# - with right answers, or with 30 % of the training rows having another row's answer
#
# The held-out rows are always right. The runs with 64 rows have eight seeds, the others three
# (`dropout_sweep.py`).
#
# **Predict.** A run has 4,000 rows (each seen once) or 64, with right answers, or with 30 % of them
# wrong. In which of the four cases does dropout 0.1 help? Are wrong answers alone a reason to use
# it?

# %%
# Table
sweep = read_sweep("dropout")


def column(name, case, p=0.0):
    """Return a column of the sweep for a case (rows, share of wrong answers), one per seed."""
    n, noise = case
    return np.array(of(sweep, name, rows=n, noise=noise, dropout=p))


ratios, helps = {}, {}
for case in ((64, 0.0), (64, 0.3), (4000, 0.0), (4000, 0.3)):
    n, noise = case
    ratios[case] = np.log(column("loss", case) / column("loss", case, 0.1))
    sentence = f"{n} rows, {noise:.0%} wrong: loss without dropout, over 0.1, > 1 times"
    helps[case] = claim(sentence, ratios[case], times=True)

# %% [markdown]
# **Answer.** With 64 rows and wrong answers: without dropout, the mean loss is 1.1 to 1.5 times as
# high (95 % interval of the mean ratio, on this model of 0.1 million parameters). There is a sign
# of memorizing with 64 rows: the training loss is less than a quarter of the held-out loss.
#
# In the other three cases, no effect is shown. With 64 rows and right answers, dropout 0.1 lowered
# the loss with each of the first three seeds, and with one of the next five. Three seeds were too
# few. With 4,000 rows, a row is seen at most once and cannot be memorized, so wrong answers alone
# are no reason. There, no run with 30 % of wrong answers answers one held-out question, and with
# right answers, each run answers all. Fix the data before you tune dropout.
#
# ## What a wrong choice costs
#
# **Predict.** Put them in order, from the smallest to the largest factor of the loss:
#
# - dropout 0.1 that nothing needs
# - r = 4 in place of r = 64
# - an alpha that is 16 times too small, with a rate that suits it
# - the same alpha, with the rate as it was
# - a rate that is 4 times too large

# %%
# Table
alphas = read_sweep("alpha")


def loss_of(part, r, alpha, rate=4e-3):
    """Return the logarithms of the losses of a cell of the sweep, one per seed."""
    return np.log(of(alphas, "loss", part=part, r=r, alpha=alpha, rate=rate))


best, low_rank = loss_of("rate", 8, 64), loss_of("r", 4, 64)
costs = {
    "dropout 0.1 that nothing needs": -ratios[4000, 0.0],
    "r = 4 in place of 64": low_rank - loss_of("r", 64, 64),
    "alpha 16 times too small, with its rate": loss_of("rate", 8, 4, 1.6e-2) - best,
    "alpha 16 times too small, the rate as it was": loss_of("r", 4, 4) - low_rank,
    "the rate 4 times too large (alpha = 64)": loss_of("rate", 8, 64, 1.6e-2) - best,
}
for name, logs in costs.items():
    claim(f"{name}: a higher loss", logs, times=True)

# %% [markdown]
# **Answer.** The means are in the order of the list. The first two cost less than three times the
# loss, and the last two more than 25 times (95 % intervals of the mean). That the third costs
# anything is not shown with three seeds. The rank, the setting that is most talked about, is one of
# the cheap mistakes.
#
# ## What was shown
#
# On a model of 0.1 million parameters: dropout 0.1 is shown to help with 64 rows and wrong answers,
# and not in the three other cases. At alpha = 64, r = 4 in place of 64 costs less than three times
# the loss, and a rate 4 times too large more than 25 times. So begin with the data, then sweep the
# rate.
#
# **What to try.**
#
# 1. `dropout_sweep.ROWS[64]`: which p is best for each seed?
# 2. `"r = 4 in place of 64"`: compare r = 4 with 16.
# 3. `loss_of("rate", 8, 64, 1.6e-2)`: compare with a rate 4 times too small, 1e-3.
#
# **Where to stop with a debugger.** `layers.dropout` (with `MINILORA_PLAIN=1`): which x is zeroed?
#
# **Exercises.** warmup, clipping.
#
# **Further reading.** QLoRA, appendix, on dropout:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Lin et al. 2024, *LoRA Dropout as a Sparsity
# Regularizer*: [arXiv:2404.09610](https://arxiv.org/abs/2404.09610).

# %%
# Checks
assert list(helps.values()) == [OPEN, HOLDS, OPEN, OPEN], "0.1 must help in the second case only"
ends = np.exp(interval(ratios[64, 0.3])[1:])
assert np.round(ends, 1).tolist() == [1.1, 1.5], "wrong answers: 1.1 to 1.5 times without dropout"
helped = ratios[64, 0.0] > 0
assert helped[:3].all() and helped[3:].sum() == 1, "three of three seeds, then one of five"
for noise, right in ((0.0, 1), (0.3, 0)):
    share = column("train_loss", (64, noise)) / column("loss", (64, noise))
    assert share.max() < 0.25, "64 rows: the training loss must be far below the held-out loss"
    assert set(column("exact_match", (4000, noise))) == {right}, f"{noise:.0%} wrong answers"
dropout_cost, rank_cost, with_rate, without_rate, rate_cost = costs.values()
for cost in (dropout_cost, rank_cost):
    assert verdict(cost, -np.inf, np.log(3)) == HOLDS, "dropout, and r: less than 3 times"
assert verdict(with_rate) == OPEN, "a wrong alpha with its rate: not shown"
for cost in (without_rate, rate_cost):
    assert verdict(cost, np.log(25)) == HOLDS, "a wrong alpha, and a wrong rate: more than 25 times"
assert (np.diff([logs.mean() for logs in costs.values()]) > 0).all(), "the order of the list"
if not QUICK:  # a run of the sweep again
    live = dropout_sweep.run((64, 0.3, 0.1, 0))["loss"]
    assert belongs(live, column("loss", (64, 0.3), 0.1)), f"{live}: not the sweep's"

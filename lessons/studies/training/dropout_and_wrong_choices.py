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
    spread,
    table,
    verdict,
)
from minilora.lessons.studies.training import dropout_sweep as dropout

sweep = read_sweep("dropout")

# %% [markdown]
# ## Dropout
#
# `lora_dropout` sets inputs of the adapter's branch to zero, at random, while training. It is meant
# to work against memorizing. There are four cases:
#
# - 4,000 rows, of which a run sees 1,600 once, or 64 rows, which it sees 25 times
# - with right answers, or with 30 % of the training rows having another row's answer
#
# The held-out rows are always right. With 64 rows, the runs without dropout and with dropout 0.1
# have eight seeds (`dropout_sweep.py`); the others have three.
#
# **Predict.** A run has 4,000 rows (each seen once) or 64, with right answers, or with 30 % of them
# wrong. In which of the four cases does dropout 0.1 help? Are wrong answers alone a reason to use
# it?
#
# <details><summary>Answer</summary>
# With 64 rows and wrong answers. In the other three cases, no effect is shown. (Wrong answers alone
# are a tempting reason. But a row that is seen once cannot be memorized.)
# </details>


# %%
def column(name, rows, noise, p):
    """Return a column of the sweep, one number per seed."""
    return np.array(of(sweep, name, rows=rows, noise=noise, dropout=p))


ratios, verdicts, cells = {}, {}, []
for case in ((64, 0.0), (64, 0.3), (4000, 0.0), (4000, 0.3)):
    n, noise = case
    for p in dropout.ROWS[n]:
        losses = [spread(column(name, *case, p), 3) for name in ("train_loss", "loss")]
        cells.append([f"{n} rows, {noise:.0%} wrong answers", f"{p:g}", *losses])
    ratios[case] = np.log(column("loss", *case, 0.0) / column("loss", *case, 0.1))
    sentence = f"{n} rows, {noise:.0%} wrong: loss without over with dropout 0.1, > 1 times"
    verdicts[case] = claim(sentence, ratios[case], times=True)
table(["data", "dropout", "training loss", "held-out loss"], cells)

# %% [markdown]
# On this model of 0.1 million parameters:
#
# - 64 rows with wrong answers: dropout 0.1 lowers the mean loss (eight seeds). Without it, the loss
#   is 1.1 to 1.5 times as high (95 % interval of the mean ratio).
# - 64 rows with right answers: not shown either way. With the first three seeds, dropout 0.1
#   lowered the loss each time. With the next five, it did once. Three seeds were too few.
# - 4,000 rows: no effect is shown (three seeds). A run sees no row twice.
#
# There is a sign of memorizing: with 64 rows and no dropout, the training loss is less than a
# quarter of the held-out loss.
#
# With 4,000 rows and no dropout, no run with 30 % of wrong answers answers one held-out question
# after its 200 steps. With right answers, each run answers all. Fix the data before you tune
# dropout.

# %%
# Checks
assert verdicts[64, 0.3] == HOLDS, "64 rows, wrong answers: 0.1 must help"
for case in ((64, 0.0), (4000, 0.0), (4000, 0.3)):
    assert verdicts[case] == OPEN, f"{case}: no effect must be shown"
_, *ends = np.exp(interval(ratios[64, 0.3]))
assert np.round(ends, 1).tolist() == [1.1, 1.5], "wrong answers: 1.1 to 1.5 times without dropout"
helped = ratios[64, 0.0] > 0
assert helped[:3].all() and helped[3:].sum() == 1, "three of three seeds, then one of five"
for case in ratios:
    n, noise = case
    share = column("train_loss", *case, 0.0) / column("loss", *case, 0.0)
    if n == 64:
        assert share.max() < 0.25, "64 rows: the training loss must be far below the held-out loss"
    else:
        assert 0.75 < share.min() < share.max() < 1.33, "4,000 rows: the losses must be similar"
        exact = set(column("exact_match", *case, 0.0))
        assert exact == {0 if noise else 1}, f"4,000 rows, {noise:.0%} wrong: {exact}"
if not QUICK:  # two runs of the sweep again: the difference must be one of the seeds' differences
    live = [dropout.train(64, 0.3, p, seed=0).scores["loss"] for p in (0.0, 0.1)]
    gains = column("loss", 64, 0.3, 0.0) - column("loss", 64, 0.3, 0.1)
    assert belongs(live[0] - live[1], gains, 0 * gains), f"{live}: not the sweep's difference"

# %% [markdown]
# ## What a wrong choice costs
#
# Each of these is the loss with a wrong choice, divided by the loss with a right one.
#
# **Predict.** Put them in order, from the smallest to the largest:
#
# - dropout 0.1 that nothing needs
# - r = 4 in place of r = 64
# - an alpha that is 16 times too small, with a rate that suits it
# - the same alpha, with the rate as it was
# - a rate that is 4 times too large
#
# <details><summary>Answer</summary>
# The means are in the order of the list. The first two cost less than three times, and the last two
# more than 25 times (95 % intervals of the mean). That the third costs anything is not shown with
# three seeds. (It is tempting to put the rank higher, because it is the setting that is most talked
# about.)
# </details>

# %%
alphas = read_sweep("alpha")


def loss_of(part, r, alpha, rate):
    """Return the logarithms of the losses of a cell of the sweep, one per seed."""
    return np.log(of(alphas, "loss", part=part, r=r, alpha=alpha, rate=rate))


best, low_rank = loss_of("rate", 8, 64, 4e-3), loss_of("r", 4, 64, 4e-3)
costs = {
    "dropout 0.1 that nothing needs": -ratios[4000, 0.0],
    "r = 4 in place of 64": low_rank - loss_of("r", 64, 64, 4e-3),
    "alpha 16 times too small, with its rate": loss_of("rate", 8, 4, 1.6e-2) - best,
    "alpha 16 times too small, the rate as it was": loss_of("r", 4, 4, 4e-3) - low_rank,
    "the rate 4 times too large (alpha = 64)": loss_of("rate", 8, 64, 1.6e-2) - best,
}
for name, logs in costs.items():
    claim(f"{name}: a higher loss", logs, times=True)

# %%
# Checks
dropout_cost, rank_cost, with_rate, without_rate, rate_cost = costs.values()
assert verdict(dropout_cost, -np.inf, np.log(3)) == HOLDS, "dropout: less than 3 times"
assert verdict(rank_cost, 0, np.log(3)) == HOLDS, "another r: less than 3 times"
assert verdict(with_rate) == OPEN, "a wrong alpha with its rate: not shown"
assert verdict(without_rate, np.log(25)) == HOLDS, "a wrong alpha must cost more than 25 times"
assert verdict(rate_cost, np.log(25)) == HOLDS, "a wrong rate must cost more than 25 times"
assert (np.diff([logs.mean() for logs in costs.values()]) > 0).all(), "the order of the list"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters: with 30 % of wrong answers in 4,000 rows and no dropout, no
# run answers one held-out question. At alpha = 64, r = 4 in place of 64 costs less than three times
# the loss, and a rate 4 times too large more than 25 times. So begin with the data, then sweep the
# rate. Dropout 0.1 is shown to help with 64 rows and wrong answers, and not in the three other
# cases.
#
# **What to try.**
#
# 1. `dropout.ROWS[64]`: which p is best for each seed?
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

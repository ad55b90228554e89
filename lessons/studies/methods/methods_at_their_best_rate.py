# %% [markdown]
# # Methods at their best rate
#
# **The question.** If each method gets its own best learning rate, and each comparison has eight
# seeds, how far apart are LoRA and its variants?
#
# The study [All methods at their best rate](all_methods_at_their_best_rate.py) does the same with
# the other methods.
#
# [Lee et al. 2026](https://arxiv.org/abs/2602.04998) (*Learning Rate Matters: Vanilla LoRA May
# Suffice*) searched the rate for LoRA and for nine variants, on models of several sizes and four
# kinds of tasks. Their result: each method prefers other rates. Each at its own best rate, all
# methods reach a similar score, within 1 to 2 %.
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** the study [Other methods than
# LoRA](the_siblings.py).

# %%
from functools import partial

import numpy as np

from minilora.lessons.helpers.common import (
    HOLDS,
    OPEN,
    QUICK,
    agrees,
    claim,
    curve_of_seeds,
    deviation,
    figure,
    interval,
    read_sweep,
    table,
)
from minilora.lessons.studies.methods import best_rates_sweep as experiment

sweep = read_sweep("best_rates")
FAMILY, ALL = experiment.FAMILY, (*experiment.FAMILY, "full")
RATES = experiment.RATES["lora"]
of_seeds, at_best = (partial(f, sweep) for f in (experiment.of_seeds, experiment.at_best))
chosen = {method: experiment.best_rate(sweep, method) for method in ALL}

# %% [markdown]
# ## One rate for all
#
# `best_rates_sweep.py` trains `micro` on the questions, 200 steps of 8 rows. LoRA, LoRA+, PiSSA
# and DoRA adapt all seven projections at r = 2. (LoRA+ gives B four times the rate of A. LoftQ is
# left out, because the base is not quantized; rsLoRA at one rank is LoRA with another α.) Each rate
# has two seeds. LoRA and LoRA+ have eight more at the two rates of the question below.
#
# **Predict.** You compare LoRA with LoRA+ at a rate of 5e-3, and a friend does it at 2e-2. Do you
# agree on the better method?
#
# <details><summary>Answer</summary>
# No. At 5e-3, LoRA+ has a lower mean loss than LoRA. At 2e-2, LoRA has the lower one. Both
# comparisons are correct, and neither says which method is better. ("Yes" is tempting, because each
# comparison has equal settings. But an equal rate suits one method more than the other.)
# </details>

# %%
at_rate, cells = {}, []
for method in FAMILY:
    of_rates = [of_seeds(experiment.TRIED, "valid_loss", method, rate) for rate in RATES]
    at_rate[method] = np.array(of_rates)  # (rates, seeds)
    cells.append([method, *(f"{loss:.3f}" for loss in at_rate[method].mean(axis=1))])
table(["loss on valid, at a rate of", *(f"{rate:g}" for rate in RATES)], cells)


def log_ratio(higher, lower, rate):
    """Return the logarithms of the ratios of two methods' test losses, of eight other seeds."""
    high, low = (of_seeds(experiment.FRESH, "loss", m, rate) for m in (higher, lower))
    return np.log(high / low)


ratios = log_ratio("lora", "lora+", 5e-3), log_ratio("lora+", "lora", 2e-2)
lora_plus_wins = claim("at 5e-3: LoRA's loss over LoRA+'s, > 1 times", ratios[0], times=True)
lora_wins = claim("at 2e-2: LoRA+'s loss over LoRA's, > 1 times", ratios[1], times=True)

# %%
title = "200 steps, r = 2: mean and range of two seeds"
with figure("rates_of_methods", "learning rate", "loss on valid (nats per token)", title) as axes:
    for line, method in enumerate(FAMILY):
        curve_of_seeds(axes, RATES, at_rate[method], method, line)
    axes.set(xscale="log", yscale="log", xticks=RATES, xticklabels=map("{:g}".format, RATES))
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Loss over the learning rate of LoRA, LoRA+, PiSSA and
# DoRA](../../../figures/rates_of_methods.png)
#
# LoRA+ multiplies the rate of B by four, and its best rate is lower than LoRA's. Compared with LoRA
# at 5e-3, LoRA+ has a lower mean loss here, and at 2e-2 a higher one.

# %%
# Checks
assert lora_plus_wins == HOLDS and lora_wins == HOLDS, "the winner must depend on the rate"
assert chosen["lora+"] < chosen["lora"], "LoRA+ must have the lower best rate"
assert {len(experiment.RATES[m]) for m in ALL} == {4, 5}, "four or five rates"

# %% [markdown]
# ## Each at its best rate, with eight seeds
#
# The rate with the lowest mean loss on the validation split is chosen, of four or five rates, with
# two seeds. The scores below are of the test split and of eight other seeds, which chose nothing.
# Full fine-tuning got its rate in the same way.
#
# **Predict.** Are the four methods within 2 % of exact match? What would you conclude from the
# first seed alone?
#
# <details><summary>Answer</summary>
# This cannot be decided here. The means of the variants lie 5 points or more from LoRA's, and
# single seeds of LoRA+ differ by more: one gets nearly all answers right, and another less than a
# fifth. (One seed is tempting, because it gives a clear order.)
# </details>


# %%
cells = []
for method in ALL:
    loss, exact = at_best(method, "loss"), 100 * at_best(method, "exact_match")
    named = [method, int(at_best(method, "trained")[0]), f"{chosen[method]:g}"]
    ends = f"{exact.min():.0f} to {exact.max():.0f}"
    cells.append([*named, deviation(loss, 4), deviation(exact, 1), ends])
table(["method", "trained", "best rate", "test loss", "exact (%)", "eight seeds"], cells)

# %% [markdown]
# The study [All methods at their best rate](all_methods_at_their_best_rate.py) draws each seed.
#
# ## Which differences are real?
#
# The seeds are paired: equal seeds have the same rows in the same order. Each difference to LoRA
# has a 95 % interval of its mean. "Within 1 to 2 %" holds if the whole interval of exact match lies
# within 2 points, and does not hold if the whole interval lies outside.

# %%
beats, close, points = {}, {}, {}
for method in FAMILY[1:]:
    ratio = np.log(at_best("lora", "loss") / at_best(method, "loss"))
    beats[method] = claim(f"{method}: LoRA's loss over its loss, > 1 times", ratio, times=True)
    points[method] = 100 * (at_best(method, "exact_match") - at_best("lora", "exact_match"))
    close[method] = claim(f"{method} is within 2 points of LoRA", points[method], -2, 2, digits=1)
ratio = np.log(at_best("lora", "loss") / at_best("full", "loss"))
full = claim("LoRA's loss over that of full fine-tuning, > 2 times", ratio, np.log(2), times=True)

# %% [markdown]
# Of a model of 0.1 million parameters:
#
# - **Vanilla LoRA suffices** is not shown either way. No variant is shown to have a lower loss than
#   LoRA, and none is shown to have a higher one.
# - **Within 1 to 2 %** is not shown either way. The intervals of exact match are at least 10 points
#   wide. So these eight seeds cannot show that a difference is less than 2 points.
# - **Full fine-tuning** has a lower mean loss than LoRA, with 17 times as many trained parameters.
#   This holds here.

# %%
# Checks
for method in FAMILY[1:]:
    assert beats[method] == OPEN, f"{method} must not be shown to be better or worse"
    assert close[method] == OPEN, f"{method} must not be shown to be close or far"
    mean, least, most = interval(points[method])
    assert abs(mean) > 5, f"{method}: 5 points or more from LoRA"
    assert most - least > 10, f"{method}: at least 10 points wide"
lora_plus = at_best("lora+", "exact_match")
assert lora_plus.max() > 0.99 and lora_plus.min() < 0.2, "LoRA+: nearly all, and few"
assert full == HOLDS, "full fine-tuning must have the lower loss"
more = at_best("full", "trained")[0] / at_best("lora", "trained")[0]
assert round(more) == 17, "17 times as many parameters"
if not QUICK:  # a run of the sweep again
    again = experiment.run(("lora", chosen["lora"], 2))["loss"]
    seeds = at_best("lora", "loss"), at_best("full", "loss")
    assert agrees(again, *seeds), "the run must agree with the sweep"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters, LoRA+ has a lower mean loss than LoRA at one learning rate
# and a higher one at another. Each at its best rate, eight seeds do not show whether a variant has
# a lower loss than LoRA, nor whether all are within 2 points. They show that full fine-tuning has a
# lower mean loss than LoRA. Tune the rate of both methods on a validation split, use several seeds,
# and print their spread.
#
# **What to try.**
#
# 1. `experiment.best_rate(sweep, method)`: choose by `valid_exact` instead. Does a rate change?
# 2. `ratio` of a variant: use the first three seeds, `ratio[:3]`. Which verdicts change?
# 3. `RANK = 2` in `best_rates_sweep.py`: use 8 and run the sweep. Do the methods come closer?
#
# **Exercises.** dora-norm, adamw.
#
# **Further reading.** LoRA+: [arXiv:2402.12354](https://arxiv.org/abs/2402.12354). PiSSA:
# [arXiv:2404.02948](https://arxiv.org/abs/2404.02948). DoRA:
# [arXiv:2402.09353](https://arxiv.org/abs/2402.09353).

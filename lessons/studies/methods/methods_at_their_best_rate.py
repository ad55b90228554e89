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

from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import HOLDS, OPEN, QUICK, claim, deviation, table
from minilora.lessons.studies.methods import best_rates_sweep as experiment

sweep = common.read_sweep("best_rates")
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

# %%
# Picture
title = "200 steps, r = 2: mean and range of two seeds"
ylabel = "loss on valid (nats per token)"
with common.figure("rates_of_methods", "learning rate", ylabel, title) as axes:
    for line, method in enumerate(FAMILY):
        losses = [of_seeds(experiment.TRIED, "valid_loss", method, rate) for rate in RATES]
        common.curve_of_seeds(axes, RATES, losses, method, line)
    axes.set(xscale="log", yscale="log", xticks=RATES, xticklabels=RATES)
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper left")

# %%
# Table
wins = {}
for rate, worse, better in ((5e-3, "lora", "lora+"), (2e-2, "lora+", "lora")):
    high, low = (of_seeds(experiment.FRESH, "loss", method, rate) for method in (worse, better))
    sentence = f"at {rate}: the loss of {worse} over that of {better}, > 1 times"
    wins[better] = claim(sentence, np.log(high / low), times=True)

# %% [markdown]
# **Answer.** No. At 5e-3, LoRA+ has a lower mean loss than LoRA. At 2e-2, LoRA has the lower one.
# Both comparisons are correct, and neither says which method is better: an equal rate suits one
# method more than the other. LoRA+ multiplies the rate of B by four, and its best rate is lower.
#
# ![Loss over the learning rate of LoRA, LoRA+, PiSSA and
# DoRA](../../../figures/rates_of_methods.png)
#
# ## Each at its best rate, with eight seeds
#
# The rate with the lowest mean loss on the validation split is chosen, with two seeds. The scores
# below are of the test split and of eight other seeds, which chose nothing. Full fine-tuning got
# its rate in the same way.
#
# The seeds are paired: equal seeds have the same rows in the same order. Each difference to LoRA
# has a 95 % interval of its mean. "Within 1 to 2 %" holds if the whole interval of exact match lies
# within 2 points, and does not hold if the whole interval lies outside.
#
# **Predict.** Are the four methods within 2 points of exact match? What would you conclude from one
# seed alone?

# %%
# Table
loss, exact, trained = (
    {method: at_best(method, column) for method in ALL}
    for column in ("loss", "exact_match", "trained")
)
cells = []
for method in ALL:
    scores = deviation(loss[method], 4), common.spread(100 * exact[method], 0)
    cells.append([method, int(trained[method][0]), f"{chosen[method]:g}", *scores])
table(["eight seeds", "trained", "best rate", "test loss", "exact match (%)"], cells)
beats, close, points = {}, {}, {}
for method in FAMILY[1:]:
    ratio = np.log(loss["lora"] / loss[method])
    beats[method] = claim(f"{method}: LoRA's loss over its loss, > 1 times", ratio, times=True)
    points[method] = 100 * (exact[method] - exact["lora"])
    close[method] = claim(f"{method} is within 2 points of LoRA", points[method], -2, 2, digits=1)
ratio = np.log(loss["lora"] / loss["full"])
full = claim("LoRA's loss over that of full fine-tuning, > 2 times", ratio, np.log(2), times=True)

# %% [markdown]
# **Answer.** The seeds do not decide it, and one seed shows nothing: one of LoRA+ gets nearly all
# answers right, and another less than a fifth. Of a model of 0.1 million parameters:
#
# - **Vanilla LoRA suffices** is not shown either way. No variant is shown to have a lower loss than
#   LoRA, and none is shown to have a higher one.
# - **Within 1 to 2 %** is not shown either way. The intervals of exact match are at least 10 points
#   wide. So these eight seeds cannot show that a difference is less than 2 points.
# - **Full fine-tuning** has a lower mean loss than LoRA, with 17 times as many trained parameters.
#   This holds here.
#
# The study [All methods at their best rate](all_methods_at_their_best_rate.py) draws each seed.
#
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

# %%
# Checks
assert wins == {"lora+": HOLDS, "lora": HOLDS}, "the winner must depend on the rate"
assert chosen["lora+"] < chosen["lora"], "LoRA+ must have the lower best rate"
assert set(beats.values()) == {OPEN}, "no variant must be shown to be better or worse"
assert set(close.values()) == {OPEN}, "no variant must be shown to be close or far"
for method, differences in points.items():
    _, least, most = common.interval(differences)
    assert most - least > 10, f"{method}: at least 10 points wide"
assert exact["lora+"].max() > 0.99 and exact["lora+"].min() < 0.2, "LoRA+: nearly all, and few"
assert full == HOLDS, "full fine-tuning must have the lower loss"
assert round(trained["full"][0] / trained["lora"][0]) == 17, "17 times as many parameters"
if not QUICK:  # a run of the sweep again
    again = experiment.run(("lora", chosen["lora"], 2))["loss"]
    assert common.agrees(again, loss["lora"], loss["full"]), "the run must agree with the sweep"

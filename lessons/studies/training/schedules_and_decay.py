# %% [markdown]
# # Schedules and weight decay
#
# **The question.** What do a falling learning rate and weight decay prevent in a short run?
#
# **Continues:** [lesson 7](../../07_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 7. `case`, `show` and
# `again` are those of the study [Accumulation and the batch](accumulation.py): `micro`, 0.1 million
# parameters, five seeds.

# %%
import math
from dataclasses import replace

import numpy as np

from minilora import TrainConfig, optim
from minilora.evaluation import plot
from minilora.lessons.helpers.common import QUICK, figure, table
from minilora.lessons.studies.training.optimization_sweep import CASES, USUAL, again, case, show

defaults = TrainConfig(iters=200, learning_rate=4e-3)


def sum_of_rates(settings):
    """Return the sum of the learning rates of all steps."""
    return sum(optim.get_lr(step, settings) for step in range(settings.iters))


# %% [markdown]
# ## Schedules
#
# ![The learning rate over 100 steps: linear warm-up, then constant, linear to zero, or half a
# cosine.](../../../figures/drawings/schedules.svg)
#
# **Predict.** Which gives the lowest held-out loss after 200 steps: a constant rate, a rate that
# falls linearly to zero, or one that falls to zero along a cosine?
#
# <details><summary>Answer</summary>
# The constant rate, at our rate. (A falling rate is tempting, because nearly every recipe has one.)
# At five times the rate, a constant rate has more than five times the loss of the cosine.
# </details>

# %%
show(USUAL, "linear to zero", "constant rate", "constant, half the rate")
show("five times the rate", "five times, constant")

# %% [markdown]
# **Not missed at our rate.** A constant rate has a lower loss with every seed. At half the height,
# where the rates add up to about as much as the cosine's, it has one with four of five seeds, and
# nearly the same loss with the fifth. (A reason may be that the run is still learning when it ends.
# This is not tested.) At five times the rate, a constant rate leaves about every second answer
# wrong, on average over the seeds, and the cosine has all of them right.

# %%
# Checks
assert case("constant rate").max() < 0.75 * case(USUAL).min(), "a constant rate must be better"
assert case("constant rate").max() < case("linear to zero").min(), "than a linear fall as well"
half_rate = replace(defaults, learning_rate=2e-3, lr_schedule="constant")
total = sum_of_rates(defaults)
assert abs(sum_of_rates(half_rate) / total - 1) < 0.05, "half the height: as much in all"
ratio = case("constant, half the rate") / case(USUAL)
assert (ratio < 0.75).sum() == 4, "at half the rate, lower with four of five seeds"
assert abs(ratio.max() - 1) < 0.02, "and equal with the fifth"
fast = case("five times, constant").min() / case("five times the rate").max()
assert fast > 5, "at five times the rate, it must be far worse"
assert case("five times the rate", "exact_match").min() == 1, "there, the cosine is right"
assert 0.4 < case("five times, constant", "exact_match").mean() < 0.6, "a constant rate: half"

# %% [markdown]
# ## Weight decay
#
# Decoupled decay (Loshchilov and Hutter 2019, Alg. 2) multiplies a parameter by 1 − η·λ at each
# step, whatever its gradient is. Over a run, the factor is
#
# $$\prod_t (1 - \eta_t \lambda) \approx e^{-\lambda \sum_t \eta_t}$$
#
# **Predict.** How much of `lora_A` does decay alone remove in 200 steps with λ = 0.1?
#
# <details><summary>Answer</summary>
# Less than 5 %: the sum of the rates is 0.4. (A tenth is tempting. But λ = 0.1 is multiplied by the
# rate of each step.)
# </details>

# %%
kept, predicted, cells = {}, {}, []
for decay in (0.0, 0.1, 10.0):  # what zero gradients and decay leave of a parameter of 1
    settings = replace(defaults, weight_decay=decay)
    params, zero = {"w": np.ones((1, 1))}, {"w": np.zeros((1, 1))}
    state = optim.adamw_init(params)
    for step in range(settings.iters):
        rate = optim.get_lr(step, settings)
        params, state = optim.adamw(params, zero, state, {"w": rate}, settings)
    kept[decay], predicted[decay] = params["w"].item(), math.exp(-decay * total)
    cells.append([f"{decay:g}", f"{kept[decay]:.4f}", f"{predicted[decay]:.4f}"])
print(f"the sum of the rates is {total:.3f}")
table(["weight decay", "is left", "predicted"], cells)
show(USUAL, "weight decay 0.1", "weight decay 10")

# %% [markdown]
# λ = 0.1 changes the held-out loss by less than half of the seeds' scatter (one standard
# deviation). λ = 10 does pull: the held-out loss is more than three times as high, and the loss on
# the base's notes is lower, with every seed. So here, a large decay limits learning and forgetting.
# (Whether it limits overfitting is not tested here.)

# %%
# Checks
for decay, left in kept.items():
    assert abs(left / predicted[decay] - 1) < 0.15, f"decay {decay}: {left}, not {predicted[decay]}"
assert kept[0.1] > 0.95, "λ = 0.1 must leave nearly everything"
change = np.abs(case("weight decay 0.1") - case(USUAL))
assert change.max() < case(USUAL).std(ddof=1) / 2, "and change less than the seeds scatter"
assert case("weight decay 10").min() > 3 * case(USUAL).max(), "λ = 10 must cost quality"
notes = case("weight decay 10", "notes").max()
assert notes < 0.8 * case(USUAL, "notes").min(), "but keep more of the base's notes"
if not QUICK:
    again("constant rate", USUAL)
    again("five times, constant", "five times the rate")
    again("weight decay 10", USUAL)

# %% [markdown]
# ## Everything at a glance
#
# One dot per seed, `micro`. Each case differs from "all as it is" in what its name says. The
# studies [Warm-up](warm_up.py) and [Why clipping helps](why_clipping_helps.py) discuss the others.

# %%
xlabel, title = "held-out loss (nats per token)", "One thing changed at a time, five seeds"
with figure("optimization", xlabel, "", title, width=7, height=5) as axes:
    for name in sorted(CASES, key=lambda name: -case(name).mean()):
        axes.plot(case(name), [name] * 5, "o-", color=plot.LINES[0]["color"], markersize=4)
    axes.set(xscale="log")

# %% [markdown]
# ![Held-out loss of each change](../../../figures/optimization.png)
#
# ## What was shown
#
# In short LoRA runs of `micro` at a rate of 4e-3, a constant rate has a lower loss than a falling
# one, and a weight decay of 0.1 hardly changes the loss. Without warm-up, four of five seeds have a
# lower loss (the study [Warm-up](warm_up.py)), and without clipping, all have a higher one (the
# study [Why clipping helps](why_clipping_helps.py)). Warm-up lowers the loss at ten times the rate,
# and a falling rate at five times. A long run or a large model needs a new test.
#
# **What to try.**
#
# 1. `iters=200` in `defaults`: use 20,000. How much is left with λ = 0.1?
# 2. `optimization_sweep.py`: add a case with a linear warm-up over half of the run.
#
# **Where to stop with a debugger.** `optim.get_lr`.
#
# **Exercises.** warmup, adamw.
#
# **Further reading.** Loshchilov and Hutter 2017, *SGDR*, on cosine schedules:
# [arXiv:1608.03983](https://arxiv.org/abs/1608.03983), and 2019, on weight decay:
# [arXiv:1711.05101](https://arxiv.org/abs/1711.05101).

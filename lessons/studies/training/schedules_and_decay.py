# %% [markdown]
# # Schedules and weight decay
#
# **The question.** What do a falling learning rate and weight decay prevent in a short run?
#
# As in the study [Accumulation and the batch](accumulation.py), `case` reads a case of the sweep
# (`micro`, 0.1 million parameters, five seeds), and `show` prints a table.
#
# **Continues:** [lesson 5](../../05_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** the study [Accumulation and the
# batch](accumulation.py).

# %%
import math
from dataclasses import replace

import numpy as np

from lessons.helpers.common import QUICK, agrees, figure, table
from lessons.studies.training.optimization_sweep import case, show, train
from minilora import TrainConfig, optim
from minilora.evaluation import plot

USUAL = "all as it is"  # 200 steps of 16 rows at 4e-3, a cosine to zero, no decay
defaults = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)


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
# The constant rate, at our rate. At five times the rate, its loss is more than five times that of
# the cosine.
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
sums = [sum(optim.get_lr(t, how) for t in range(how.iters)) for how in (half_rate, defaults)]
assert math.isclose(*sums, rel_tol=0.05), "at half the height, the rates must add up to as much"
half, usual = case("constant, half the rate"), case(USUAL)
assert (half < 0.75 * usual).sum() == 4, "at half the rate, lower with four of five seeds"
assert abs((half / usual).max() - 1) < 0.02, "and equal with the fifth"
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
# Less than 5 %: the sum of the rates is below 0.6.
# </details>

# %%
sum_of_rates = sum(optim.get_lr(t, defaults) for t in range(defaults.iters))


def kept_by_decay(decay):
    """Return what a run with zero gradients leaves of a parameter of 1."""
    settings = replace(defaults, weight_decay=decay)
    params, zero = {"lora_A": np.ones((1, 1))}, {"lora_A": np.zeros((1, 1))}
    state = optim.adamw_init(params)
    for t in range(defaults.iters):
        rate = optim.get_lr(t, settings)
        params, state = optim.adamw(params, zero, state, {"lora_A": rate}, settings)
    return float(params["lora_A"][0, 0])


kept, rows = {}, []
for decay in (0.0, 0.1, 10.0):
    kept[decay], predicted = kept_by_decay(decay), math.exp(-decay * sum_of_rates)
    rows.append([f"{decay:g}", f"{kept[decay]:.4f}", f"{predicted:.4f}"])
print(f"the sum of the rates is {sum_of_rates:.3f}")
table(["weight decay", "is left", "predicted"], rows)
show(USUAL, "weight decay 0.1", "weight decay 10")

# %% [markdown]
# λ = 0.1 changes the held-out loss by less than half of the seeds' scatter (one standard
# deviation). λ = 10 does pull: the held-out loss is more than three times as high, and the loss on
# the base's notes is lower, with every seed. So here, a large decay limits learning and forgetting.
# (Whether it limits overfitting is not tested here.)

# %%
# Checks
for decay, left in kept.items():
    predicted = math.exp(-decay * sum_of_rates)
    assert math.isclose(left, predicted, rel_tol=0.15), f"decay {decay}: {left}, not {predicted}"
assert kept[0.1] > 0.95, "λ = 0.1 must leave nearly everything"
change = np.abs(case("weight decay 0.1") - usual)
assert change.max() < usual.std(ddof=1) / 2, "and change less than the seeds scatter"
assert case("weight decay 10").min() > 3 * case(USUAL).max(), "λ = 10 must cost quality"
notes, notes_usual = case("weight decay 10", "notes"), case(USUAL, "notes")
assert notes.max() < 0.8 * notes_usual.min(), "but keep more of the base's notes"
if not QUICK:  # three runs of the sweep again, each told apart from another case
    for name, other in (
        ("constant rate", USUAL),
        ("five times, constant", "five times the rate"),
        ("weight decay 10", USUAL),
    ):
        again = train(name).scores["loss"]
        assert agrees(again, case(name), case(other)), f"{name}: {again}, not {case(name)}"

# %% [markdown]
# ## Everything at a glance
#
# One dot per seed, `micro`. Each case differs from "all as it is" in what its name says (the study
# [Warm-up](warm_up.py) and 9c discuss the others).

# %%
CASES = [
    "clipping at 0.1",
    "constant rate",
    USUAL,
    "no warm-up",
    "weight decay 0.1",
    "bad rows",
    "no clipping, beta2 0.95",
    "no clipping",
    "weight decay 10",
    "five times the rate",
    "five times, constant",
    "ten times the rate",
    "ten times, no clipping",
    "ten times, no warm-up",
]
title = "One thing changed at a time, five seeds"
with figure("optimization", "held-out loss (nats per target token)", "", title) as axes:
    for y, name in enumerate(reversed(CASES)):
        axes.plot(
            case(name),
            [y] * len(case(name)),
            color=plot.LINES[0]["color"],
            marker="o",
            markersize=4,
        )
    axes.set(xscale="log", yticks=range(len(CASES)))
    axes.set_yticklabels(reversed(CASES), fontsize=8)

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
# 2. `show(USUAL, ...)`: add the case "64 rows, 50 steps" of the study [Accumulation and the batch](accumulation.py). Where is it?
# 3. `optimization_sweep.py`: add a case with a linear warm-up over half of the run.
#
# **Where to stop with a debugger.** `optim.get_lr`.
#
# **Exercises.** warmup, adamw.
#
# **Further reading.** Loshchilov and Hutter 2017, *SGDR*, on cosine schedules:
# [arXiv:1608.03983](https://arxiv.org/abs/1608.03983), and 2019, on weight decay:
# [arXiv:1711.05101](https://arxiv.org/abs/1711.05101).

# %% [markdown]
# # Warm-up
#
# **The question.** What does a warm-up of the learning rate prevent?
#
# **Continues:** [lesson 7](../../07_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** lesson 7. `case`, `show` and
# `train` are those of the study [Accumulation and the batch](accumulation.py): `micro`, 0.1 million
# parameters, five seeds.

# %%
from minilora.lessons.helpers.common import QUICK
from minilora.lessons.studies.training.optimization_sweep import USUAL, case, is_of, show, train

# %% [markdown]
# ## Runs without warm-up
#
# At the first step, Adam's corrected moments are g and g², so (Kingma and Ba 2015, Alg. 1)
#
# $$\Delta\theta = -\eta\,\frac{g}{|g| + \varepsilon} \approx -\eta\,\mathrm{sign}(g)$$
#
# The step has nearly full length in every entry where |g| is far above ε (lesson 7). Its signs are
# those of one batch's gradient. Warm-up makes the first steps short.
#
# **Predict.** Is the held-out loss higher without warm-up, at our rate and at ten times that?

# %%
# Picture
FAST, COLD = "ten times the rate", "ten times, no warm-up"
show(USUAL, "no warm-up", FAST, COLD)

# %% [markdown]
# **Answer.** At our rate, it is lower without warm-up with four of five seeds. At ten times the
# rate, it is higher with every seed, and on the way the loss rises above 5, which is more than at
# the start. With warm-up, it does not.
#
# ## What was shown
#
# At ten times our rate, runs of `micro` (0.1 million parameters) end with a higher loss without
# warm-up. At ours, four of five end with a lower one.
#
# **What to try.**
#
# 1. `show(USUAL, ...)`: add "five times the rate". Where is it?
# 2. `optimization_sweep.py`: add a case with a warm-up of a single step. Is it enough at ten times
#    the rate?
#
# **Where to stop with a debugger.** `optim.adamw`, its inner function `step`: `m / denominator` at
# step 1 is ±1.
#
# **Exercises.** warmup, adamw.
#
# **Further reading.** Kingma and Ba 2015: [arXiv:1412.6980](https://arxiv.org/abs/1412.6980). Goyal
# et al. 2017, on warm-up: [arXiv:1706.02677](https://arxiv.org/abs/1706.02677). Liu et al. 2019,
# *On the Variance of the Adaptive Learning Rate*:
# [arXiv:1908.03265](https://arxiv.org/abs/1908.03265).

# %%
# Checks
assert (case("no warm-up") < case(USUAL)).sum() == 4, "without: lower with four of five seeds"
assert case(COLD).min() > 1.2 * case(FAST).max(), "at ten times the rate, warm-up must help"
worst = case(FAST, "worst").max()
assert case(COLD, "worst").min() > 5 > worst, "and without it the loss must rise above the start"
if not QUICK:  # a run of the sweep again
    cold = train(COLD)
    assert is_of(cold, COLD, FAST), "its loss must be that of the sweep"
    assert max(row["loss"] for row in cold.history) > 5 > cold.history[0]["loss"], "it must rise"

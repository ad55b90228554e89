# %% [markdown]
# # Warm-up
#
# **The question.** What does a warm-up of the learning rate prevent?
#
# **Continues:** [lesson 7](../../07_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** lesson 7. `case`, `show` and
# `again` are those of the study [Accumulation and the batch](accumulation.py): `micro`, 0.1 million
# parameters, five seeds.

# %%
from minilora.lessons.helpers.common import QUICK
from minilora.lessons.studies.training.optimization_sweep import USUAL, again, case, show

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
#
# <details><summary>Answer</summary>
# At our rate, it is lower with four of five seeds. At ten times the rate, it is higher. (Higher at
# both is tempting, because nearly every recipe has a warm-up.)
# </details>

# %%
FAST, COLD = "ten times the rate", "ten times, no warm-up"
show(USUAL, "no warm-up", FAST, COLD)

# %% [markdown]
# **Not missed here.** At our rate, the run without warm-up has a lower loss with four of five
# seeds, and with the fifth a loss that is about a tenth higher. No step has a loss above 4.5. At
# ten times the rate, warm-up is missed: without it, the loss rises above 5 on the way, and ends
# higher with every seed.

# %%
# Checks
ratio = case("no warm-up") / case(USUAL)
assert case("no warm-up", "worst").max() < 4.5, "the worst step, near the start (runs begin at 4)"
assert (ratio < 1).sum() == 4, "without warm-up, a lower loss with four of five seeds"
assert 1.05 < ratio.max() < 1.15, "and with the fifth, a loss that is a tenth higher"
assert case(COLD).min() > 1.2 * case(FAST).max(), "at ten times the rate, warm-up must help"
worst = case(FAST, "worst").max()
assert case(COLD, "worst").min() > 5 > worst, "and without it the loss must rise above the start"
if not QUICK:
    for name, other in ((FAST, COLD), (COLD, FAST)):
        steps = [row["loss"] for row in again(name, other).history]
        assert (max(steps) > 5) == (name == COLD), f"{name}: the worst step is {max(steps)}"
        assert 3.5 < steps[0] < 4.5, f"the first loss is that of the base: {steps[0]}"

# %% [markdown]
# ## What was shown
#
# At ten times our rate, runs of `micro` (0.1 million parameters) end with a higher loss without
# warm-up. At ours, four of five end with a lower one.
#
# **What to try.**
#
# 1. `show(USUAL, ...)`: add "five times the rate". Is its worst step above the start?
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

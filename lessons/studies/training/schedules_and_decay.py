# %% [markdown]
# # Schedules and weight decay
#
# **The question.** What do a falling learning rate and weight decay prevent in a short run?
#
# **Continues:** [lesson 7](../../07_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 7. `case`, `show` and
# `train` are those of the study [Accumulation and the batch](accumulation.py): `micro`, 0.1 million
# parameters, five seeds.

# %%
import numpy as np

from minilora import TrainConfig, optim
from minilora.lessons.helpers.common import QUICK
from minilora.lessons.studies.training.optimization_sweep import USUAL, case, is_of, show, train

# %% [markdown]
# ## Schedules
#
# ![The learning rate over 100 steps: linear warm-up, then constant, linear to zero, or half a
# cosine.](../../../figures/drawings/schedules.svg)
#
# **Predict.** Which gives the lowest held-out loss after 200 steps: a constant rate, a rate that
# falls linearly to zero, or one that falls to zero along a cosine? And at five times the rate?

# %%
# Picture
CONSTANT, HALF = "constant rate", "constant, half the rate"
FAST, FAST_CONSTANT = "five times the rate", "five times, constant"
show(USUAL, "linear to zero", CONSTANT, HALF, FAST, FAST_CONSTANT)

# %% [markdown]
# **Answer.** At our rate, the constant one, with every seed ("all as it is" has the cosine). Does
# it only sum up to more? At half the height, the rates add up to about as much as the cosine's, and
# the loss is lower with four of five seeds. (A reason may be that the run is still learning when it
# ends. This is not tested.)
#
# At five times the rate, a constant rate has more than five times the loss of the cosine. It leaves
# about every second answer wrong, on average over the seeds, and the cosine has all of them right.
#
# ## Weight decay
#
# Decoupled decay (Loshchilov and Hutter 2019, Alg. 2) multiplies a parameter by 1 − η·λ at each
# step, whatever its gradient is. Over a run, the factor is
#
# $$\prod_t (1 - \eta_t \lambda) \approx e^{-\lambda \sum_t \eta_t}$$
#
# **Predict.** The rates of 200 steps add up to 0.4. How much of `lora_A` does decay alone remove
# with λ = 0.1, and with λ = 10?


# %%
def rates(**settings):
    """Return the learning rates of the 200 steps of a run."""
    config = TrainConfig(iters=200, **settings)
    return np.array([optim.get_lr(step, config) for step in range(200)])


cosine = rates(learning_rate=4e-3)
left = {decay: np.prod(1 - decay * cosine) for decay in (0.1, 10)}
for decay, share in left.items():
    print(f"λ = {decay}: {share:.4f} is left, the formula has {np.exp(-decay * cosine.sum()):.4f}")

# %%
# Picture
show(USUAL, "weight decay 0.1", "weight decay 10")

# %% [markdown]
# **Answer.** 4 %, because λ is multiplied by the rate of each step, and all but 2 %. λ = 0.1
# changes the held-out loss by less than half of the seeds' scatter (one standard deviation). With
# λ = 10, the held-out loss is more than three times as high, and the loss on the base's notes is
# lower, with every seed. So here, a large decay limits learning and forgetting. (Whether it limits
# overfitting is not tested here.)
#
# ## What was shown
#
# In short LoRA runs of `micro` (0.1 million parameters) at a rate of 4e-3, a constant rate has a
# lower loss than a falling one, and a weight decay of 0.1 hardly changes the loss. At five times
# the rate, a falling rate is far better. A long run or a large model needs a new test.
#
# **What to try.**
#
# 1. `iters=200` and `range(200)`: use 20,000. How much is left with λ = 0.1?
# 2. `optimization_sweep.py`: add a case with a linear warm-up over half of the run.
#
# **Where to stop with a debugger.** `optim.get_lr`.
#
# **Exercises.** warmup, adamw.
#
# **Further reading.** Loshchilov and Hutter 2017, *SGDR*, on cosine schedules:
# [arXiv:1608.03983](https://arxiv.org/abs/1608.03983), and 2019, on weight decay:
# [arXiv:1711.05101](https://arxiv.org/abs/1711.05101).

# %%
# Checks
assert case(CONSTANT).max() < 0.75 * case(USUAL).min(), "a constant rate must be better"
assert case(CONSTANT).max() < case("linear to zero").min(), "than a linear fall as well"
half = rates(learning_rate=2e-3, lr_schedule="constant")
assert abs(half.sum() / cosine.sum() - 1) < 0.05, "half the height: as much in all"
assert (case(HALF) < 0.75 * case(USUAL)).sum() == 4, "and lower with four of five seeds"
assert case(FAST_CONSTANT).min() > 5 * case(FAST).max(), "at five times the rate: far worse"
assert case(FAST, "exact_match").min() == 1, "there, the cosine is right"
assert 0.4 < case(FAST_CONSTANT, "exact_match").mean() < 0.6, "and a constant rate half of it"
assert abs(cosine.sum() - 0.4) < 0.01, "the sum of the rates"
assert abs(left[0.1] - 0.96) < 0.005 and abs(left[10] - 0.02) < 0.005, "what decay alone leaves"
change = np.abs(case("weight decay 0.1") - case(USUAL))
assert change.max() < case(USUAL).std(ddof=1) / 2, "λ = 0.1 must change less than the seeds scatter"
PULLED = "weight decay 10"
assert case(PULLED).min() > 3 * case(USUAL).max(), "λ = 10 must cost quality"
assert case(PULLED, "notes").max() < 0.8 * case(USUAL, "notes").min(), "but forget less"
assert QUICK or is_of(train(FAST_CONSTANT), FAST_CONSTANT, FAST), "a run of the sweep again"

# %% [markdown]
# # A or B
#
# **The question.** Is it enough to train one of LoRA's two factors? Which one is better, and why
# does the answer depend on the learning rate?
#
# Training B alone can save memory. The gradient of B needs Ax, r numbers per token. The gradient of
# A needs x, as many numbers per token as the projection has inputs. Two claims:
#
# - [Zhang et al. 2023](https://arxiv.org/abs/2308.03303) (*LoRA-FA*): with A frozen, the scores are
#   close to those of LoRA.
# - [Zhu et al. 2024](https://arxiv.org/abs/2402.16842): training B is more effective than training
#   A, and a random frozen A does nearly as well as a trained one.
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 10 seconds to run, a quarter of an hour to read. **You need:** the studies [Methods at
# their best rate](../methods/methods_at_their_best_rate.py) and [All methods at their best
# rate](../methods/all_methods_at_their_best_rate.py).

# %%
import matplotlib.pyplot as plt
import numpy as np

from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import QUICK, best_rates, claim, deviation, short
from minilora.lessons.studies.lora import curvature_sweep as curvature
from minilora.lessons.studies.lora import one_factor_sweep as one_factor
from minilora.lessons.studies.methods import best_rates_sweep as experiment

results = common.read_sweep("one_factor") + common.read_sweep("best_rates")
A, B = (one_factor.name_of(factor, 2) for factor in "AB")
A4, B4 = (one_factor.name_of(factor, 4) for factor in "AB")


def fresh(method, rate, column="loss"):
    """Return a column of the runs at a rate, of the eight seeds that did not choose it."""
    return experiment.of_seeds(results, experiment.FRESH, column, method, rate)


def log_ratio(higher, lower, rates):
    """Return the logarithms of the ratios of the test losses of two methods at their rates."""
    return np.log(fresh(higher, rates[higher]) / fresh(lower, rates[lower]))


# %% [markdown]
# ## One rate for both
#
# `one_factor_sweep.py` trains `micro` on the questions, with the settings of the sweep
# `best_rates`: all seven projections, r = 2, 200 steps of 8 rows. The trained factor starts at
# zero, so ΔW = 0. The frozen factor is random: A as in LoRA, from U(−1/√in, 1/√in), and B by the
# same rule, with its r inputs. The frozen factor is stored in the base, which has no gradient.
#
# **Predict.** You compare A alone with B alone at a rate of 0.005, and a friend does it at 0.02. Do
# you agree on the better factor?

# %%
# Picture
SHARED = (5e-3, 1e-2, 2e-2, 5e-2)
curves = {method: one_factor.valid_losses(results, method, SHARED) for method in (A, B, "lora")}
common.show_losses(curves, SHARED, "learning rate", "means and ranges of two seeds")
low, high = one_factor.ONE_RATE
a_wins = log_ratio(B, A, {A: low, B: low})
at_low = claim(f"at {low}: loss of B alone over A alone, > 1 times", a_wins, times=True)
b_wins = log_ratio(A, B, {A: high, B: high})
at_high = claim(f"at {high}: loss of A alone over B alone, > 1 times", b_wins, times=True)

# %% [markdown]
# **Answer.** No. At 0.005, A alone has the lower loss with each of eight seeds. At 0.02, B alone
# has the lower mean loss. A and B have the same settings in each comparison, but not the same best
# rate.
#
# ## Each at its own rate
#
# Each method gets the rate with the lowest mean loss on the validation split, with two seeds. The
# scores are of the test split and of eight other seeds. With r = 4, one factor has about as many
# parameters as LoRA with r = 2.
#
# **Predict.** At its best rate, does B alone come close to LoRA?

# %%
# Table
RATES = dict(experiment.RATES)
for factor, rates in one_factor.RATES.items():
    for r in one_factor.RANKS:
        RATES[one_factor.name_of(factor, r)] = rates
best, chosen = {}, {}  # best: by a parabola; chosen: one of the rates
for method, rates in RATES.items():
    losses = one_factor.valid_losses(results, method, rates)
    chosen[method], best[method] = best_rates(rates, losses)
cells = []
for method in ("lora", A, B, A4, B4):
    trained = int(fresh(method, chosen[method], "trained")[0])
    loss = deviation(fresh(method, chosen[method]))
    cells.append([method, trained, f"{chosen[method]:g}", loss])
common.table(["method", "trained", "best rate", "test loss"], cells)
at_two = claim("r = 2: A alone over B alone, > 1 times", log_ratio(A, B, chosen), times=True)
at_four = claim("r = 4: A alone over B alone, > 1 times", log_ratio(A4, B4, chosen), times=True)
ratio, below = log_ratio(B4, "lora", chosen), np.log(1.5)
close = claim("r = 4: B alone over LoRA, < 1.5 times", ratio, -np.inf, below, times=True)

# %% [markdown]
# **Answer.** Not here. On `micro` (0.1 million parameters):
#
# - **B is more effective than A:** holds here with r = 2, each at its own best rate. With r = 4 it
#   is not shown either way.
# - **B alone is close to LoRA:** does not hold here. With about as many parameters, its loss is
#   more than twice LoRA's. The papers train RoBERTa and LLaMA. To test their claim, one would have
#   to repeat their runs there, each method at its own rate.
#
# ## The scale of the frozen factor is a rate
#
# Why does A alone need a lower rate? AdamW changes each element of the trained factor by about the
# rate, at each step. The change of ΔW is this times the frozen factor.
#
# The curvature of the loss shows the scale before any step. ΔW = BA is linear in B. So with 4A, the
# Hessian with respect to B is 16 times as large.
#
# **Predict.** B is trained at a rate of 0.02. Then you multiply the frozen A by 4. Which rate of B
# gives the same run?

# %%
settings = {"iters": short(20, 3), "max_grad_norm": 1e9}  # clipping would see the larger gradient
run = one_factor.train("B", 2, 2e-2, 0, **settings)
same = one_factor.train("B", 2, 5e-3, 0, scale=4, adam_eps=4e-8, **settings)
for name, done in {"A at 0.02": run, "4A at 0.005": same}.items():
    print(f"loss with {name}: {done.scores['loss']:.6f}")
sharp = []
for scale in (1, 4):
    adapters, model = one_factor.start("B", 2, 0, scale)
    sharp.append(curvature.curvature(adapters, model, steps=short(8, 4), eps=1e-3 / scale))
print(f"largest curvature: {sharp[0]:.2f} with A, {sharp[1]:.1f} with 4A")

# %% [markdown]
# **Answer.** A quarter, 0.005. Then B is a quarter of the other run's B at each step, and BA is the
# same. So a comparison of A and B at one rate also compares the scales of the frozen factors.
#
# ## The largest curvature and the best rate
#
# Gradient descent on a loss with the largest curvature λ diverges at a rate of more than 2/λ. [Lee
# et al. 2026](https://arxiv.org/abs/2602.04998) compute λ at the start of LoRA variants: the best
# rate is lower where λ is higher. (In their [code's
# README](https://github.com/yuang-lee/lr-matters-lora), for Qwen3-0.6B, PiSSA has about 10 times
# the λ of LoRA and a tenth of its rate.)
#
# `largest_curvature` computes λ by power iteration: it multiplies a random vector by the Hessian
# again and again, and keeps all vectors (Lanczos's method). A product Hv is the difference of two
# gradients, at θ + εv and θ − εv. For LoRA+, B is measured in units of its rate.
#
# **Predict.** AdamW's steps do not depend on the size of the gradient. If only the scale of a
# method differs, as with 4A, λ is 16 times as large and the best rate a quarter. So to which power
# of λ would the best rate be proportional?

# %%
# Picture
sharpness = common.read_sweep("curvature")
lam = {m: np.array(common.of(sharpness, "curvature", method=m)) for m in curvature.METHODS}
x = np.log([seeds.mean() for seeds in lam.values()])
y = np.log([best[method] for method in lam])
slope, offset = np.polyfit(x, y, 1)
_, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.loglog(np.exp(x), np.exp(offset + slope * x), color="0.7")
axes.loglog(np.exp(x), np.exp(y), "o")
for method, at in zip(lam, np.exp([x, y]).T):
    left = method in ("head", "p-tuning", "lora", "lora+")  # so that no two names overlap
    side = {"ha": "right", "va": "top"} if left else {"ha": "left", "va": "bottom"}
    axes.annotate(f" {method.removesuffix(', r = 2')} ", at, fontsize=8, **side)
axes.set(xlabel="largest curvature λ at the start, mean of 3 seeds", ylabel="best learning rate")
axes.set_title(f"a point per method; the line is proportional to λ to the power {slope:.2f}")
plt.show()
roots, times = np.sqrt(lam[A] / lam[B]), best[B] / best[A]
print(f"A alone, B alone: √(ratio of λ) {roots.mean():.1f}, ratio of the best rates {times:.1f}")

# %% [markdown]
# **Answer.** −½. The fit over all 16 methods has a power between −0.4 and −0.5. (Not −1: the limit
# 2/λ is one of gradient descent, and these runs use AdamW.) On `micro` (0.1 million parameters):
#
# - **The best rate is lower where the curvature is higher:** holds here, over all 16 methods. The
#   paper computes λ per projection, for LoRA variants on models of 0.6 billion parameters and more.
#   This result agrees with its claim.
# - **A alone against B alone:** the square root of the ratio of their λ is 5.9, and the best rate
#   of B alone is 5 times as high. So most of the difference between the two factors at one rate is
#   one of scale.
# - **λ alone does not decide.** Prompts have a higher λ than LoRA, and five times its best rate. So
#   use λ for a first guess, and tune.
#
# ## What was shown
#
# On a model of 0.1 million parameters, with one rate for both, A alone is better than B alone at
# 0.005 and worse at 0.02. Each at its own rate, B alone is better at r = 2, and LoRA is better than
# B alone with as many parameters. The scale of the frozen factor acts as a learning rate, and the
# curvature at the start shows it. Over 16 methods, the best rate falls with the curvature.
#
# **What to try.**
#
# 1. `one_factor.start`: draw the frozen B from U(−1/√out, 1/√out). What does the scale of λ predict
#    for the best rate of A?
# 2. `curvature.curvature`: measure λ after 20 and after 200 steps. Does it rise or fall?
# 3. `RANKS` in `one_factor_sweep.py`: use 16. Does B alone come closer to LoRA?
#
# **Where to stop with a debugger.** `largest_curvature` in `curvature.py`, and `start` in
# `one_factor_sweep.py`.
#
# **Exercises.** one-file-init-lora, lowrank-gradient.
#
# **Further reading.** Hayou et al. 2024 compare a start with A = 0 and one with B = 0:
# [arXiv:2406.08447](https://arxiv.org/abs/2406.08447). Cohen et al. 2021 on gradient descent and
# the largest curvature: [arXiv:2103.00065](https://arxiv.org/abs/2103.00065).

# %%
# Checks
assert at_low == at_high == common.HOLDS, "the better factor must depend on the rate"
assert (a_wins > 0).all(), "at the low rate, A alone is better with each seed"
assert at_two == common.HOLDS and at_four == common.OPEN, "B against A, each at its own rate"
assert close == common.FAILS and ratio.mean() > np.log(2), "B alone: more than twice LoRA's loss"
assert abs(run.scores["loss"] / same.scores["loss"] - 1) < 1e-3, "the two runs must be the same"
assert abs(sharp[1] / sharp[0] - 16) < 0.5, "the curvature must be 16 times as large"
assert QUICK or abs(sharp[0] / lam[B][0] - 1) < 0.02, "the curvature must be that of the sweep"
# one of a hundred random orders of 16 methods has a rank correlation below −0.6
assert common.rank_correlation(x, y) < -0.6, "a higher curvature, a lower best rate"
assert len(lam) == 16 and -0.5 < slope < -0.4, "the power must be near −½"
assert abs(roots.mean() - 5.9) < 0.05 and abs(times - 5) < 0.05, "the square root and the rates"
assert lam["prompt"].mean() > lam["lora"].mean(), "prompts have a higher λ than LoRA"
assert chosen["prompt"] / chosen["lora"] == 5, "and five times its best rate"
if not QUICK:  # a run of the sweep again
    again = one_factor.run(("B", 2, chosen[B], experiment.FRESH[0]))["loss"]
    agree = common.agrees(again, fresh(B, chosen[B]), fresh("lora", chosen["lora"]))
    assert agree, "the run must agree with the sweep"

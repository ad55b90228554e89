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
# **Time:** 15 seconds to run, twenty minutes to read. **You need:** the studies [Methods at their
# best rate](../methods/methods_at_their_best_rate.py) and [All methods at their best
# rate](../methods/all_methods_at_their_best_rate.py).

# %%
import math
from functools import partial

import numpy as np

from minilora.evaluation import plot
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    best_rates,
    claim,
    deviation,
    of,
    short,
    table,
)
from minilora.lessons.studies.lora import curvature_sweep as curvature
from minilora.lessons.studies.lora import one_factor_sweep as one_factor
from minilora.lessons.studies.methods import best_rates_sweep as experiment

results = common.read_sweep("one_factor") + common.read_sweep("best_rates")
A, B = (one_factor.name_of(factor, 2) for factor in "AB")
A4, B4 = (one_factor.name_of(factor, 4) for factor in "AB")
fresh = partial(one_factor.fresh, results)  # of the eight seeds that chose nothing
valid_losses = partial(one_factor.valid_losses, results)  # of the two seeds that choose a rate


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
#
# <details><summary>Answer</summary>
# No. At 0.005, A alone has the lower loss with each of eight seeds. At 0.02, B alone has the lower
# mean loss. ("Yes" is tempting: in each comparison, A and B have the same settings.)
# </details>

# %%
ALL_RATES = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
RATES = {"lora": experiment.RATES["lora"]}
RATES |= dict.fromkeys((A, A4), one_factor.RATES["A"])
RATES |= dict.fromkeys((B, B4), one_factor.RATES["B"])
tried = {}
cells = []
for method, rates in RATES.items():
    tried[method] = valid_losses(method, rates)
    means = dict(zip(rates, tried[method].mean(axis=1)))
    cells.append([method, *(f"{means[r]:.3f}" if r in means else "" for r in ALL_RATES)])
table(["loss on valid, two seeds", *(f"{rate:g}" for rate in ALL_RATES)], cells)
low, high = one_factor.ONE_RATE
a_wins = log_ratio(B, A, {A: low, B: low})
b_wins = log_ratio(A, B, {A: high, B: high})
at_low = claim(f"at {low:g}: loss of B alone over A alone, > 1 times", a_wins, times=True)
at_high = claim(f"at {high:g}: loss of A alone over B alone, > 1 times", b_wins, times=True)

# %%
# Checks
assert at_low == HOLDS and at_high == HOLDS, "the better factor must depend on the rate"
assert (a_wins > 0).all(), "at the low rate, A alone is better with each seed"

# %% [markdown]
# ## Each at its own rate
#
# Each method gets the rate with the lowest mean loss on the validation split, with two seeds. The
# scores are of the test split and of eight other seeds. With r = 4, one factor has about as many
# parameters as LoRA with r = 2.
#
# **Predict.** At its best rate, does B alone come close to LoRA?
#
# <details><summary>Answer</summary>
# Not here. With r = 4, its loss is more than twice LoRA's. ("Yes" is tempting: both papers report
# it, for models that are far larger.)
# </details>

# %%
chosen = {}
cells = []
for method, rates in RATES.items():
    chosen[method], _ = best_rates(rates, tried[method])
    loss, exact, trained = (
        fresh(method, chosen[method], column) for column in ("loss", "exact_match", "trained")
    )
    named = [method, int(trained[0]), f"{chosen[method]:g}"]
    cells.append([*named, deviation(loss), deviation(100 * exact, 1)])
table(["method", "trained", "best rate", "test loss", "exact (%)"], cells)
b_better = claim("r = 2: A alone over B alone, > 1 times", log_ratio(A, B, chosen), times=True)
claim("r = 4: A alone over B alone, > 1 times", log_ratio(A4, B4, chosen), times=True)
ratio, below = log_ratio(B4, "lora", chosen), math.log(1.5)
close = claim("r = 4: B alone over LoRA, < 1.5 times", ratio, -math.inf, below, times=True)

# %% [markdown]
# On a model of 0.1 million parameters:
#
# - **B is more effective than A:** holds here with r = 2, each at its own best rate. With r = 4 it
#   is not shown either way.
# - **B alone is close to LoRA:** does not hold here. With about as many parameters, LoRA has the
#   lower loss. The papers train RoBERTa and LLaMA. To test their claim, one would have to repeat
#   their runs there, each method at its own rate.

# %%
# Checks
assert b_better == HOLDS and close == FAILS, "the two claims"
assert ratio.mean() > math.log(2), "more than twice"
assert (ratio > 0).all(), "LoRA must be better with each seed"

# %% [markdown]
# ## The scale of the frozen factor is a rate
#
# Why does A alone need a lower rate? AdamW changes each element of the trained factor by about the
# rate, at each step. The change of ΔW is this times the frozen factor.
#
# **Predict.** You multiply the frozen A by 4. Which rate of B gives the same run as before?
#
# <details><summary>Answer</summary>
# A quarter. Then B is a quarter of the other run's B at each step, and BA is the same. So a
# comparison of A and B at one rate also compares the scales of the frozen factors. ("The same rate"
# is tempting, because A is not trained.)
# </details>
#
# The curvature of the loss shows the scale before any step. ΔW = BA is linear in B. So with 4A, the
# Hessian with respect to B is 16 times as large.

# %%
settings = {"iters": short(20, 3), "max_grad_norm": 1e9}  # clipping would see the larger gradient
run = one_factor.train("B", 2, 2e-2, 0, **settings)
same = one_factor.train("B", 2, 5e-3, 0, scale=4, adam_eps=4e-8, **settings)
print(f"loss with A at 0.02: {run.scores['loss']:.6f}; with 4A at 0.005: ", end="")
print(f"{same.scores['loss']:.6f}")
sharp = []
for scale in (1, 4):
    adapters, model = one_factor.start("B", 2, 0, scale)
    sharp.append(curvature.curvature(adapters, model, steps=short(8, 4), eps=1e-3 / scale))
times = sharp[1] / sharp[0]
print(f"largest curvature: {sharp[0]:.2f} with A, {sharp[1]:.1f} with 4A, {times:.2f} times")

# %%
# Checks
assert abs(run.scores["loss"] / same.scores["loss"] - 1) < 1e-3, "the two runs must be the same"
assert abs(times - 16) < 0.5, "the curvature must be 16 times as large"

# %% [markdown]
# ## The largest curvature and the best rate
#
# Gradient descent on a loss with the largest curvature λ diverges at a rate of more than 2/λ. [Lee
# et al. 2026](https://arxiv.org/abs/2602.04998) compute λ at the start of LoRA variants: the best
# rate is lower where λ is higher. In their [code's
# README](https://github.com/yuang-lee/lr-matters-lora), for Qwen3-0.6B, PiSSA has about 10 times
# the λ of LoRA and a tenth of its rate. OLoRA and LoRA-GA have up to 100 times the λ of LoRA, and
# about an eighteenth of its rate.
#
# `largest_curvature` computes λ by power iteration: it multiplies a random vector by the Hessian
# again and again, and keeps all vectors (Lanczos's method). A product Hv is the difference of two
# gradients, at θ + εv and θ − εv. For LoRA+, B is measured in units of its rate.
#
# **Predict.** AdamW's steps do not depend on the size of the gradient. If only the scale of a
# method differs, as with 4A, λ is 16 times as large and the best rate a quarter. So the best rate
# would be proportional to λ^(−½). Will it be, over all methods?
#
# <details><summary>Answer</summary>
# Nearly: the fit over all 16 methods has a power between −0.4 and −0.5. (−1 is tempting, because
# gradient descent has the limit 2/λ. But the runs use AdamW.)
# </details>

# %%
sharpness = common.read_sweep("curvature")
lam = {}
rate = {}
for method in curvature.METHODS:
    lam[method] = np.array(of(sharpness, "curvature", method=method))
    rates = RATES.get(method) or experiment.RATES[method]
    rate[method] = best_rates(rates, valid_losses(method, rates))
order = sorted(lam, key=lambda method: lam[method].mean())
cells = [[m, f"{lam[m].mean():.3g}", f"{rate[m][0]:g}", f"{rate[m][1]:.3f}"] for m in order]
table(["method", "largest curvature (mean of 3)", "best rate", "of a parabola"], cells)
x = np.log([lam[method].mean() for method in order])
y = np.log([rate[method][1] for method in order])
slope, offset = np.polyfit(x, y, 1)
correlation = common.rank_correlation(x, y)
print(f"{len(order)} methods: best rate proportional to λ to the power {slope:.2f}", end=", ")
print(f"rank correlation {correlation:.2f}")
roots, times = np.sqrt(lam[A] / lam[B]), rate[B][1] / rate[A][1]
print(f"A alone, B alone: √(ratio of λ) {roots.mean():.1f}, ratio of rates {times:.1f}")

# %%
xlabel, title = "largest curvature λ at the start", "One point per method; the line is a power of λ"
with common.figure("curvature_and_rate", xlabel, "best learning rate", title) as axes:
    for method in order:
        low_rank = method in (*experiment.FAMILY, A, B)
        point = lam[method].mean(), rate[method][1]
        axes.plot(*point, "o", color=plot.LINES[0 if low_rank else 1]["color"])
        left = method in ("head", "p-tuning", "lora", "lora+")  # so that no two names overlap
        shift, side = ((-5, -6), "right") if left else ((4, 3), "left")
        text = method.removesuffix(", r = 2")
        axes.annotate(text, point, shift, textcoords="offset points", fontsize=8, ha=side)
    axes.plot(np.exp(x), np.exp(offset + slope * x), color="0.7", zorder=0)
    axes.set(xscale="log", yscale="log")

# %% [markdown]
# ![The best rate of each method over its largest
# curvature](../../../figures/curvature_and_rate.png)
#
# (Blue: methods that train A, B or both.) On a model of 0.1 million parameters:
#
# - **The best rate is lower where the curvature is higher:** holds here, over all 16 methods. The
#   fitted power is near the −½ that follows from the scale alone.
# - **A alone against B alone:** λ is more than 20 times as large for A alone. The square root of
#   this ratio is 5.9, and the best rate of B alone is 5 times as high. So most of the difference
#   between the two factors at one rate is one of scale.
# - **λ alone does not decide.** Prompts have a higher λ than LoRA, and five times its best rate.
#   Prefix and VeRA have the lowest λ, but not the highest rates. So use λ for a first guess, and
#   tune.
#
# The paper computes λ per projection, for LoRA variants on models of 0.6 billion parameters and
# more. This result agrees with its claim.

# %%
# Checks
# one of a hundred random orders of 16 methods has a rank correlation below −0.6
assert correlation < -0.6, "a higher curvature, a lower best rate"
assert -0.5 < slope < -0.4, "the power must be near −½"
assert (lam[A] > 20 * lam[B]).all(), "A alone must have the higher curvature with each seed"
assert abs(roots.mean() - 5.9) < 0.05 and abs(times - 5) < 0.05, "the square root and the rates"
assert lam["prompt"].mean() > lam["lora"].mean(), "prompts have a higher λ than LoRA"
assert rate["prompt"][0] / rate["lora"][0] == 5, "and five times its best rate"
assert set(order[:2]) == {"prefix", "vera"}, "the lowest λ"
assert max(rate[m][0] for m in order[:2]) < rate["ia3"][0], "and not the highest rates"
if not common.QUICK:  # a run of each sweep again
    again = one_factor.run(("B", 2, chosen[B], experiment.FRESH[0]))["loss"]
    agree = common.agrees(again, fresh(B, chosen[B]), fresh("lora", chosen["lora"]))
    assert agree, "the run must agree with the sweep"
    again = curvature.run((B, 0))["curvature"]
    assert abs(again / lam[B][0] - 1) < 0.02, "the curvature must be that of the sweep"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters, with one rate for both, A alone is better than B alone at
# 0.005 and worse at 0.02. Each at its own rate, B alone is better at r = 2, and LoRA is better than
# both. The scale of the frozen factor acts as a learning rate, and the curvature at the start shows
# it. Over 16 methods, the best rate falls with the curvature.
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

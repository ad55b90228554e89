# %% [markdown]
# # MERGE 8b. Alpha and the learning rate
#
# **The question.** If alpha changes, how must the learning rate change?
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** a few seconds to run, five minutes to read. **You need:** lesson 9.

# %%
import numpy as np

from lessons.helpers.common import (
    HOLDS,
    QUICK,
    belongs,
    best_rates,
    claim,
    figure,
    finetune,
    interval,
    number,
    of,
    read_sweep,
    table,
)
from minilora import LoraConfig
from minilora.evaluation import plot

# %% [markdown]
# ## Two predictions
#
# Lesson 9 has two results that seem to contradict each other:
#
# - The first step's gain is about proportional to α·η. By this, a 16 times larger alpha needs a 16
#   times smaller rate.
# - Without clipping and decay, and with Adam's ε times c, (α, η, A₀) and (c²·α, η/c, A₀/c) are the
#   same run (lesson 9). If the start of A does not matter, α·η² does, and a 16 times larger alpha
#   needs a 4 times smaller rate.
#
# **Predict.** Alpha is 16 times as large. Is the best rate 16 times smaller, or 4 times?
#
# <details><summary>Answer</summary>
# Nearer to four times: about five, from alpha 4 to 64. A possible reason: at low rates A hardly
# moves, and at high rates its start is forgotten.
# </details>

# %%
sweep = read_sweep("alpha")
RATES, ALPHAS = (1e-3, 4e-3, 1.6e-2, 6.4e-2), (4, 16, 64)
grid, rows = {}, []
for rate in RATES:
    for alpha in ALPHAS:
        grid[alpha, rate] = np.array(of(sweep, "loss", part="rate", alpha=alpha, rate=rate))
    rows.append([f"{rate:g}", *(f"{grid[alpha, rate].mean():.3f}" for alpha in ALPHAS)])
table(["rate, r = 8", *(f"alpha = {alpha}" for alpha in ALPHAS)], rows)

best, between, single = {}, {}, {}
for alpha in ALPHAS:
    losses = np.array([grid[alpha, rate] for rate in RATES])
    best[alpha], between[alpha] = best_rates(RATES, losses)
    single[alpha] = np.array([best_rates(RATES, losses[:, [seed]])[1] for seed in range(3)])
    print(f"alpha = {alpha}: the best rate is {best[alpha]:g}, by a parabola {between[alpha]:.4f}")
print(f"from alpha 4 to 64: {best[4] / best[64]:g} times, {between[4] / between[64]:.1f} times")
factors = np.log(single[4] / single[64])  # of each seed
below_16 = claim("that is from 2 to 16 times", factors, np.log(2), np.log(16), times=True, digits=1)

# %%
LEFT_ALPHAS = (4, 8, 16, 32, 64, 128)
xlabels, ylabel = ["alpha", "learning rate"], "held-out loss (nats per target token)"
titles = ["rate 0.004: alpha matters more than r", "r = 8: alpha moves the best rate"]
with figure("alpha_and_rate", xlabels, ylabel, titles, width=8.4, columns=2) as (left, right):

    def draw(axes, label, places, losses, number):
        """Draw the mean of the seeds as a line, and their range as vertical bars."""
        style, marker, means = plot.LINES[number], "os^"[number], list(map(np.mean, losses))
        axes.plot(places, means, marker=marker, markersize=4, label=label, **style)
        low, high = list(map(np.min, losses)), list(map(np.max, losses))
        axes.vlines(places, low, high, color=style["color"], alpha=0.5)

    for number, r in enumerate((4, 16, 64)):
        alphas = LEFT_ALPHAS if r == 4 else LEFT_ALPHAS[2:]
        losses = [of(sweep, "loss", part="r", r=r, alpha=alpha) for alpha in alphas]
        draw(left, f"r = {r}", alphas, losses, number)
    for number, alpha in enumerate(ALPHAS):
        draw(right, f"alpha = {alpha}", RATES, [grid[alpha, rate] for rate in RATES], number)
    for axes, places in ((left, LEFT_ALPHAS), (right, RATES)):
        axes.set(xscale="log", yscale="log", ylim=(4e-3, 20))
        axes.minorticks_off()
        axes.set_xticks(places, [f"{x:g}" for x in places])
    left.legend(frameon=False, loc="upper right")
    right.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Loss over alpha for three ranks, over the rate for three
# alphas](../../../figures/alpha_and_rate.png)
#
# Alpha 4 at 0.004 and alpha 16 at 0.001 have the same α·η, and their mean losses are equal to a
# quarter. At high rates, alpha 4 at 0.064 and alpha 64 at 0.016 both fail (above 0.25 nats with
# each seed): they have the same α·η². And alpha 64 at 0.004, with the same α·η as the first of
# these two, has the lowest mean of all.
#
# The grid has steps of four, so its factor of four could be anything from one to sixteen. A
# parabola through the lowest point of each curve and its two neighbours says between three and ten
# (the 95 % interval of the mean of three seeds). That excludes the 16 times of α·η, on this model
# of 0.1 million parameters.
#
# So if alpha changes, the rate must be swept again.

# %%
# Checks
assert best[4] == 4 * best[64], "16 times the alpha: one step of the grid"
assert below_16 == HOLDS, "and below 16 times between its points"
_, least, most = np.exp(interval(factors))
assert (round(least), round(most)) == (3, 10), "between three and ten"
assert 4.5 < between[4] / between[64] < 6, "about 5: nearer to 4, α·η², than to 16, α·η"
low = grid[4, 4e-3].mean(), grid[16, 1e-3].mean()
assert 0.8 < low[0] / low[1] < 1.25, "the same α·η at low rates (0.016): the same loss"
fails, works = grid[4, 6.4e-2].min(), grid[64, 4e-3].max()
assert fails > 10 * works, "the same α·η at high rates (0.256): not the same loss"
lowest = min(grid, key=lambda cell: grid[cell].mean())
assert lowest == (64, 4e-3), f"alpha 64 at 0.004 must have the lowest mean, not {lowest}"
assert min(fails, grid[64, 1.6e-2].min()) > 0.25, "the same α·η² at high rates: both must fail"
if not QUICK:  # a run of the sweep again
    config = LoraConfig(r=8, lora_alpha=64, target_modules=("all-linear",))
    live = finetune(config, batch_size=8).scores["loss"]
    cell, rival = np.log(grid[64, 4e-3]), np.log(grid[4, 6.4e-2])
    assert belongs(np.log(live), cell, rival), f"{live} is not the sweep's loss"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters and from alpha 4 to 64, the best rate is divided by less than
# 16, about 5: nearer to α·η² than to α·η.
#
# **What to try.**
#
# 1. `best_rates(RATES, losses)`: use one seed, `losses[:, :1]`. How much do the factors change?
# 2. `ylim=(4e-3, 20)`: look at (4e-3, 0.1). How flat is the valley?
# 3. Print `grid` sorted by α·η², and then by α·η. Which order is smoother at high rates?
#
# **Exercises.** warmup, clipping.
#
# **Further reading.** LoRA, Sec. 4.1: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).

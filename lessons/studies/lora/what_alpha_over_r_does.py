# %% [markdown]
# # What α/r does
#
# **The question.** LoRA multiplies BA by s = α/r. What is this factor for, should it be α/√r
# instead, as rsLoRA says, and how must the learning rate change when α changes?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** a quarter of a minute to run, fifteen minutes to read. **You need:** lessons 1 and 7,
# and for the last section lesson 8.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.layers import lora_delta, value_and_grad
from minilora.lessons.helpers.common import (
    HOLDS,
    QUICK,
    agrees,
    best_rates,
    claim,
    curve_of_seeds,
    figure,
    interval,
    of,
    read_sweep,
    spread,
    table,
)
from minilora.lessons.studies.lora import alpha_sweep, scaling_sweep
from minilora.lora import adapted_paths
from minilora.optim import global_norm
from minilora.training import update
from minilora.tree import get

model, tokenizer = minilora.load("micro")
examples, _ = data.encode_rows(
    data.load_rows("questions", "train"), tokenizer, TrainConfig(mask_prompt=True)
)
batch = data.collate([[example] for example in examples[:16]])

# %% [markdown]
# ## The first step
#
# The first step of AdamW ([lesson 7](../../07_adamw_and_the_rate.py)) moves each number of B by the
# learning rate η (up to Adam's ε), whatever the size of its gradient. A does not move, because B is
# zero. So after one step
#
# $$\Delta W = -s\,\eta\,\mathrm{sign}\!\left(\frac{\partial L}{\partial B}\right) A$$
#
# Each entry of ΔW is a sum of r terms. A sum of r numbers with random signs has a size of about √r
# times that of one number, so the size of ΔW should grow as s·√r. Three rules for s are compared,
# each with such an α that s = 2 at r = 8:
#
# - constant: s = 2
# - LoRA (Sec. 4.1): s = α/r
# - rsLoRA (Kalajdzievski 2023): s = α/√r
#
# **Predict.** Under which rule does the first ΔW have the same size at every r?
#
# <details><summary>Answer</summary>
# α/√r, approximately: then s·√r is constant. α/r is tempting, because it is LoRA's own rule, but it
# divides by r what grows only as √r. Under α/r the update shrinks about as 1/√r, and under
# a constant s it grows about as √r.
# </details>


# %%
def first_update(lora_config, lr=1e-3, seed=0):
    """Take one step of AdamW and return {path: ΔW}."""
    adapters, _ = minilora.get_peft_model(model, lora_config, seed)
    _, gradient = value_and_grad(minilora.loss)(adapters, model, batch)
    state = update(minilora.start(adapters, TrainConfig()), gradient, lr, TrainConfig())
    return {path: lora_delta(get(state.adapters, path)) for path in adapted_paths(adapters)}


RANKS = (1, 2, 4, 8, 16, 32)
exponents, cells = {}, []
for rule in scaling_sweep.RULES:
    norms = []
    for r in RANKS:
        of_seeds = [first_update(scaling_sweep.config_of(rule, r), seed=seed) for seed in (0, 1)]
        norms.append(np.mean([global_norm(changes) for changes in of_seeds]))
    exponents[rule], _ = np.polyfit(np.log(RANKS), np.log(norms), 1)  # slope: the power of r
    cells.append([rule, *(f"{norm:.4f}" for norm in norms), f"r^{exponents[rule]:+.2f}"])
table(["‖ΔW‖ of rule", *(f"r = {r}" for r in RANKS), "grows as"], cells)

# %% [markdown]
# In the formula, s and η appear only as a product. "Tuning α is roughly the same as tuning the
# learning rate" (LoRA, Sec. 4.1). At the first step this is exact, up to Adam's ε:

# %%
double_alpha = first_update(LoraConfig(r=8, lora_alpha=32, target_modules=("all-linear",)))
double_rate = first_update(scaling_sweep.config_of("constant", 8), lr=2e-3)  # its α is 16
off = global_norm({path: double_alpha[path] - double_rate[path] for path in double_rate})
relative = off / global_norm(double_rate)
print(f"twice α and twice η give the same first step, to {relative:.0e} of its length")

# %%
# Checks
for rule, power in (("constant", 0.5), ("alpha/r", -0.5), ("alpha/sqrt(r)", 0)):
    assert abs(exponents[rule] - power) < 0.12, f"{rule}: the update must grow as r^{power}"
assert relative < 1e-3, "at the first step, α and η are one knob"

# %% [markdown]
# ## Two ranks, whole runs
#
# `scaling_sweep.py` trains `micro` for 100 steps with r = 2 and r = 32, at six learning rates
# under each rule, with five seeds. `read_sweep` reads its results. `of` gives a column of the runs
# with the given settings, one number per seed. `best_rates` returns two rates, from the means over
# the seeds: the one of the six with the lowest loss, and the minimum of a parabola through this
# point and its two neighbours, which can be between two of the six.
#
# **Predict.** Under which rule is the best learning rate of r = 2 also the best of r = 32?
#
# <details><summary>Answer</summary>
# Under α/r, within a factor of two, with each of five seeds. α/√r is tempting, because it keeps the
# size of the first step. But under α/√r the best rate of r = 32 is two to four times smaller, under
# a constant s four to eight times.
# </details>

# %%
sweep, RATES = read_sweep("scaling"), scaling_sweep.RATES
losses, quotients, between, lowest = {}, {}, {}, {}
cells = []
for rule in scaling_sweep.RULES:
    best, near = {}, {}
    for r in scaling_sweep.RANKS:
        of_rates = [of(sweep, "loss", rule=rule, r=r, rate=rate) for rate in RATES]
        losses[rule, r] = np.array(of_rates)  # (rates, seeds)
        best[r] = np.array(RATES)[losses[rule, r].argmin(axis=0)]  # of each seed
        best_of_mean, near[r] = best_rates(RATES, losses[rule, r])
    quotients[rule] = best[32] / best[2]
    between[rule] = near[32] / near[2]
    lowest[rule] = losses[rule, 32][RATES.index(best_of_mean)]
    ranges = [f"{x.min():g} to {x.max():g}" for x in (best[2], best[32], quotients[rule])]
    cells.append([rule, *ranges, f"{between[rule]:.2f}", spread(lowest[rule], 3)])
header = ["rule", "best rates, r = 2", "r = 32", "quotients", "of parabolas"]
table([*header, "loss at the best rate, r = 32"], cells)

# %%
titles = ["s constant", "s = α/r", "s = α/√r"]
ylabels = ["held-out loss (nats per token)", "", ""]
xlabel = "learning rate / 10⁻³"
with figure("scaling", xlabel, ylabels, titles, columns=3, width=9.6) as panels:
    for axes, rule in zip(panels, scaling_sweep.RULES):
        for line, r in enumerate(scaling_sweep.RANKS):
            curve_of_seeds(axes, RATES, losses[rule, r], f"r = {r}", line)
        axes.set(xscale="log", yscale="log", ylim=(0.01, 30))
        axes.set_xticks(RATES, [f"{1000 * rate:g}" for rate in RATES])
        axes.minorticks_off()
        axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Held-out loss over the learning rate at two ranks, one panel per
# rule](../../../figures/scaling.png)
#
# LoRA's reason for α/r is that one learning rate can then serve several ranks. Within a factor of
# about 1.3, by the parabolas, this **holds here**, for r = 2 and r = 32 in 100 steps of `micro`
# (0.1 million parameters). That α/√r does the same **does not hold here**.
#
# By the first step, the best rate of r = 32 should be √16 = 4 times smaller under a constant s,
# equal under α/√r, and 4 times larger under α/r. The parabolas say: 4 times smaller, 2.7 times
# smaller, and 1.3 times larger. So the size of the first step alone does not decide which rate is
# best in a whole run.
#
# α/r does not give the lowest loss: at r = 32 and at the best rate of each rule, the runs with a
# constant s have a lower loss than those with α/r, with every seed. Whether a constant s has a
# lower loss than α/√r is **not shown either way**: the seeds disagree.

# %%
# Checks
in_range = (quotients["constant"] >= 1 / 8) & (quotients["constant"] <= 1 / 4)
assert in_range.all(), "constant s: 4 to 8 times smaller, every seed"
assert (quotients["alpha/sqrt(r)"] <= 1 / 2).all(), "α/√r: at least 2 times smaller, every seed"
assert (quotients["alpha/sqrt(r)"] >= 1 / 4).all(), "and at most 4 times"
assert np.isin(quotients["alpha/r"], (1, 2)).all(), "α/r: equal, or twice as large, every seed"
for rule, expected in (("constant", 1 / 4), ("alpha/sqrt(r)", 1 / 2.7), ("alpha/r", 1.3)):
    assert 0.85 < between[rule] / expected < 1.15, f"{rule}: {between[rule]} between the points"
assert (lowest["constant"] < lowest["alpha/r"]).all(), "constant s must be better, every seed"
better = lowest["constant"] < lowest["alpha/sqrt(r)"]
assert better.any() and not better.all(), "constant s and α/√r: the seeds disagree"
if not QUICK:  # four runs of the sweep again, each told apart from the other rate
    for rule, r, rate, other in (
        ("constant", 2, 3.2e-2, 4e-3),
        ("constant", 32, 4e-3, 3.2e-2),
        ("constant", 32, 3.2e-2, 4e-3),
        ("alpha/sqrt(r)", 32, 8e-3, 3.2e-2),
    ):
        again = scaling_sweep.run((rule, r, rate, 0))["loss"]
        own, others = (losses[rule, r][RATES.index(x)] for x in (rate, other))
        assert agrees(again, own, others), f"{rule}, r = {r} at {rate}: {again}, not {own}"

# %% [markdown]
# ## Alpha and the learning rate, whole runs
#
# Now r = 8 is fixed and alpha changes. Two results seem to contradict each other:
#
# - The first step's gain is about proportional to α·η. By this, a 16 times larger alpha needs a 16
#   times smaller rate.
# - Without clipping and decay, and with Adam's ε times c, (α, η, A₀) and (c²·α, η/c, A₀/c) are the
#   same run (lesson 8). If the start of A does not matter, α·η² does, and a 16 times larger alpha
#   needs a 4 times smaller rate.
#
# **Predict.** Alpha is 16 times as large. Is the best rate 16 times smaller, or 4 times?
#
# <details><summary>Answer</summary>
# Nearer to four times: about five, from alpha 4 to 64. (16 is tempting, because α scales the first
# step. But that is exact for one step only.) A possible reason: at low rates A hardly moves, and at
# high rates its start is forgotten.
# </details>

# %%
sweep, ALPHAS = read_sweep("alpha"), (4, 16, 64)
grid, cells = {}, []
for rate in alpha_sweep.RATES:
    for alpha in ALPHAS:
        grid[alpha, rate] = np.array(of(sweep, "loss", part="rate", alpha=alpha, rate=rate))
    cells.append([f"{rate:g}", *(f"{grid[alpha, rate].mean():.3f}" for alpha in ALPHAS)])
table(["rate, r = 8", *(f"alpha = {alpha}" for alpha in ALPHAS)], cells)

best, between, single = {}, {}, {}
for alpha in ALPHAS:
    of_alpha = np.array([grid[alpha, rate] for rate in alpha_sweep.RATES])
    best[alpha], between[alpha] = best_rates(alpha_sweep.RATES, of_alpha)
    seeds = range(of_alpha.shape[1])
    single[alpha] = [best_rates(alpha_sweep.RATES, of_alpha[:, [seed]])[1] for seed in seeds]
    print(f"alpha = {alpha}: the best rate is {best[alpha]:g}, by a parabola {between[alpha]:.4f}")
print(f"from alpha 4 to 64: {best[4] / best[64]:g} times, {between[4] / between[64]:.1f} times")
factors = np.log(single[4]) - np.log(single[64])  # of each seed
below_16 = claim("that is from 2 to 16 times", factors, np.log(2), np.log(16), times=True, digits=1)

# %% [markdown]
# Alpha 4 at 0.004 and alpha 16 at 0.001 have the same α·η, and their mean losses are equal to a
# quarter. At high rates, alpha 4 at 0.064 and alpha 64 at 0.016 both fail (above 0.25 nats with
# each seed): they have the same α·η². And alpha 64 at 0.004, with the same α·η as the first of
# these two, has the lowest mean of all.
#
# The grid has steps of four, so its factor of four could be anything from one to sixteen. A
# parabola through the lowest point of each column and its two neighbours says between three and ten
# (the 95 % interval of the mean of three seeds). That excludes the 16 times of α·η, on this model
# of 0.1 million parameters. So if alpha changes, the rate must be swept again.

# %%
# Checks
assert best[4] == 4 * best[64], "16 times the alpha: one step of the grid"
assert below_16 == HOLDS, "and below 16 times between its points"
_, least, most = np.exp(interval(factors))
assert (round(least), round(most)) == (3, 10), "between three and ten"
assert 4.5 < between[4] / between[64] < 6, "about 5: nearer to 4, α·η², than to 16, α·η"
low = grid[4, 4e-3].mean(), grid[16, 1e-3].mean()
assert 0.8 < low[0] / low[1] < 1.25, "the same α·η at low rates (0.016): the same loss"
fails, works = grid[4, 6.4e-2], grid[64, 4e-3]
assert fails.min() > 10 * works.max(), "the same α·η at high rates (0.256): not the same loss"
lowest_cell = min(grid, key=lambda cell: grid[cell].mean())
assert lowest_cell == (64, 4e-3), f"alpha 64 at 0.004 must have the lowest mean, not {lowest_cell}"
high = min(fails.min(), grid[64, 1.6e-2].min())
assert high > 0.25, "the same α·η² at high rates: both must fail"
if not QUICK:  # a run of the sweep again
    again = alpha_sweep.run(("rate", 8, 64, 4e-3, 0))["loss"]
    assert agrees(again, works, fails), f"{again} is not the sweep's loss"

# %% [markdown]
# ## What was shown
#
# On `micro` (0.1 million parameters), dividing by r lets one learning rate serve two ranks, within
# a factor of about 1.3 (by the parabolas). Dividing by √r nearly keeps the size of the first
# update, but not the best rate. At r = 32, a constant s at its best rate has a lower loss than α/r.
# At the first step, α and the learning rate are one knob. In whole runs from alpha 4 to 64, the
# best rate is divided by about 5: nearer to α·η² than to α·η.
#
# **What to try.**
#
# 1. `first_update(lora_config, lr=1e-3, ...)`: change the rate. Do the exponents change?
# 2. `RANKS`: add 64 and 128. Does the same power hold above the width, 48?
# 3. Print `grid` sorted by α·η², and then by α·η. Which order is smoother at high rates?
#
# **Where to stop with a debugger.** `scaling` in `minilora/config.py`: the one place where α/r is
# computed.
#
# **Exercises.** one-file-init-lora, warmup, clipping.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). rsLoRA:
# [arXiv:2312.03732](https://arxiv.org/abs/2312.03732).

# %% [markdown]
# # What α/r does
#
# **The question.** LoRA multiplies BA by s = α/r. What is this factor for, should it be α/√r
# instead, as rsLoRA says, and how must the learning rate change when α changes?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 1 and 7, and
# for the last two sections lesson 8.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.layers import lora_delta, value_and_grad
from minilora.lessons.helpers.common import (
    HOLDS,
    QUICK,
    agrees,
    batch_of,
    best_rates,
    claim,
    curve_of_seeds,
    interval,
    of,
    questions,
    read_sweep,
    show_losses,
)
from minilora.lessons.studies.lora import alpha_sweep, best_alpha_sweep, scaling_sweep
from minilora.lora import adapted_paths
from minilora.optim import global_norm
from minilora.training import update
from minilora.tree import get

model, _ = minilora.load("micro")
batch = batch_of(questions()[:16])

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
# **Predict.** Under which rule does the first ΔW have the same size at every r? And does twice η
# give the same first step as twice α?


# %%
def first_update(lora_config, lr=1e-3):
    """Take one step of AdamW and return {path: ΔW}."""
    adapters, _ = minilora.get_peft_model(model, lora_config, 0)
    _, gradient = value_and_grad(minilora.loss)(adapters, model, batch)
    state = update(minilora.start(adapters, TrainConfig()), gradient, lr, TrainConfig())
    return {path: lora_delta(get(state.adapters, path)) for path in adapted_paths(adapters)}


RANKS = (1, 2, 4, 8, 16, 32)
powers = {}
for rule in scaling_sweep.RULES:
    norms = [global_norm(first_update(scaling_sweep.config_of(rule, r))) for r in RANKS]
    powers[rule], _ = np.polyfit(np.log(RANKS), np.log(norms), 1)
    print(f"{rule}: ‖ΔW‖ from {norms[0]:.4f} to {norms[-1]:.4f}, about as r^{powers[rule]:+.2f}")

double_alpha = first_update(LoraConfig(r=8, lora_alpha=32, target_modules=("all-linear",)))
double_rate = first_update(scaling_sweep.config_of("constant", 8), lr=2e-3)  # its α is 16
off = global_norm({path: double_alpha[path] - double_rate[path] for path in double_rate})
relative = off / global_norm(double_rate)
print(f"twice α and twice η give the same first step, to {relative:.0e} of its length")

# %% [markdown]
# **Answer.** α/√r, approximately: then s·√r is constant. LoRA's own rule divides by r what grows
# only as √r, so its update shrinks about as 1/√r. Under a constant s it grows about as √r.
#
# In the formula, s and η appear only as a product. "Tuning α is roughly the same as tuning the
# learning rate" (LoRA, Sec. 4.1). At the first step this is exact, up to Adam's ε.
#
# ## Two ranks, whole runs
#
# `scaling_sweep.py` trains `micro` for 100 steps with r = 2 and r = 32, at six learning rates under
# each rule, with five seeds. The best rate of a seed is the minimum of a parabola through the best
# of the six and its two neighbours.
#
# **Predict.** If the first step decided, how would the best rate of r = 32 differ from that of r =
# 2 under each rule? Under which rule is it really the same?


# %%
# Picture
def best_of_seeds(rates, losses):
    """Return the best rate of each seed, by a parabola; losses: (rates, seeds)."""
    return np.array([best_rates(rates, seed[:, None])[1] for seed in losses.T])


sweep, RATES = read_sweep("scaling"), scaling_sweep.RATES
losses, ratio = {}, {}
_, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
for line, rule in enumerate(scaling_sweep.RULES):
    for r in scaling_sweep.RANKS:
        of_rates = [of(sweep, "loss", rule=rule, r=r, rate=rate) for rate in RATES]
        losses[rule, r] = np.array(of_rates)
    best = [best_of_seeds(RATES, losses[rule, r]) for r in scaling_sweep.RANKS]
    curve_of_seeds(axes, ("r = 2", "r = 32"), best, rule, line)
    ratio[rule] = np.log(best[1] / best[0])
axes.set(yscale="log", ylabel="best learning rate", title="means and ranges of five seeds")
axes.legend(frameon=False)
plt.show()
two = np.log(2)
same = claim("α/r: rate of r = 32 over r = 2, 1/2 to 2", ratio["alpha/r"], -two, two, times=True)
constant, divided = (losses[rule, 32].min(axis=0) for rule in ("constant", "alpha/r"))
higher = np.log(divided / constant)
better = claim("r = 32: loss of α/r over constant s, > 1 times", higher, times=True)

# %% [markdown]
# **Answer.** By the first step, the best rate of r = 32 should be √16 = 4 times smaller under a
# constant s, equal under α/√r, and 4 times larger under α/r. In whole runs it is 4 times smaller,
# 2.4 times smaller, and 1.3 times larger (means of the seeds). So the size of the first step alone
# does not decide which rate is best in a whole run.
#
# LoRA's reason for α/r is that one learning rate can then serve several ranks. Within a factor of
# two, this **holds here**, for r = 2 and r = 32 in 100 steps of `micro` (0.1 million parameters).
# That α/√r does the same **does not hold here**: with every seed, the best rate moves more than
# under α/r.
#
# α/r does not give the lowest loss: at r = 32, a constant s at its best rate has a lower one.
#
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

# %%
# Picture
of_alphas, GRID = read_sweep("alpha"), alpha_sweep.RATES
curves = {}
for alpha in (4, 16, 64):
    of_rates = [of(of_alphas, "loss", part="rate", alpha=alpha, rate=rate) for rate in GRID]
    curves[f"alpha = {alpha}"] = np.array(of_rates)
show_losses(curves, GRID, "learning rate", "r = 8: means and ranges of three seeds")
small, usual, large = curves.values()
factors = np.log(best_of_seeds(GRID, small) / best_of_seeds(GRID, large))
below_16 = claim("best rate, alpha 4 over 64, 1 to 16", factors, 0, np.log(16), times=True)

# %% [markdown]
# **Answer.** Nearer to four times: 5.7, from alpha 4 to 64, by parabolas (mean of three seeds). The
# 95 % interval excludes the 16 times of α·η, on this model of 0.1 million parameters. A possible
# reason: at low rates A hardly moves, and at high rates its start is forgotten.
#
# Alpha 4 at 0.004 and alpha 16 at 0.001 have the same α·η, and their mean losses are equal to a
# quarter. But alpha 4 at 0.064 and alpha 64 at 0.004 also have the same α·η: there, the losses
# differ by more than ten times. So if alpha changes, the rate must be swept again.
#
# ## The best alpha of a rank
#
# At one learning rate, which α is the best for a rank? By the first step, α grows as √r: then
# α/r·√r is constant. [Zhang et al. 2026](https://arxiv.org/abs/2606.12883) report this law.
#
# **Predict.** At 0.016, the best of three rates for r = 8 and α = 16, how much larger is the best α
# of r = 32 than that of r = 2: 16 times (α = 2r), four times (√r), or not at all?

# %%
# Picture
by_alpha, best = read_sweep("best_alpha"), []
for r, alphas in best_alpha_sweep.ALPHAS.items():
    of_alpha = [of(by_alpha, "loss", r=r, alpha=alpha, rate=1.6e-2)[-8:] for alpha in alphas]
    best.append(best_of_seeds(alphas, np.array(of_alpha)))
_, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
curve_of_seeds(axes, ("r = 2", "r = 8", "r = 32"), best, "best α", 0)
axes.set(yscale="log", ylabel="best α", title="means and ranges of eight seeds")
plt.show()
growth = np.log(best[2] / best[0]) / np.log(16)
no_root = claim("power of r in the best α, below 1/2", growth, -np.inf, 0.5)

# %% [markdown]
# **Answer.** 1.5 times: α grows as r^0.16 (mean of eight seeds; 95 % interval −0.02 to 0.33). So √r
# **does not hold here**, at one rate and in 100 steps of `micro`. That the best α is the same at
# all ranks is not excluded. As above, the first step alone does not decide.
#
# ## What was shown
#
# On `micro` (0.1 million parameters), dividing by r lets one learning rate serve two ranks, within
# a factor of two. Dividing by √r nearly keeps the size of the first update, but not the best rate.
# At r = 32, a constant s at its best rate has a lower loss than α/r. At the first step, α and the
# learning rate are one knob. In whole runs from alpha 4 to 64, the best rate is divided by 5.7:
# nearer to α·η² than to α·η. At one rate, the best α hardly grows with the rank.
#
# **What to try.**
#
# 1. `first_update(lora_config, lr=1e-3)`: change the rate. Do the powers change?
# 2. `RANKS`: add 64 and 128. Does the same power hold above the width, 48?
# 3. `curves`: draw alpha = 4 over a quarter, and over a 16th, of its rates. Which of them is nearer
#    to alpha = 64?
#
# **Where to stop with a debugger.** `scaling` in `minilora/config.py`: the one place where α/r is
# computed.
#
# **Exercises.** one-file-init-lora, warmup, clipping.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). rsLoRA:
# [arXiv:2312.03732](https://arxiv.org/abs/2312.03732).

# %%
# Checks
for rule, power in (("constant", 0.5), ("alpha/r", -0.5), ("alpha/sqrt(r)", 0)):
    assert abs(powers[rule] - power) < 0.12, f"{rule}: the update must grow as r^{power}"
assert relative < 1e-3, "at the first step, α and η are one knob"
for rule, expected in (("constant", 1 / 4), ("alpha/sqrt(r)", 1 / 2.4), ("alpha/r", 1.3)):
    found = np.exp(ratio[rule].mean())
    assert 0.9 < found / expected < 1.1, f"{rule}: the rate of r = 32 is {found} times that of 2"
assert same == better == HOLDS, "the rate of two ranks, and the loss"
moves = {rule: np.abs(logs_of_seeds) for rule, logs_of_seeds in ratio.items()}
assert (moves["alpha/sqrt(r)"] > moves["alpha/r"]).all(), "α/√r: the rate moves more, every seed"
assert no_root == HOLDS, "the best α must grow less than as √r"
assert abs(growth.mean() - 0.16) < 0.02 and abs(interval(growth).low) < 0.05, "from r = 2 to 32"
assert below_16 == HOLDS, "16 times the alpha: less than 16 times the rate"
assert abs(np.exp(factors.mean()) - 5.7) < 0.1, "nearer to 4, α·η², than to 16, α·η"
times = small[GRID.index(4e-3)].mean() / usual[GRID.index(1e-3)].mean()
assert 0.8 < times < 1.25, "the same α·η at low rates (0.016): the same loss"
fails, works = small[GRID.index(6.4e-2)], large[GRID.index(4e-3)]
assert fails.min() > 10 * works.max(), "the same α·η at high rates (0.256): not the same loss"
if not QUICK:  # a run of each sweep again, told apart from another rate or alpha
    again = scaling_sweep.run(("constant", 2, 3.2e-2, 0))["loss"]
    own, other = (losses["constant", 2][RATES.index(rate)] for rate in (3.2e-2, 4e-3))
    assert agrees(again, own, other), f"{again} is not the sweep's loss"
    again = alpha_sweep.run(("rate", 8, 64, 4e-3, 0))["loss"]
    assert agrees(again, works, fails), f"{again} is not the sweep's loss"
    again = best_alpha_sweep.run((2, 64, 1.6e-2, 1))["loss"]
    own, other = (of(by_alpha, "loss", r=2, alpha=alpha) for alpha in (64, 32))
    assert agrees(again, own, other), f"{again} is not the sweep's loss"

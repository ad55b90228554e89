# %% [markdown]
# # What α/r does
#
# **The question.** LoRA multiplies BA by s = α/r. What is this factor for, and should it be α/√r
# instead, as rsLoRA says?
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 3, and what Adam
# does.

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, best_rates, of, read_sweep, spread, table
from lessons.studies.lora import scaling_sweep as scaling
from minilora import LoraConfig, TrainConfig, data
from minilora.layers import lora_delta, value_and_grad
from minilora.lora import adapted_paths
from minilora.optim import adamw_init, global_norm
from minilora.training import update
from minilora.tree import arrays, get

config, base, tokenizer = minilora.load("micro")
examples, _ = data.encode_rows(
    data.load_rows("questions", "train"), tokenizer, TrainConfig(mask_prompt=True)
)
batch = data.collate([[example] for example in examples[:16]])

# %% [markdown]
# ## The first step
#
# The first step of AdamW ([lesson 5](../../05_adamw_and_the_rate.py) writes it out) moves each
# number of B by the learning rate η (up to Adam's ε), whatever the size of its gradient g: at this
# step Adam's averages are m̂ = g and v̂ = g², and m̂/√v̂ is ±1. A does not move: B is zero, so the
# gradient of A is zero. So after one step
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
    adapters, _ = minilora.get_peft_model(base, lora_config, seed)
    _, gradient = value_and_grad(minilora.loss)(adapters, base, batch, config)
    state = adamw_init(arrays(adapters))
    adapters, _ = update(adapters, gradient, state, lr, TrainConfig())
    return {path: lora_delta(get(adapters, path)) for path in adapted_paths(adapters)}


RANKS = np.array([1, 2, 4, 8, 16, 32])


def update_norms(rule):
    """Return ‖ΔW‖ over all matrices at each rank, the mean of two seeds."""
    norms = []
    for r in RANKS:
        lora_config = scaling.config_of(rule, int(r))
        of_seeds = [global_norm(first_update(lora_config, seed=seed)) for seed in (0, 1)]
        norms.append(np.mean(of_seeds))
    return norms


exponents, rows = {}, []
for rule in scaling.RULES:
    norms = update_norms(rule)
    exponents[rule], _ = np.polyfit(np.log(RANKS), np.log(norms), 1)  # slope: the power of r
    rows.append([rule, *(f"{norm:.4f}" for norm in norms), f"r^{exponents[rule]:+.2f}"])
table(["‖ΔW‖ of rule", *(f"r = {r}" for r in RANKS), "grows as"], rows)

# %% [markdown]
# ## α and the learning rate
#
# In the formula, s and η appear only as a product. "Tuning α is roughly the same as tuning the
# learning rate" (LoRA, Sec. 4.1). At the first step this is exact, up to Adam's ε:

# %%
all_linear = {"r": 8, "target_modules": ("all-linear",)}
double_alpha = first_update(LoraConfig(lora_alpha=32, **all_linear))
double_rate = first_update(LoraConfig(lora_alpha=16, **all_linear), lr=2e-3)
off = global_norm({path: double_alpha[path] - double_rate[path] for path in double_rate})
relative = off / global_norm(double_rate)
print(f"twice α and twice η give the same first step, to {relative:.0e} of its length")

# %%
# Checks
assert abs(exponents["constant"] - 0.5) < 0.12, "a constant s: the update grows as √r"
assert abs(exponents["alpha/r"] + 0.5) < 0.12, "α/r: the update shrinks as 1/√r"
assert abs(exponents["alpha/sqrt(r)"]) < 0.12, "α/√r: the update keeps its size"
assert relative < 1e-3, "at the first step, α and η are one knob"

# %% [markdown]
# ## A whole run
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
# Under α/r, within a factor of two, with each of five seeds. Under α/√r the best rate of r = 32 is
# two to four times smaller, under a constant s four to eight times.
# </details>

# %%
sweep = read_sweep("scaling")
rates = sorted({row["rate"] for row in sweep})


def losses(rule, r):
    """Return the held-out losses, (rates, seeds)."""
    return np.array([of(sweep, "loss", rule=rule, r=r, rate=rate) for rate in rates])


quotients, between, lowest, rows = {}, {}, {}, []
for rule in scaling.RULES:
    of_2, of_32 = losses(rule, 2), losses(rule, 32)
    at_2, at_32 = (np.array(rates)[x.argmin(axis=0)] for x in (of_2, of_32))  # of each seed
    quotients[rule] = at_32 / at_2
    (_, near_2), (best_of_32, near_32) = (best_rates(rates, x) for x in (of_2, of_32))
    between[rule] = near_32 / near_2
    lowest[rule] = of_32[rates.index(best_of_32)]
    cells = f"{at_2.min():g} to {at_2.max():g}", f"{at_32.min():g} to {at_32.max():g}"
    quotient = f"{quotients[rule].min():g} to {quotients[rule].max():g}"
    rows.append([rule, *cells, quotient, f"{between[rule]:.2f}", spread(lowest[rule], 3)])
header = ["rule", "best rates, r = 2", "r = 32", "quotients", "of parabolas"]
table([*header, "loss at the best rate, r = 32"], rows)

# %%
scaling.draw(losses)  # one panel per rule

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
        again = scaling.run((rule, r, rate, 0))["loss"]
        own, others = (losses(rule, r)[rates.index(x)] for x in (rate, other))
        assert agrees(again, own, others), f"{rule}, r = {r} at {rate}: {again}, not {own}"

# %% [markdown]
# ## What was shown
#
# Dividing by r lets one learning rate serve two ranks of `micro`, within a factor of about 1.3 (by
# the parabolas). Dividing by √r nearly keeps the size of the first update, but not the best rate.
# At r = 32, a constant s with a rate of its own has a lower loss than α/r. At the first step, α and
# the learning rate are one knob (lesson 9 says how far that goes).
#
# **What to try.**
#
# 1. `first_update(lora_config, lr=1e-3, ...)`: change the rate. Do the exponents change?
# 2. `RANKS`: add 64 and 128. Does the same power hold above the width, 48?
# 3. `of_2, of_32 = ...`: use `[:, :2]` of both, two seeds. Which sentences above would you write?
#
# **Where to stop with a debugger.** `scaling` in `minilora/config.py`: the one place where α/r is
# computed.
#
# **Exercises.** lora-init.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). rsLoRA:
# [arXiv:2312.03732](https://arxiv.org/abs/2312.03732).

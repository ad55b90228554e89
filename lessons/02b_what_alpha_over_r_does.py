# %% [markdown]
# # 2b. What α/r does
#
# **The question.** LoRA multiplies BA by s = α/r. What is this factor for, and should it be α/√r
# instead, as rsLoRA says?
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lesson 2, and what Adam
# does.

# %%
import numpy as np
from common import QUICK, best_rates, of, read_sweep, table
from sweeps import scaling

import minilora
from minilora import LoraConfig, TrainConfig, data, lora
from minilora.layers import value_and_grad
from minilora.lora import adapted_paths, delta
from minilora.optim import adamw, adamw_init, global_norm
from minilora.tree import flatten, get

config, base, tokenizer = minilora.load("micro")
examples, _ = data.encode_rows(
    data.load_rows("questions", "train"), tokenizer, TrainConfig(mask_prompt=True)
)
batch = data.collate([[example] for example in examples[:16]])

# %% [markdown]
# ## The first step
#
# The first step of AdamW moves each number of B by the learning rate η, whatever the size of its
# gradient g: at this step Adam's averages are m̂ = g and v̂ = g², and m̂/√v̂ is ±1. A does not
# move: B is zero, so the gradient of A is zero. So after one step
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
# ![The size of the first update over the rank: without a factor it grows as √r, with α/r it falls,
# with α/√r it stays.](../figures/drawings/scaling_rules.svg)
#
# **Predict.** Under which rule does the first ΔW have the same size at every r?
#
# <details><summary>Answer</summary>
# α/√r: then s·√r is constant. Under α/r the update shrinks as 1/√r, and under a constant s it grows
# as √r.
# </details>


# %%
def first_update(lora_config, lr=1e-3, seed=0):
    """Take one step of AdamW and return {path: ΔW}."""
    adapters, frozen = lora.init(base, lora_config, np.random.default_rng(seed))
    _, gradient = value_and_grad(minilora.loss)(adapters, frozen, batch, config)
    rates = dict.fromkeys(flatten(adapters), lr)
    adapters, _ = adamw(adapters, gradient, adamw_init(adapters), rates, TrainConfig())
    return {path: delta(get(adapters, path), get(frozen, path)) for path in adapted_paths(adapters)}


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
# `sweeps/scaling.py` trains r = 2 and r = 32 at six learning rates under each rule. `read_sweep`
# reads its results. `of` gives a column of the runs with the given settings, one number per seed.
# `best_rates` returns two rates: the one of the six with the lowest loss, and the minimum of a
# parabola through this point and its two neighbours, which can be between two of the six.
#
# **Predict.** Under which rule is the best learning rate of r = 2 also the best of r = 32?
#
# <details><summary>Answer</summary>
# Under both α/r and α/√r the best rates differ by at most one step of the grid, a factor of two.
# Under a constant s, the best rate of r = 32 is several times smaller.
# </details>

# %%
sweep = read_sweep("scaling")
rates = sorted({row["rate"] for row in sweep})


def losses(rule, r):
    """Return the held-out losses, (rates, seeds)."""
    return np.array([of(sweep, "loss", rule=rule, r=r, rate=rate) for rate in rates])


quotient, between, lowest, rows = {}, {}, {}, []
for rule in scaling.RULES:
    (at_2, near_2), (at_32, near_32) = (best_rates(rates, losses(rule, r)) for r in (2, 32))
    quotient[rule], between[rule] = at_32 / at_2, near_32 / near_2
    lowest[rule] = losses(rule, 32).mean(axis=1).min()
    cells = f"{at_2:g}", f"{at_32:g}", f"{quotient[rule]:g}", f"{between[rule]:.2f}"
    rows.append([rule, *cells, f"{lowest[rule]:.4f}"])
header = ["rule", "best rate, r = 2", "r = 32", "quotient", "of parabolas"]
table([*header, "lowest loss, r = 32"], rows)

# %%
scaling.draw(losses)  # one panel per rule

# %% [markdown]
# ![Held-out loss over the learning rate at two ranks, one panel per rule](../figures/scaling.png)
#
# If one learning rate is to serve all ranks, s must fall as r grows. That is LoRA's reason for α/r,
# and it holds here. But α/r does not give the lowest loss: at r = 32 the run with a constant s, at
# a learning rate tuned for it, is the best.
#
# How fast must s fall? By the first step, the best rate under a constant s should be √16 = 4 times
# smaller at r = 32 than at r = 2. The grid says 8 times, but its steps are factors of two.
# Parabolas between its points say 5 times. Since 16^0.6 ≈ 5, the best rate falls as r^(−0.6). This
# sweep shows that s must fall with r. It is too coarse to tell √r from a somewhat larger power.

# %%
# Checks
assert quotient["constant"] == 1 / 8, "constant s: 8 times smaller, on the grid"
assert 1 / 6 < between["constant"] < 1 / 4, "and about 5 times between its points"
for rule in ("alpha/r", "alpha/sqrt(r)"):
    assert 1 / 2 <= quotient[rule] <= 2, f"{rule}: the best rates must be within one grid step"
assert min(lowest, key=lowest.get) == "constant", "the constant s must be the best at r = 32"
if not QUICK:  # one run of the sweep again; another machine rounds differently, so within a third
    in_sweep = losses("alpha/r", 32)[rates.index(4e-3), 0]
    live = scaling.run(("alpha/r", 32, 4e-3, 0))["loss"]
    assert 2 / 3 < live / in_sweep < 3 / 2, f"live {live}, in the sweep {in_sweep}"

# %% [markdown]
# ## What was shown
#
# Dividing by r or √r lets one learning rate serve several ranks. It does not make the model better.
# At the first step, α and the learning rate are one knob (lesson 8 says how far that goes).
#
# **What to try.**
#
# 1. `first_update(lora_config, lr=1e-3, ...)`: change the rate. Do the exponents change?
# 2. `RANKS`: add 64 and 128. Does the same power hold above the width, 48?
# 3. `losses(rule, r) for r in (2, 32)`: use `losses(rule, r)[:, :1]`, one seed. How much changes?
#
# **Where to stop with a debugger.** `scaling` in `minilora/config.py`: the one place where α/r is
# computed.
#
# **Exercises.** lora-init.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). rsLoRA:
# [arXiv:2312.03732](https://arxiv.org/abs/2312.03732).

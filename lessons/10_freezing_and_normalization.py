# %% [markdown]
# # 10. Freezing: norms and biases
#
# **The question.** Norms and biases are the smallest groups of parameters. What happens when they
# are trained, alone or together with LoRA?
#
# [Lesson 10b](10b_batch_statistics.py) is about a network that changes although all its weights are
# frozen, and [lesson 10c](10c_which_statistics.py) trains it. [Lesson
# 10d](10d_rates_per_layer.py) is about learning rates per group and per layer.
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** lesson 0.

# %%
import numpy as np
from common import QUICK, of, read_sweep, short, spread, table
from sweeps import compare, freezing

import minilora
from minilora.methods.registry import METHODS
from minilora.tree import num_parameters

config, micro, tokenizer = minilora.load("micro")

# %% [markdown]
# ## Few parameters, large steps
#
# BitFit (Ben Zaken et al. 2022) trains the biases alone. The weights of the norms can be trained
# alone, too. Norms are said to be delicate, and are often trained at a tenth of the learning rate.
#
# ![Bars: micro has 336 norm weights, 1,488 biases, 21,888 numbers in LoRA, 95,568 in
# all](../figures/drawings/trained_parameters.svg)
#
# The best rates below come from the sweep behind `sweeps/compare.py`, where each group is trained
# alone. Two rates are tried here.
#
# **Predict.** Do norms and biases learn best below LoRA's rate, at it, or above it?
#
# <details><summary>Answer</summary>
# At ten times LoRA's rate. Adam moves each parameter by about the learning rate per step, however
# small the gradient is. If there are few parameters, each must move far.
# </details>

# %%
SEED, STEPS = 0, short(40, 20)
METHOD_OF = {"lora": "lora", "norm": "norm", "bias": "bitfit"}
sizes, losses, best, cells = {}, {}, {}, []
for group, method in METHOD_OF.items():
    adapters, _ = METHODS[method](micro, freezing.LORA, np.random.default_rng(SEED))
    sizes[group] = num_parameters(adapters)
    best[group] = compare.TABLE[method].rate
    losses[group] = []
    for rate in (1e-2, 1e-1):
        row = freezing.run((group, rate, 1.0, 1.0, SEED), STEPS)
        losses[group].append(row["loss"])
    at = [f"{loss:.2f}" for loss in losses[group]]
    cells.append([group, sizes[group], f"{best[group]:g}", *at])
table(["alone", "parameters", "best rate", f"loss after {STEPS} steps at 0.01", "at 0.1"], cells)

# %%
# Checks
assert sizes["norm"] < sizes["bias"] < sizes["lora"], "norms are fewest, LoRA has most"
assert sizes["lora"] < num_parameters(micro) / 15, "and all are few"
for group in ("norm", "bias"):
    assert best[group] == 10 * best["lora"], f"{group}: the best rate is ten times LoRA's"
    if not QUICK:
        assert losses[group][1] < losses[group][0] - 0.08, f"{group}: 0.1 must be better than 0.01"

# %% [markdown]
# ## Norms or biases together with LoRA
#
# Trained together with LoRA, norms and biases get the learning rate times `also_train_lr_scale`, by
# default 0.1.
#
# ![Where each setting acts: dropout on the input of A, the rank between A and B, α/r on the result,
# the learning rate on the steps of A and B.](../figures/drawings/settings.svg)
#
# **Predict.** LoRA has its best rate, 0.01. Which scale is best for norms or biases, and do they
# help at all? (`sweeps/freezing.py`, three seeds)
#
# <details><summary>Answer</summary>
# No scale helps for certain. At 0.1 nothing is damaged. At 10 the loss is about twice as high, and
# the model forgets much more of its own text.
# </details>

# %%
sweep = read_sweep("freezing")


def column(name, trains, scale):
    """Return a column of the sweep at LoRA's best rate, one number per seed."""
    return np.array(of(sweep, name, trains=trains, scale=scale, rate=1e-2, decay=1.0))


alone = {name: column(name, "lora", 1.0) for name in ("loss", "notes")}
cells = [["LoRA alone", spread(alone["loss"], 3), spread(alone["notes"])]]
for group in ("norm", "bias"):
    for scale in freezing.SCALES:
        loss, notes = (column(name, f"lora+{group}", scale) for name in alone)
        cells.append([f"and {group}, {scale:g} of the rate", spread(loss, 3), spread(notes)])
table(["150 steps, three seeds", "held-out loss", "loss on the base's own text"], cells)

# %% [markdown]
# So together with LoRA, the caution is right. At ten times the rate the loss is about twice as
# high, and in every seed the model forgets more of the base's own text. At a tenth nothing is
# damaged, and nothing is gained for certain: the difference is smaller than that between two seeds
# of LoRA alone.

# %%
# Checks
between_seeds = alone["loss"].max() - alone["loss"].min()
for group in ("norm", "bias"):
    gap = abs(column("loss", f"lora+{group}", 0.1).mean() - alone["loss"].mean())
    assert gap < between_seeds / 2, f"{group} at a tenth: less than half of the seeds' difference"
    fast = {name: column(name, f"lora+{group}", 10.0) for name in alone}
    assert fast["loss"].mean() > 1.5 * alone["loss"].mean(), f"{group} at ten times: a higher loss"
    assert fast["notes"].min() > alone["notes"].max() + 0.2, f"{group} at ten times: forgetting"
if not QUICK:  # one run of the sweep again; another machine rounds differently
    again = freezing.run(("lora+norm", 1e-2, 0.1, 1.0, 0))["loss"]
    in_sweep = column("loss", "lora+norm", 0.1)[0]
    assert abs(again - in_sweep) < 0.03, f"{again} is not the sweep's {in_sweep}"

# %% [markdown]
# ## What was shown
#
# Trained alone, norms and biases need ten times LoRA's learning rate. Trained with LoRA, they do
# not help here, and a large rate for them damages the model.
#
# **What to try.**
#
# 1. `for rate in (1e-2, 1e-1)`: add 1.0. Do the norms bear it?
# 2. `STEPS = short(40, 20)`: 400 steps. Do the norms alone reach LoRA's loss?
# 3. `freezing.run(("lora+norm", ...))`: use `"lora+bias"` at a scale of 3.
#
# **Where to stop with a debugger.** `tree.trained_or_frozen`: a trained weight of a norm takes the
# place of the frozen one.
#
# **Exercises.** rms-norm, test-frozen, lora-count.
#
# **Further reading.** Ben Zaken et al. 2022, *BitFit*:
# [arXiv:2106.10199](https://arxiv.org/abs/2106.10199). Zhao et al. 2023, *Tuning LayerNorm in
# Attention*: [arXiv:2312.11420](https://arxiv.org/abs/2312.11420).

# %% [markdown]
# # Norms and biases
#
# **The question.** Norms and biases are few parameters. What happens when they are trained, alone
# or together with LoRA?
#
# The study [Batch statistics: frozen, and yet it changes](batch_statistics.py) is about a network
# that changes although all its weights are frozen, and the study [Batch statistics: frozen, and yet
# it changes](batch_statistics.py) trains it. The study [Learning rates per
# layer](rates_per_layer.py) is about learning rates per group and per layer.
#
# **Continues:** [lesson 4](../../04_the_gradient.py).
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** lesson 0.

# %%
import numpy as np

import minilora
from lessons.helpers.common import (
    FAILS,
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    claim,
    of,
    read_sweep,
    spread,
    table,
)
from lessons.studies.training import freezing_sweep as freezing
from minilora.tree import num_parameters

_, micro, _ = minilora.load("micro")
sweep = read_sweep("freezing")

# %% [markdown]
# ## Few parameters, large steps
#
# BitFit (Ben Zaken et al. 2022) trains the biases alone. The weights of the norms can be trained
# alone, too. `micro` has 336 norm weights, 1,488 biases and 95,568 numbers in all. LoRA with r = 8
# has 21,888.
#
# `freezing_sweep.py` trains each group alone at two rates, for 150 steps, with eight seeds. LoRA's
# rate in this lesson is 0.01.
#
# **Predict.** Do norms and biases have a lower held-out loss at LoRA's rate, or at ten times this
# rate?
#
# <details><summary>Answer</summary>
# At ten times the rate, on average over the seeds. (A possible reason: if there are few parameters,
# each must move far, and Adam moves each by about the learning rate per step.)
# </details>


# %%
def column(name, trains, rate=1e-2, scale=1.0):
    """Return a column of the sweep without decay, one number per seed."""
    return np.array(of(sweep, name, trains=trains, rate=rate, scale=scale, decay=1.0))


sizes = {group: int(column("trained", group)[0]) for group in ("norm", "bias", "lora")}
alone, cells = {}, []
for group in ("norm", "bias"):
    at = [column("loss", group, rate) for rate in (1e-2, 1e-1)]
    alone[group] = at[0] - at[1]
    cells.append([group, sizes[group], *(spread(loss) for loss in at)])
table(["alone", "parameters", "loss at 0.01", "at 0.1"], cells)
faster = {group: claim(f"{group}: 0.1 is better than 0.01", gain) for group, gain in alone.items()}

# %%
# Checks
assert sizes["norm"] < sizes["bias"] < sizes["lora"], "norms are fewest, LoRA has most"
assert sizes["lora"] < num_parameters(micro) / 15, "and all are few"
for group in ("norm", "bias"):
    assert faster[group] == HOLDS, f"{group}: 0.1 must be better than 0.01"

# %% [markdown]
# ## Norms or biases together with LoRA
#
# Trained together with LoRA, norms and biases get the learning rate times `also_train_lr_scale`, by
# default 0.1.
#
# **Predict.** LoRA has a rate of 0.01. Which scale is best for norms or biases, and do they help at
# all? (`freezing_sweep.py`, eight seeds)
#
# <details><summary>Answer</summary>
# At a tenth of the rate, biases lower the mean held-out loss. Norms show no effect at a tenth, and
# neither norms nor biases at the same rate. At ten times the rate, the mean loss on the base's own
# text is higher by more than half a nat.
# </details>

# %%
lora = {name: column(name, "lora") for name in ("loss", "notes")}
cells = [["LoRA alone", spread(lora["loss"], 3), spread(lora["notes"])]]
verdicts = {}
for group in ("norm", "bias"):
    for scale in freezing.SCALES:
        loss, notes = (column(name, f"lora+{group}", scale=scale) for name in lora)
        cells.append([f"and {group}, {scale:g} of the rate", spread(loss, 3), spread(notes)])
        what = f"{group}, {scale:g} of the rate"
        ratio = np.log(loss / lora["loss"])
        verdicts[group, scale, "loss"] = claim(f"{what}: a higher loss", ratio, times=True)
        more, above = notes - lora["notes"], 0.5 if scale > 1 else 0.0
        text = f"{what}: {above} nats more are forgotten" if above else f"{what}: more is forgotten"
        verdicts[group, scale, "notes"] = claim(text, more, above)
table(["150 steps, eight seeds", "held-out loss", "loss on the base's own text"], cells)

# %% [markdown]
# On this model of 0.1 million parameters, for the mean over the seeds (its 95 % interval from eight
# seeds):
#
# - A tenth of the rate: biases lower the held-out loss. Of norms, no effect is shown.
# - The same rate: no effect is shown, neither on the held-out loss nor on forgetting.
# - Ten times the rate: the loss on the base's own text is higher by more than half a nat per token.
#   With norms, the held-out loss is higher as well. With biases, this is not shown.

# %%
# Checks
for group in ("norm", "bias"):
    assert verdicts[group, 10.0, "notes"] == HOLDS, f"{group} at ten times: more is forgotten"
    for what in ("loss", "notes"):
        assert verdicts[group, 1.0, what] == OPEN, f"{group}, same rate: no effect on {what}"
    assert verdicts[group, 0.1, "notes"] == OPEN, f"{group} at a tenth: no effect on notes"
assert verdicts["bias", 0.1, "loss"] == FAILS, "biases at a tenth must lower the loss"
assert verdicts["norm", 0.1, "loss"] == OPEN, "norms at a tenth: no effect must be shown"
assert verdicts["norm", 10.0, "loss"] == HOLDS, "norms at ten times: a higher loss"
assert verdicts["bias", 10.0, "loss"] == OPEN, "biases at ten times: a higher loss is not shown"
if not QUICK:  # one run of the sweep again
    live = freezing.run(("lora+norm", 1e-2, 10.0, 1.0, 0))["notes"]
    cell = column("notes", "lora+norm", scale=10.0)
    assert belongs(live, cell, lora["notes"]), f"{live} is not the sweep's"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters, on average over eight seeds: trained alone, norms and biases
# have a lower held-out loss at ten times LoRA's learning rate. Trained with LoRA, they do no harm
# that is shown at its rate or a tenth of it, and biases lower the held-out loss at a tenth. At ten
# times the rate, the loss on the base's own text is higher.
#
# **What to try.**
#
# 1. `freezing.run(("norm", 1.0, 1.0, 1.0, 0))`: do the norms bear a rate of 1?
# 2. `freezing.run(("norm", 0.1, 1.0, 1.0, 0), 400)`: do the norms alone reach LoRA's loss?
# 3. `freezing.run(("lora+norm", ...))`: use `"lora+bias"` at a scale of 3.
#
# **Where to stop with a debugger.** `tree.overlay`: a trained weight of a norm takes the
# place of the base's.
#
# **Exercises.** rms-norm, test-frozen, lora-count.
#
# **Further reading.** Ben Zaken et al. 2022, *BitFit*:
# [arXiv:2106.10199](https://arxiv.org/abs/2106.10199). Zhao et al. 2023, *Tuning LayerNorm in
# Attention*: [arXiv:2312.11420](https://arxiv.org/abs/2312.11420).

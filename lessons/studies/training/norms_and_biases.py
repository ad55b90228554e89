# %% [markdown]
# # Norms and biases
#
# **The question.** Norms and biases are few parameters. What happens when they are trained, alone
# or together with LoRA? And what if the trained norms are lost afterwards?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** a quarter of a minute to run, ten minutes to read. **You need:** lesson 1. The study
# [Learning rates per layer](rates_per_layer.py) is about rates per group and per layer.

# %%
from dataclasses import replace

import numpy as np

import minilora
from minilora import data
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    claim,
    finetune,
    lora_adapters,
    of,
    read_sweep,
    scores_of,
    short,
)
from minilora.lessons.studies.training import freezing_sweep
from minilora.methods.replaced import also_train
from minilora.tree import flatten, num_parameters, unflatten

model, _ = minilora.load("micro")

# %% [markdown]
# ## Few parameters, large steps
#
# BitFit (Ben Zaken et al. 2022) trains the biases alone. The weights of the norms can be trained
# alone, too. `micro` has 336 norm weights, 1,488 biases and 95,568 numbers in all. In the sweep,
# LoRA has r = 2 and 5,472 numbers.
#
# `freezing_sweep.py` trains each group alone at two rates, for 150 steps, with eight seeds. LoRA's
# rate in this study is 0.01.
#
# **Predict.** Do norms and biases have a lower held-out loss at LoRA's rate, or at ten times this
# rate?

# %%
# Table
sweep = read_sweep("freezing")


def column(name, trains, rate=1e-2, scale=1.0):
    """Return a column of the sweep without decay, one number per seed."""
    return np.array(of(sweep, name, trains=trains, rate=rate, scale=scale, decay=1.0))


faster = {}
for group in ("norm", "bias"):
    slow, fast = (column("loss", group, rate) for rate in (1e-2, 1e-1))
    faster[group] = claim(f"{group} alone: 0.1 has a lower loss than 0.01", slow - fast)

# %% [markdown]
# **Answer.** At ten times the rate, on average over the seeds. (A possible reason: if there are few
# parameters, each must move far, and Adam moves each by about the learning rate per step.)
#
# ## Norms or biases together with LoRA
#
# Trained together with LoRA, norms and biases get the learning rate times `also_train_lr_scale`, by
# default 0.1.
#
# **Predict.** LoRA has a rate of 0.01. Which scale is best for norms or biases, and do they help at
# all? (`freezing_sweep.py`, eight seeds)

# %%
# Table
lora_loss, lora_notes = column("loss", "lora"), column("notes", "lora")
verdicts = {}
for group in ("norm", "bias"):
    for scale in freezing_sweep.SCALES:
        loss, notes = (column(name, f"lora+{group}", scale=scale) for name in ("loss", "notes"))
        name, above = f"{group}, {scale:g} of the rate", 0.5 if scale > 1 else 0.0
        verdicts[group, scale] = (
            claim(f"{name}: a higher loss", np.log(loss / lora_loss), times=True),
            claim(f"{name}: more than {above} nats are forgotten", notes - lora_notes, above),
        )

# %% [markdown]
# **Answer.** A tenth, for biases. On this model of 0.1 million parameters, for the mean over the
# seeds (its 95 % interval from eight seeds):
#
# - A tenth of the rate: biases lower the held-out loss. Of norms, no effect is shown.
# - The same rate: no effect is shown, neither on the held-out loss nor on forgetting.
# - Ten times the rate: the loss on the base's own text is higher by more than half a nat per token.
#   With norms, the held-out loss is higher as well. With biases, this is not shown.
#
# So together with LoRA, norms and biases need not move far.
#
# ## Norms that are not saved, and another ε
#
# Two mistakes are made after training: norms that were trained are left out of the adapter's file,
# or the model is loaded with another model's ε (`rms_norm_eps`, here 1e-5). Here, LoRA at r = 8 and
# the norms are trained for 120 steps at the same rate.
#
# **Predict.** By how much does the loss rise without the trained norms? With an ε a hundred times
# too large? Ten thousand times?

# %%
rows = data.load_rows("questions", "valid")[:100]
start = also_train(lora_adapters(model), model.base, ["norm"]), model
settings = {"iters": short(120, 12), "learning_rate": 1e-2, "also_train_lr_scale": 1.0}
adapters = finetune(start=start, held_out=rows, **settings).adapters
kept = unflatten({path: w for path, w in flatten(adapters).items() if "norm" not in path})
losses = {"without the trained norms": scores_of(kept, model, rows)["loss"]}
for eps in (1e-5, 1e-3, 1e-1):
    changed = model._replace(config=replace(model.config, rms_norm_eps=eps))
    losses[f"ε = {eps:g}"] = scores_of(adapters, changed, rows)["loss"]
for name, loss in losses.items():
    print(f"{name}: held-out loss {loss:.4f}")

# %% [markdown]
# **Answer.** In this run, by more than a fifth without the norms, and by less than a tenth with an
# ε a hundred times too large. Ten thousand times too large, the loss is above 1 nat per token.
#
# - **Symptom:** the scores of the run are right, and the loaded adapter is worse.
# - **Why:** a trained array is missing from the file, or the config is another model's.
# - **Fix:** save every trained array. minilora does; PEFT does if `modules_to_save` names the
#   norms. Read ε from the config of the base, and compare logits with the original once.
#
# ## What was shown
#
# On a model of 0.1 million parameters, on average over eight seeds: trained alone, norms and biases
# have a lower held-out loss at ten times LoRA's learning rate. Trained with LoRA, they do no harm
# that is shown at its rate or a tenth of it, and biases lower the held-out loss at a tenth. At ten
# times the rate, the loss on the base's own text is higher. In one run, leaving the trained norms
# out of the file raised the loss by more than a fifth.
#
# **What to try.**
#
# 1. `freezing_sweep.run`: call it with `("norm", 1.0, 1.0, 1.0, 0)`. Do norms bear a rate of 1?
# 2. `also_train(lora_adapters(model), ...)`: use `["norm", "bias"]`. What changes?
# 3. `if "norm" not in path`: leave out only the last norm (`model.norm`). How much is lost?
#
# **Where to stop with a debugger.** `tree.overlay`: a trained weight of a norm takes the
# place of the base's. `training.learning_rates`: the rate of a norm.
#
# **Exercises.** one-file-rms-norm, test-frozen, lora-count.
#
# **Further reading.** Ben Zaken et al. 2022, *BitFit*:
# [arXiv:2106.10199](https://arxiv.org/abs/2106.10199). Zhao et al. 2023, *Tuning LayerNorm in
# Attention*: [arXiv:2312.11420](https://arxiv.org/abs/2312.11420). Zhang and Sennrich 2019, *Root
# Mean Square Layer Normalization*: [arXiv:1910.07467](https://arxiv.org/abs/1910.07467).

# %%
# Checks
sizes = [column("trained", group)[0] for group in ("norm", "bias", "lora")]
assert [*sizes, num_parameters(model.base)] == [336, 1488, 5472, 95568], "the numbers of the text"
assert faster == {"norm": HOLDS, "bias": HOLDS}, "0.1 must be better than 0.01"
for group, loss_at_a_tenth, loss_at_ten_times in (("norm", OPEN, HOLDS), ("bias", FAILS, OPEN)):
    assert verdicts[group, 0.1] == (loss_at_a_tenth, OPEN), f"{group} at a tenth of the rate"
    assert verdicts[group, 1.0] == (OPEN, OPEN), f"{group} at the same rate: no effect"
    assert verdicts[group, 10.0] == (loss_at_ten_times, HOLDS), f"{group} at ten times: forgotten"
without, own_eps, hundred, ten_thousand = losses.values()
assert model.config.rms_norm_eps == 1e-5, "the base's own ε"
if not QUICK:
    assert without > 1.2 * own_eps, "without the trained norms, the loss must rise"
    assert hundred < 1.1 * own_eps, "an ε a hundred times too large is hardly visible"
    assert ten_thousand > 1, "an ε ten thousand times too large must destroy the model"
    again = freezing_sweep.run(("lora+norm", 1e-2, 10.0, 1.0, 0))["notes"]
    stored = column("notes", "lora+norm", scale=10.0)
    assert belongs(again, stored, lora_notes), f"{again} is not the sweep's"

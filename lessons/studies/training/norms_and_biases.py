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
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    claim,
    finetune,
    of,
    read_sweep,
    scores_of,
    short,
    spread,
    table,
)
from minilora.lessons.studies.training import freezing_sweep as freezing
from minilora.methods.replaced import also_train
from minilora.tree import flatten, num_parameters, unflatten

model, tokenizer = minilora.load("micro")
sweep = read_sweep("freezing")


def column(name, trains, rate=1e-2, scale=1.0):
    """Return a column of the sweep without decay, one number per seed."""
    return np.array(of(sweep, name, trains=trains, rate=rate, scale=scale, decay=1.0))


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
#
# <details><summary>Answer</summary>
# At ten times the rate, on average over the seeds. (LoRA's rate is tempting, because it suits this
# task. A possible reason: if there are few parameters, each must move far, and Adam moves each by
# about the learning rate per step.)
# </details>

# %%
sizes = {group: int(column("trained", group)[0]) for group in ("norm", "bias", "lora")}
faster, cells = {}, []
for group in ("norm", "bias"):
    slow, fast = (column("loss", group, rate) for rate in (1e-2, 1e-1))
    cells.append([group, sizes[group], spread(slow), spread(fast)])
    faster[group] = claim(f"{group}: 0.1 is better than 0.01", slow - fast)
table(["alone", "parameters", "loss at 0.01", "at 0.1"], cells)

# %%
# Checks
assert sizes["norm"] < sizes["bias"] < sizes["lora"], "norms are fewest, LoRA has most"
assert sizes["lora"] < num_parameters(model.base) / 15, "and all are few"
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
# text is higher by more than half a nat. (Ten times is tempting, because it is better for norms and
# biases alone. But together with LoRA, they need not move far.)
# </details>

# %%
lora = {name: column(name, "lora") for name in ("loss", "notes")}
cells = [["LoRA alone", spread(lora["loss"], 3), spread(lora["notes"])]]
verdicts = {}
for group in ("norm", "bias"):
    for scale in freezing.SCALES:
        loss, notes = (column(name, f"lora+{group}", scale=scale) for name in lora)
        what, above = f"{group}, {scale:g} of the rate", 0.5 if scale > 1 else 0.0
        cells.append([what, spread(loss, 3), spread(notes)])
        ratio = np.log(loss / lora["loss"])
        verdicts[group, scale, "loss"] = claim(f"{what}: a higher loss", ratio, times=True)
        verdicts[group, scale, "notes"] = claim(
            f"{what}: more than {above} nats are forgotten", notes - lora["notes"], above
        )
table(["150 steps, eight seeds", "held-out loss", "loss on the base's own text"], cells)

# %% [markdown]
# On this model of 0.1 million parameters, for the mean over the seeds (its 95 % interval from eight
# seeds):
#
# - A tenth of the rate: biases lower the held-out loss. Of norms, no effect is shown.
# - The same rate: no effect is shown, neither on the held-out loss nor on forgetting.
# - Ten times the rate: the loss on the base's own text is higher by more than half a nat per token.
#   With norms, the held-out loss is higher as well. With biases, this is not shown. (A possible
#   reason: each norm weight scales a whole channel of all tokens, as the drawing shows.)

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
# ## Norms that are not saved, and another ε
#
# Two mistakes are made after training: norms that were trained are left out of the adapter's file,
# or the model is loaded with another model's ε (`rms_norm_eps`). Here, LoRA at r = 8 and the norms
# are trained for 120 steps at the same rate.
#
# **Predict.** By how much does the loss rise without the trained norms? With an ε a hundred times
# too large? Ten thousand times?
#
# <details><summary>Answer</summary>
# In this run, by more than a fifth without the norms, and by less than a tenth with an ε a hundred
# times too large. Ten thousand times too large, the loss is above 1 nat per token. (To expect
# nothing from the norms is tempting, because they are 336 of 22,224 trained numbers.)
# </details>

# %%
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
adapters, _ = minilora.get_peft_model(model, lora_config, 0)
start = also_train(adapters, model.base, ["norm"]), model
rows = data.load_rows("questions", "valid")[:100]
settings = {"iters": short(120, 12), "learning_rate": 1e-2, "also_train_lr_scale": 1.0}
adapters, _, _, scores = finetune(start=start, held_out=rows, **settings)
loss = scores["loss"]
kept = {path: w for path, w in flatten(adapters).items() if "norm" not in path}
lost = scores_of(unflatten(kept), model, rows)["loss"]
print(f"held-out loss {loss:.4f}, without the trained norms {lost:.4f}")

held_out, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))
with_eps = {}
for eps in (1e-6, 1e-5, 1e-3, 1e-1):
    changed = model._replace(config=replace(model.config, rms_norm_eps=eps))
    with_eps[eps] = minilora.evaluate(adapters, changed, held_out, quiet=True)["loss"]
    print(f"ε = {eps:g}: held-out loss {with_eps[eps]:.4f}")

# %% [markdown]
# - **Symptom:** the scores of the run are right, and the loaded adapter is worse.
# - **Why:** a trained array is missing from the file, or the config is another model's.
# - **Fix:** save every trained array. minilora does; PEFT does if `modules_to_save` names the
#   norms. Read ε from the config of the base, and compare logits with the original once.

# %%
# Checks
assert model.config.rms_norm_eps == 1e-5, "the base's own ε"
if not QUICK:
    assert lost > 1.2 * loss, "without the trained norms, the loss must rise"
    assert with_eps[1e-3] < 1.1 * loss, "an ε a hundred times too large is hardly visible"
    assert with_eps[1e-1] > 1, "an ε ten thousand times too large must destroy the model"
    assert np.isclose(with_eps[1e-5], loss), "with its own ε, the model must be the same"

# %% [markdown]
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
# 1. `freezing.run`: call it with `("norm", 1.0, 1.0, 1.0, 0)`. Do norms bear a rate of 1?
# 2. `also_train(adapters, model.base, ["norm"])`: use `["norm", "bias"]`. What changes?
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

# %% [markdown]
# # MERGE 17b. Pitfalls of norms
#
# **The question.** What goes wrong if the norms are trained together with the adapters, or if the
# norms are not those of the base?
#
# **Continues:** [lesson 4](../../04_the_gradient.py).
#
# **Time:** a quarter of a minute to run, five minutes to read. **You need:** the study
# [Pitfalls](pitfalls.py).

# %%
from dataclasses import replace

import numpy as np

import minilora
from lessons.helpers.common import QUICK, figure, short, table
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation import plot
from minilora.methods.replaced import also_train
from minilora.tree import flatten, unflatten

config, base, tokenizer = minilora.load("micro")
iters = short(120, 12)
settings = TrainConfig(iters=iters, batch_size=16, learning_rate=1e-2, mask_prompt=True)
examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
held_out, _ = data.encode_rows(data.load_rows("questions", "valid")[:100], tokenizer, settings)


def scores(adapters, model_config=config):
    """Return (loss, share of right answers) on held-out questions."""
    found = minilora.evaluate(adapters, base, held_out, model_config)
    return found["loss"], found["exact_match"]


def train(norms_rate=None):
    """Train rank 8 on all projections, and the norms too if a rate is given; return the adapter.

    norms_rate: the learning rate of the norms, in units of the adapters' rate.
    """
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapters, _ = minilora.get_peft_model(base, lora_config, rng=0)
    now = settings
    if norms_rate is not None:
        adapters = also_train(adapters, base, ["norm"])
        now = replace(settings, also_train_lr_scale=norms_rate)
    adapters, _ = minilora.train(adapters, base, examples, config, now)
    return adapters


# %% [markdown]
# ## The learning rate of the norms
#
# The weights of RMSNorm can be trained together with adapters. By default, minilora gives them a
# tenth of the learning rate (`also_train_lr_scale`). Each of them scales a whole channel.
#
# **Predict.** What happens at the rate of the adapters? And at ten times this rate?
#
# <details><summary>Answer</summary>
# In this run, at the rate of the adapters the loss is less than 1.3 times that at a tenth of it. At
# ten times the rate, the loss is more than twice as high.
# </details>

# %%
RATES = (0.1, 1.0, 10.0)
sound_loss, sound_exact = scores(train())
trained, loss, exact = {}, {}, {}
for rate in RATES:
    trained[rate] = train(rate)
    loss[rate], exact[rate] = scores(trained[rate])
cells = [["frozen", f"{sound_loss:.4f}", f"{sound_exact:.0%}"]]
cells += [[f"{rate:g} × the rate", f"{loss[rate]:.4f}", f"{exact[rate]:.0%}"] for rate in RATES]
table(["norms", "held-out loss", "exact"], cells)

# %%
xlabel, ylabel = "rate of the norms / rate of the adapters", "held-out loss (nats per token)"
with figure("pitfalls_norms", xlabel, ylabel, "One run: ten times the rate is harmful") as axes:
    axes.plot(RATES, [loss[rate] for rate in RATES], marker="o", label="trained", **plot.LINES[1])
    axes.axhline(sound_loss, label="norms frozen", **plot.LINES[0])
    axes.set(xscale="log", yscale="log", ylim=(0.003, 1))
    axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Held-out loss over the rate of the norms](../../../figures/pitfalls_norms.png)
#
# - **Symptom:** at ten times the adapters' rate, the loss is more than twice as high. This is one
#   run. With eight seeds (the study [Norms and biases](norms_and_biases.py)), the loss is higher in
# the   mean, and more of the base's own text is forgotten in the mean.
# - **Why:** a possible reason: each weight scales a whole channel of all tokens.
# - **Fix:** the adapters' rate, or less. At the adapters' rate no harm is shown with the eight
#   seeds, on this model of 0.1 million parameters.

# %%
# Checks
if not QUICK:
    assert loss[1.0] < 1.3 * loss[0.1], "at the adapters' rate, norms must do no harm"
    assert loss[10.0] > 2 * loss[1.0], "at ten times the rate, they must"

# %% [markdown]
# ## Norms that are not saved, and another ε
#
# Two other mistakes are made after training: norms that were trained are left out of the adapter's
# file, or the model is loaded with another model's ε (`rms_norm_eps`).
#
# **Predict.** By how much does the loss rise without the trained norms? With an ε a hundred times
# too large? Ten thousand times?
#
# <details><summary>Answer</summary>
# In this run, by more than a fifth without the norms, and by less than a tenth with an ε a hundred
# times too large. Ten thousand times too large, the loss is above 1 nat per token.
# </details>

# %%
adapters = trained[1.0]
without = {path: w for path, w in flatten(adapters).items() if "norm" not in path}
lost, lost_exact = scores(unflatten(without))
print(f"trained norms: {loss[1.0]:.4f}; left out of the file: {lost:.4f}, {lost_exact:.0%} right")

with_eps, cells = {}, []
for eps in (1e-6, 1e-5, 1e-3, 1e-1):
    with_eps[eps], right = scores(adapters, replace(config, rms_norm_eps=eps))
    cells.append([f"{eps:g}", f"{with_eps[eps]:.4f}", f"{right:.0%}"])
table(["rms_norm_eps", "held-out loss", "exact"], cells)

# %% [markdown]
# - **Symptom:** the scores of the run are right, and the loaded adapter is worse.
# - **Why:** a trained array is missing from the file, or the config is another model's.
# - **Fix:** save every trained array. minilora does; PEFT does if `modules_to_save` names the
#   norms. Read ε from the config of the base, and compare logits with the original once.

# %%
# Checks
assert config.rms_norm_eps == 1e-5, "the base's own ε"
if not QUICK:
    assert lost > 1.2 * loss[1.0], "without the trained norms, the loss must rise"
    assert with_eps[1e-3] < 1.1 * loss[1.0], "an ε a hundred times too large is hardly visible"
    assert with_eps[1e-1] > 1, "an ε ten thousand times too large must destroy the model"
    assert np.isclose(with_eps[1e-5], loss[1.0]), "with its own ε, the model must be the same"

# %% [markdown]
# ## What was shown
#
# In one run of this small model, ten times the adapters' rate for the norms more than doubled the
# loss. Leaving the trained norms out of the file raised it by more than a fifth.
#
# **What to try.**
#
# 1. `RATES`: add 3. Where does the harm begin?
# 2. `["norm"]`: train `["norm", "bias"]`. What changes?
# 3. `if "norm" not in path`: leave out only the last norm (`model.norm`). How much is lost?
#
# **Where to stop with a debugger.** `training.learning_rates` (the rate of a norm).
#
# **Exercises.** rms-norm.
#
# **Further reading.** Zhang and Sennrich 2019, *Root Mean Square Layer Normalization*:
# [arXiv:1910.07467](https://arxiv.org/abs/1910.07467).

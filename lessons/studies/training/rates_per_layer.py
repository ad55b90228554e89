# %% [markdown]
# # Learning rates per layer
#
# **The question.** Do vision models need smaller learning rates? And should lower layers learn more
# slowly than upper ones?
#
# **Continues:** [lesson 9](../../09_the_settings.py).
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** the studies [Norms and
# biases](norms_and_biases.py) and [Batch statistics: frozen, and yet it
# changes](batch_statistics.py).

# %%
import numpy as np

from lessons.helpers import compare, pictures
from lessons.helpers.common import (
    FAILS,
    HOLDS,
    QUICK,
    belongs,
    claim,
    figure,
    of,
    read_sweep,
    spread,
    table,
)
from lessons.studies.training import unfreezing_sweep as unfreezing
from minilora import TrainConfig
from minilora.evaluation import plot
from minilora.training import learning_rates

sweep = read_sweep("unfreezing")
on_micro = {name: entry.rate for name, entry in compare.TABLE.items()}  # best rates

# %% [markdown]
# ## Vision and the learning rate
#
# Vision models are said to need smaller learning rates than language models. The network that reads
# Sans (the study [Batch statistics: frozen, and yet it changes](batch_statistics.py)) is trained on
# 1,040 pictures of an italic. The sweep trains four groups of parameters at six rates: with eight
# seeds where two rates are compared, else with three.
#
# **Predict.** LoRA's best rate on `micro` is 0.01, that of full fine-tuning 0.005 (one seed, the
# study [Other methods than LoRA](../methods/the_siblings.py)). And here? (The rate with the lowest
# mean loss on the test pictures.)
#
# <details><summary>Answer</summary>
# Of the six rates, 0.03 for both: larger, not smaller. Only the head has a smaller best rate here.
# </details>

# %%
KINDS = {"lora": "LoRA, r = 4", "norm": "γ and β", "head": "head", "full": "everything"}


def at(name, kind, rate, decay=1.0):
    """Return a column of the sweep, one number per seed."""
    return np.array(of(sweep, name, trains=kind, rate=rate, decay=decay))


def at_all_rates(name, kind):
    """Return the mean, the lowest and the highest of a column at each rate, without decay."""
    columns = [at(name, kind, rate) for rate in unfreezing.RATES]
    return np.array([[column.mean(), column.min(), column.max()] for column in columns]).T


best_rate, cells = {}, []
for kind, name in KINDS.items():
    means, _, _ = at_all_rates("loss", kind)
    best_rate[kind] = unfreezing.RATES[means.argmin()]
    trained = int(of(sweep, "trained", trains=kind)[0])
    scores = [spread(at(column, kind, best_rate[kind])) for column in ("accuracy", "old_accuracy")]
    cells.append([name, trained, f"{best_rate[kind]:g}", f"{on_micro[kind]:g}", *scores])
table(["", "trained", "best rate", "on micro", "accuracy, italic", "Sans"], cells)

smaller = {}
for kind in ("lora", "full"):
    gain = np.log(at("loss", kind, 1e-2) / at("loss", kind, 3e-3))
    smaller[kind] = claim(f"{KINDS[kind]}: a rate of 0.003 is better than 0.01", gain)
kept = at("old_accuracy", "full", 3e-3) - at("old_accuracy", "full", 3e-2)
forgets_less = claim("everything: 0.003 keeps more of Sans than 0.03", kept)

# %%
titles = ["four of the typefaces", "accuracy over learning rate"]
labels = ["", "learning rate"], ["", "accuracy on italic letters"]
SHOWN = ("sans", "bold", "italic", "slanted")
with figure("unfreezing", *labels, titles, columns=2, width=8.8) as (letters, axes):
    lines = [np.hstack(pictures.draw(face, 26, 5)[0][:10]) for face in SHOWN]
    letters.imshow(np.vstack(lines), cmap="gray_r", vmin=0, vmax=1)
    letters.set(xticks=[], yticks=[8, 24, 40, 56], yticklabels=SHOWN)
    letters.grid(False)
    for (kind, name), style, marker in zip(KINDS.items(), plot.LINES, "os^D"):
        mean, low, high = at_all_rates("accuracy", kind)
        axes.plot(unfreezing.RATES, mean, marker=marker, markersize=4, label=name, **style)
        axes.vlines(unfreezing.RATES, low, high, color=style["color"])
    axes.set(xscale="log", ylim=(0, 0.95))
    axes.legend(frameon=False, loc="upper left", ncols=2)

# %% [markdown]
# ![Typefaces, and accuracy over learning rate](../../../figures/unfreezing.png)
#
# On this network of 0.04 million parameters, the advice does not hold: a rate of 0.003, which is
# below `micro`'s best, has a higher mean loss than 0.01, for LoRA and for everything. Whether large
# vision models need smaller rates is not shown either way. But the smaller the rate, the less of
# the old typeface is forgotten, in the mean over the seeds, in all four groups.

# %%
# Checks
for kind in ("lora", "full"):
    assert smaller[kind] == FAILS, f"{kind}: a smaller rate must be worse"
    assert best_rate[kind] > on_micro[kind], f"{kind}: its best rate must be larger here"
assert best_rate["lora"] == best_rate["full"] == 0.03, "0.03 for both"
assert [kind for kind in KINDS if best_rate[kind] < on_micro[kind]] == ["head"], "only the head"
assert forgets_less == HOLDS, "the larger the rate, the less of Sans may be left"
for kind in KINDS:
    left, _, _ = at_all_rates("old_accuracy", kind)
    assert (np.diff(left) < 0).all(), f"{kind}: in the mean, each larger rate leaves less of Sans"
if not QUICK:  # one run of the sweep again
    live = unfreezing.run(("lora", 1e-2, 1.0, 0))["loss"]
    cell, rival = at("loss", "lora", 1e-2), at("loss", "lora", 3e-3)
    assert belongs(live, cell, rival), f"{live} is not the sweep's loss"

# %% [markdown]
# ## Learning rates that differ from layer to layer
#
# Discriminative fine-tuning (Howard and Ruder 2018, Sec. 3.2) divides the learning rate by 2.6 from
# each layer to the one below, because lower layers are said to be more general. The setting
# `layer_lr_decay` is the factor; 1/2.6 is about 0.4. The top layer has the full rate.
#
# **Predict.** Does a decay of 0.4 keep Sans better than a smaller rate for all layers?
#
# <details><summary>Answer</summary>
# Not here. A rate of 0.01 for all layers reads the italic better *and* keeps Sans better than 0.03
# with the decay, on average over eight seeds (everything trained).
# </details>

# %%
base, _ = pictures.reader(0)
rates = learning_rates(1.0, TrainConfig(layer_lr_decay=0.4), base)
factors = [rates[f"model.layers.{i}.linear.weight"] for i in range(4)]
print("factors of the rate, from the bottom:", ", ".join(f"{factor:.3f}" for factor in factors))


def decay_table(sweep, trains, settings, columns, header):
    """Print columns of a sweep at (rate, decay) settings; return them by setting and name."""
    found, cells = {}, []
    for rate, decay in settings:
        for name in columns:
            values = of(sweep, name, trains=trains, rate=rate, decay=decay)
            found[rate, decay, name] = np.array(values)
        scores = [spread(found[rate, decay, name]) for name in columns]
        cells.append([f"{rate:g}, decay {decay:g}", *scores])
    table(header, cells)
    return found


of_pictures = decay_table(
    sweep,
    "full",
    [(1e-2, 1.0), (3e-2, 0.4), (3e-2, 1.0)],
    ["accuracy", "old_accuracy"],
    ["pictures, everything trained", "accuracy, italic", "Sans"],
)
of_micro = decay_table(
    read_sweep("freezing"),
    "lora",
    [(1e-2, 1.0), (2e-2, 0.4), (2e-2, 0.7), (2e-2, 1.0)],
    ["loss", "exact_match", "notes"],
    ["micro, LoRA at r = 2", "held-out loss", "exact match", "loss on the base's own text"],
)
rate_or_decay = {}
for name in ("accuracy", "old_accuracy"):
    gain = of_pictures[1e-2, 1.0, name] - of_pictures[3e-2, 0.4, name]
    rate_or_decay[name] = claim(f"pictures, {name}: a smaller rate beats a decay", gain)
decays = {}
for name, sign in (("loss", 1), ("notes", -1)):
    change = sign * (of_micro[2e-2, 0.4, name] - of_micro[2e-2, 1.0, name])
    decays[name] = claim(f"micro, {name}: {'higher' if sign > 0 else 'lower'} with a decay", change)
change = of_micro[2e-2, 1.0, "notes"] - of_micro[1e-2, 1.0, "notes"]
half_the_rate = claim("micro, notes: lower with half the rate", change)

# %% [markdown]
# On the pictures, slowing all layers down was better than slowing the lower ones down. On `micro`
# (0.1 million parameters, LoRA at 0.02), a decay of 0.4 raises the mean held-out loss and lowers
# the mean loss on the base's own text. Half the rate for all layers lowers the latter as well.
# Measure before you use it.

# %%
# Checks
assert np.allclose(factors, [0.4**3, 0.4**2, 0.4, 1]), "each layer has 0.4 times the rate above"
for name in ("accuracy", "old_accuracy"):
    assert rate_or_decay[name] == HOLDS, f"a smaller rate for all must be better in {name}"
for name in ("loss", "notes"):
    assert decays[name] == HOLDS, f"micro, {name}: a decay learns less and forgets less"
assert half_the_rate == HOLDS, "micro: half the rate forgets less as well"

# %% [markdown]
# ## What was shown
#
# On one small network that reads pictures, the best rates of LoRA and of everything are larger than
# on `micro`; about vision in general, this shows nothing. On the pictures, a smaller rate for all
# layers was better than a decay over the layers (one rate and one decay).
#
# **What to try.**
#
# 1. `layer_lr_decay=0.4`: use 2.5. Which layers learn fastest then?
# 2. `unfreezing.run(("lora", 1e-2, 1.0, 0))`: pass `typeface="slanted"`. Is it as hard?
# 3. `ylim=(0, 0.95)`: plot `old_accuracy` in place of `accuracy`.
#
# **Where to stop with a debugger.** `training.learning_rates`: which layer gets which
# rate?
#
# **Exercises.** adamw, lora-count.
#
# **Further reading.** Howard and Ruder 2018: [arXiv:1801.06146](https://arxiv.org/abs/1801.06146).
# Lee et al. 2022, *Surgical Fine-Tuning*, find which layers to train for which change:
# [arXiv:2210.11466](https://arxiv.org/abs/2210.11466).

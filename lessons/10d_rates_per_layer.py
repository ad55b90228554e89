# %% [markdown]
# # 10d. Learning rates per group and per layer
#
# **The question.** Do vision models need smaller learning rates? And should lower layers learn more
# slowly than upper ones?
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** lessons 10 and 10b.

# %%
import numpy as np
import pictures
from common import QUICK, figure, of, read_sweep, spread, table
from sweeps import compare, unfreezing

from minilora import TrainConfig
from minilora.evaluation import plot
from minilora.training import learning_rates

sweep = read_sweep("unfreezing")
on_micro = {name: entry.rate for name, entry in compare.TABLE.items()}  # best rates

# %% [markdown]
# ## Vision and the learning rate
#
# Vision models are said to need smaller learning rates than language models. The network that reads
# Sans (lesson 10b) is trained on 1,040 pictures of an italic. The sweep trains four groups of
# parameters at six rates, three seeds each.
#
# ![The top layer has the full rate, the layer below half of it, the lowest a
# quarter](../figures/drawings/rates_per_layer.svg)
#
# **Predict.** LoRA's best rate on `micro` is 0.01, that of full fine-tuning 0.005. And here?
#
# <details><summary>Answer</summary>
# 0.03 for both: larger, not smaller. Only the head has a smaller best rate here.
# </details>

# %%
KINDS = {"lora": "LoRA, r = 4", "norm": "γ and β", "head": "head", "full": "everything"}


def at_all_rates(name, kind):
    """Return a column of the sweep without decay, (rates, seeds)."""
    columns = [of(sweep, name, trains=kind, rate=rate, decay=1.0) for rate in unfreezing.RATES]
    return np.array(columns)


best_rate, cells = {}, []
for kind, name in KINDS.items():
    i = int(at_all_rates("loss", kind).mean(axis=1).argmin())
    best_rate[kind] = unfreezing.RATES[i]
    trained = int(of(sweep, "trained", trains=kind)[0])
    scores = [spread(at_all_rates(column, kind)[i]) for column in ("accuracy", "old_accuracy")]
    cells.append([name, trained, f"{best_rate[kind]:g}", f"{on_micro[kind]:g}", *scores])
table(["", "trained", "best rate", "on micro", "accuracy, italic", "Sans"], cells)

# %%
titles = ["four of the typefaces", "accuracy over learning rate, three seeds"]
labels = ["", "learning rate"], ["", "accuracy on italic letters"]
SHOWN = ("sans", "bold", "italic", "slanted")
with figure("unfreezing", *labels, titles, columns=2, width=8.8) as (letters, axes):
    lines = [np.hstack(pictures.draw(face, 26, 5)[0][:10]) for face in SHOWN]
    letters.imshow(np.vstack(lines), cmap="gray_r", vmin=0, vmax=1)
    letters.set(xticks=[], yticks=[8, 24, 40, 56], yticklabels=SHOWN)
    letters.grid(False)
    for (kind, name), style, marker in zip(KINDS.items(), plot.LINES, "os^D"):
        y = at_all_rates("accuracy", kind)
        axes.plot(
            unfreezing.RATES, y.mean(axis=1), marker=marker, markersize=4, label=name, **style
        )
        axes.vlines(unfreezing.RATES, y.min(axis=1), y.max(axis=1), color=style["color"])
    axes.set(xscale="log", ylim=(0, 0.95))
    axes.legend(frameon=False, loc="upper left", ncols=2)

# %% [markdown]
# ![Typefaces, and accuracy over learning rate](../figures/unfreezing.png)
#
# The advice does not hold here. The best rate of LoRA is not smaller than on `micro`, and that of
# full fine-tuning is six times as large. The best rate depends more on the trained parameters, and
# on how far they must move, than on vision. But the smaller the rate, the less of the old typeface
# is forgotten.

# %%
# Checks
for kind in ("lora", "full"):
    assert best_rate[kind] > on_micro[kind], f"{kind}: its best rate must be larger here"
forgotten = at_all_rates("old_accuracy", "full").mean(axis=1)
assert (np.diff(forgotten) < 0).all(), "the larger the rate, the less of Sans may be left"
if not QUICK:  # one run of the sweep again
    again = unfreezing.run(("lora", 1e-2, 1.0, 0))["accuracy"]
    in_sweep = of(sweep, "accuracy", trains="lora", rate=1e-2, decay=1.0)[0]
    assert abs(again - in_sweep) < 0.05, f"{again} is not the sweep's {in_sweep}"

# %% [markdown]
# ## Learning rates that differ from layer to layer
#
# Discriminative fine-tuning (Howard and Ruder 2018, Sec. 3.2) divides the learning rate by 2.6 from
# each layer to the one below, because lower layers are said to be more general. The setting
# `layer_lr_decay` is the factor; 1/2.6 is about 0.4.
#
# **Predict.** Does a decay of 0.4 keep Sans better than a smaller rate for all layers?
#
# <details><summary>Answer</summary>
# No. The smaller rate for all layers reads the italic better *and* keeps Sans better.
# </details>

# %%
base, _ = pictures.reader(0)
rates = learning_rates(1.0, TrainConfig(layer_lr_decay=0.4), base)
factors = [rates[f"model.layers.{i}.linear.weight"] for i in range(4)]
print("factors of the rate, from the bottom:", ", ".join(f"{factor:.3f}" for factor in factors))


def decay_table(sweep, trains, settings, columns, header):
    """Print columns of a sweep at (rate, decay) settings; return their means by setting."""
    means, cells = {}, []
    for rate, decay in settings:
        found = [of(sweep, name, trains=trains, rate=rate, decay=decay) for name in columns]
        means[rate, decay] = [float(np.mean(column)) for column in found]
        cells.append([f"{rate:g}, decay {decay:g}", *(spread(column) for column in found)])
    table(header, cells)
    return means


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

# %% [markdown]
# A new typeface changes strokes, and the *lower* layers recognize strokes. So slowing them down is
# wrong here. On `micro`, a decay learns less and forgets less, which a smaller rate does as well; a
# decay of 0.7 at 0.02 is a compromise. Measure before you use it.

# %%
# Checks
assert np.allclose(factors, [0.4**3, 0.4**2, 0.4, 1]), "each layer has 0.4 times the rate above"
for smaller_rate, decayed in zip(of_pictures[1e-2, 1.0], of_pictures[3e-2, 0.4]):
    assert smaller_rate > decayed, "a smaller rate for all must be better in both scores"
decays = [of_micro[2e-2, decay] for decay in (0.4, 0.7, 1.0)]
losses, _, notes = zip(*decays)
assert list(losses) == sorted(losses, reverse=True), "micro: the more decay, the less is learned"
assert list(notes) == sorted(notes), "micro: the more decay, the less is forgotten"

# %% [markdown]
# ## What was shown
#
# The best learning rate depends on the trained parameters, not on vision. A decay over the layers
# does here what a smaller rate does, or less.
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

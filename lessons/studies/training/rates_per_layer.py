# %% [markdown]
# # Learning rates per layer
#
# **The question.** Do vision models need smaller learning rates? And should lower layers learn more
# slowly than upper ones?
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 8. The study [Batch
# statistics: frozen, and yet it changes](batch_statistics.py) introduces the network.

# %%
import numpy as np

from minilora import TrainConfig
from minilora.lessons.helpers import compare, convnet
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    QUICK,
    belongs,
    claim,
    of,
    read_sweep,
    table,
)
from minilora.lessons.studies.training import unfreezing_sweep as unfreezing
from minilora.training import learning_rates

sweep = read_sweep("unfreezing")

# %% [markdown]
# ## Vision and the learning rate
#
# Vision models are said to need smaller learning rates than language models. The network that reads
# Sans (the study [Batch statistics: frozen, and yet it changes](batch_statistics.py)) is trained on
# 1,040 pictures of an italic. The sweep trains four groups of parameters at six rates: LoRA at
# r = 4 (`lora`), γ and β (`norm`), the `head`, and everything (`full`). It has eight seeds where
# two rates are compared, else three.
#
# **Predict.** LoRA's best rate on `micro` is 0.01, that of full fine-tuning 0.005 (one seed, the
# study [Other methods than LoRA](../methods/the_siblings.py)). And here? (The rate with the lowest
# mean loss on the test pictures.)
#
# <details><summary>Answer</summary>
# Of the six rates, 0.03 for both: larger, not smaller. (Smaller is tempting, because it is the
# usual advice.) Only the head has a smaller best rate here.
# </details>

# %%
RATES, KINDS = unfreezing.RATES, unfreezing.KINDS


def at(name, kind, rate, decay=1.0):
    """Return a column of the sweep, one number per seed."""
    return np.array(of(sweep, name, trains=kind, rate=rate, decay=decay))


def means(name, kind):
    """Return the mean of a column at each rate, without decay."""
    return np.array([at(name, kind, rate).mean() for rate in RATES])


best, on_micro, cells = {}, {}, []
for kind in KINDS:
    best[kind] = RATES[means("loss", kind).argmin()]
    on_micro[kind] = compare.TABLE[kind].rate
    accuracies = [f"{accuracy:.2f}" for accuracy in means("accuracy", kind)]
    cells.append([kind, f"{on_micro[kind]:g}", f"{best[kind]:g}", *accuracies])
header = ["accuracy on italic", "best rate on micro", "here", *(f"at {rate:g}" for rate in RATES)]
table(header, cells)

smaller = {}
for kind in ("lora", "full"):
    gain = np.log(at("loss", kind, 1e-2) / at("loss", kind, 3e-3))
    smaller[kind] = claim(f"{kind}: a rate of 0.003 is better than 0.01", gain)
kept = at("old_accuracy", "full", 3e-3) - at("old_accuracy", "full", 3e-2)
forgets_less = claim("full: 0.003 keeps more of Sans than 0.03", kept)

# %% [markdown]
# On this network of 0.04 million parameters, the advice does not hold: a rate of 0.003, which is
# below `micro`'s best, has a higher mean loss than 0.01, for LoRA and for everything. Whether large
# vision models need smaller rates is not shown either way. But the smaller the rate, the less of
# the old typeface is forgotten, in the mean over the seeds, in all four groups.

# %%
# Checks
for kind in ("lora", "full"):
    assert smaller[kind] == FAILS, f"{kind}: a smaller rate must be worse"
    assert best[kind] > on_micro[kind], f"{kind}: its best rate must be larger here"
assert best["lora"] == best["full"] == 0.03, "0.03 for both"
assert [kind for kind in KINDS if best[kind] < on_micro[kind]] == ["head"], "only the head"
assert forgets_less == HOLDS, "the larger the rate, the less of Sans may be left"
for kind in KINDS:
    left = np.diff(means("old_accuracy", kind))
    assert (left < 0).all(), f"{kind}: in the mean, each larger rate leaves less of Sans"
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
# with the decay, on average over eight seeds (everything trained). (Yes is tempting, because a
# decay protects the lower layers. But a smaller rate protects all of them.)
# </details>

# %%
base = convnet.network(26, np.random.default_rng(0))
rates = learning_rates(1.0, TrainConfig(layer_lr_decay=0.4), base)
factors = [rates[f"model.layers.{i}.linear.weight"] for i in range(4)]
print("factors of the rate, from the bottom:", ", ".join(f"{factor:.3f}" for factor in factors))


micro = read_sweep("freezing")
CLAIMS = {  # a column, and (rate, decay) of its larger and of its smaller value
    "pictures: a smaller rate beats a decay": (sweep, "full", "accuracy", (1e-2, 1.0), (3e-2, 0.4)),
    "and keeps Sans better": (sweep, "full", "old_accuracy", (1e-2, 1.0), (3e-2, 0.4)),
    "micro: a decay raises the loss": (micro, "lora", "loss", (2e-2, 0.4), (2e-2, 1.0)),
    "and lowers the loss on the notes": (micro, "lora", "notes", (2e-2, 1.0), (2e-2, 0.4)),
    "half the rate lowers it as well": (micro, "lora", "notes", (2e-2, 1.0), (1e-2, 1.0)),
}
verdicts = {}
for sentence, (rows, trains, name, *settings) in CLAIMS.items():
    larger, less = (
        np.array(of(rows, name, trains=trains, rate=rate, decay=decay)) for rate, decay in settings
    )
    verdicts[sentence] = claim(sentence, larger - less)

# %% [markdown]
# On the pictures, slowing all layers down was better than slowing the lower ones down. On `micro`
# (0.1 million parameters, LoRA at 0.02), a decay of 0.4 raises the mean held-out loss and lowers
# the mean loss on the base's own text. Half the rate for all layers lowers the latter as well.
# Measure before you use it.

# %%
# Checks
assert np.allclose(factors, [0.4**3, 0.4**2, 0.4, 1]), "each layer has 0.4 times the rate above"
for sentence, found in verdicts.items():
    assert found == HOLDS, sentence

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
# 3. `means("accuracy", kind)`: print `old_accuracy` in its place.
#
# **Where to stop with a debugger.** `training.learning_rates`: which layer gets which
# rate?
#
# **Exercises.** adamw, lora-count.
#
# **Further reading.** Howard and Ruder 2018: [arXiv:1801.06146](https://arxiv.org/abs/1801.06146).
# Lee et al. 2022, *Surgical Fine-Tuning*, find which layers to train for which change:
# [arXiv:2210.11466](https://arxiv.org/abs/2210.11466).

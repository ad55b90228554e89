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
import matplotlib.pyplot as plt
import numpy as np

from minilora.lessons.helpers import compare
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    QUICK,
    belongs,
    claim,
    curve_of_seeds,
    of,
    read_sweep,
)
from minilora.lessons.studies.training import unfreezing_sweep

# %% [markdown]
# ## Vision and the learning rate
#
# Vision models are said to need smaller learning rates than language models. The network that reads
# Sans (the study [Batch statistics: frozen, and yet it changes](batch_statistics.py), 0.04 million
# parameters) is trained on 1,040 pictures of an italic: LoRA at r = 4 (`lora`), or everything
# (`full`), with eight seeds.
#
# **Predict.** LoRA's best rate on `micro` is 0.01, that of full fine-tuning 0.005 (one seed, the
# study [Other methods than LoRA](../methods/the_siblings.py)). And here? (The rate with the lowest
# mean loss on the test pictures.)

# %%
# Picture
sweep = read_sweep("unfreezing")
RATES = unfreezing_sweep.RATES[1:5]


def at(name, kind, rate, decay=1.0, rows=sweep):
    """Return a column of a sweep, one number per seed."""
    return np.array(of(rows, name, trains=kind, rate=rate, decay=decay))


losses = {kind: np.array([at("loss", kind, rate) for rate in RATES]) for kind in ("lora", "full")}
_, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for line, (kind, seeds) in enumerate(losses.items()):
    curve_of_seeds(axes, RATES, seeds, kind, line)
axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss on the italic, in nats")
axes.legend()
plt.show()

# %%
# Table
smaller = {}
for kind, (smallest, second, *_) in losses.items():
    gain = np.log(second / smallest)
    smaller[kind] = claim(f"{kind}: a rate of 0.003 is better than 0.01", gain)
kept = at("old_accuracy", "full", 3e-3) - at("old_accuracy", "full", 3e-2)
forgets_less = claim("full: 0.003 keeps more of Sans than 0.03", kept)

# %% [markdown]
# **Answer.** Of these four rates, 0.03 for both: larger, not smaller. So on this network of 0.04
# million parameters, the advice does not hold: a rate of 0.003, which is below `micro`'s best, has
# a higher mean loss than 0.01, for LoRA and for everything. Whether large vision models need
# smaller rates is not shown either way. But if everything is trained, 0.003 forgets less of the old
# typeface than 0.03.
#
# ## Learning rates that differ from layer to layer
#
# Discriminative fine-tuning (Howard and Ruder 2018, Sec. 3.2) divides the learning rate by 2.6 from
# each layer to the one below, because lower layers are said to be more general. The setting
# `layer_lr_decay` is the factor; 1/2.6 is about 0.4. The top layer has the full rate.
#
# **Predict.** Does a decay of 0.4 keep Sans better than a smaller rate for all layers?

# %%
# Table
micro = read_sweep("freezing")
claims = {  # larger minus smaller values
    "pictures: 0.01 reads better than 0.03 with a decay": (
        at("accuracy", "full", 1e-2) - at("accuracy", "full", 3e-2, 0.4)
    ),
    "and keeps Sans better": (
        at("old_accuracy", "full", 1e-2) - at("old_accuracy", "full", 3e-2, 0.4)
    ),
    "micro: a decay raises the loss": (
        at("loss", "lora", 2e-2, 0.4, micro) - at("loss", "lora", 2e-2, rows=micro)
    ),
    "and lowers the loss on the notes": (
        at("notes", "lora", 2e-2, rows=micro) - at("notes", "lora", 2e-2, 0.4, micro)
    ),
    "half the rate lowers it as well": (
        at("notes", "lora", 2e-2, rows=micro) - at("notes", "lora", 1e-2, rows=micro)
    ),
}
verdicts = {sentence: claim(sentence, differences) for sentence, differences in claims.items()}

# %% [markdown]
# **Answer.** Not here. A decay protects the lower layers, but a smaller rate protects all of them:
# a rate of 0.01 for all layers reads the italic better *and* keeps Sans better than 0.03 with the
# decay, on average over eight seeds (everything trained).
#
# On `micro` (0.1 million parameters, LoRA at 0.02), a decay of 0.4 raises the mean held-out loss
# and lowers the mean loss on the base's own text. Half the rate for all layers lowers the latter as
# well. Measure before you use it.
#
# ## What was shown
#
# On one small network that reads pictures, the best rates of LoRA and of everything are larger than
# on `micro`; about vision in general, this shows nothing. On the pictures, a smaller rate for all
# layers was better than a decay over the layers (one rate and one decay).
#
# **What to try.**
#
# 1. `at("loss", kind, rate)`: draw "old_accuracy" in its place.
# 2. `unfreezing_sweep.run(("lora", 1e-2, 1.0, 0))`: pass `typeface="slanted"`. Is it as hard?
# 3. The same call: use a decay of 2.5, so that the lowest layer learns fastest. Is that worse?
#
# **Where to stop with a debugger.** `training.learning_rates`: which layer gets which
# rate?
#
# **Exercises.** adamw, lora-count.
#
# **Further reading.** Howard and Ruder 2018: [arXiv:1801.06146](https://arxiv.org/abs/1801.06146).
# Lee et al. 2022, *Surgical Fine-Tuning*, find which layers to train for which change:
# [arXiv:2210.11466](https://arxiv.org/abs/2210.11466).

# %%
# Checks
assert [compare.TABLE[kind].rate for kind in losses] == [1e-2, 5e-3], "the best rates on micro"
for kind, seeds in losses.items():
    assert RATES[seeds.mean(axis=1).argmin()] == 0.03, f"{kind}: the best rate must be 0.03"
    assert smaller[kind] == FAILS, f"{kind}: a smaller rate must be worse"
assert forgets_less == HOLDS, "the larger the rate, the less of Sans may be left"
for sentence, found in verdicts.items():
    assert found == HOLDS, sentence
if not QUICK:  # one run of the sweep again
    live = unfreezing_sweep.run(("lora", 1e-2, 1.0, 0))["loss"]
    assert belongs(live, losses["lora"][1], losses["lora"][0]), f"{live} is not the sweep's loss"

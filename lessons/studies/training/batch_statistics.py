# %% [markdown]
# # Batch statistics: frozen, and yet it changes
#
# **The question.** A network with batch normalization has all weights frozen. Can it still change?
# And if it is fine-tuned, which statistics may be used in training, and which in validation?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** half a minute to run, a quarter of an hour to read. **You need:** lesson 1, and what a
# mean and a variance are.

# %%
import numpy as np

from minilora import TrainConfig
from minilora.lessons.helpers import convnet, pictures
from minilora.lessons.helpers.common import QUICK, short, table
from minilora.tree import num_parameters, tree_map

N = short(1040, 260)

# %% [markdown]
# ## Frozen, and yet it changes
#
# Batch normalization subtracts a mean μ and divides by a standard deviation (Ioffe and Szegedy
# 2015, Alg. 1):
#
# $$y = \gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta$$
#
# In training, μ and σ² are those of the batch. *Running statistics* move towards them in each
# forward pass (here, a tenth of the way), and are used in validation. No gradient is involved.
#
# The data are pictures of letters, drawn in the typefaces of matplotlib. A small convolutional
# network (`convnet.py`, 0.04 million parameters) was trained to read DejaVu Sans. It gives the
# patches of a picture to `layers.linear`, so LoRA adapts a convolution as it adapts a linear layer.
# Thirty batches of bold letters pass through the network. Only the running statistics change.
#
# **Predict.** No parameter changes. Does the accuracy, on bold and on Sans?

# %%
base, running = pictures.reader(0, *short((), (200,)))
bold, bold_test = pictures.draw("bold", N, 0), pictures.draw("bold", N, 99)
sans_test = pictures.draw("sans", N, 99)

drifted = running
for i in range(30):
    _, moments = convnet.forward({}, base, bold[0][32 * i % (N - 32) :][:32])
    drifted = tree_map(lambda old, new: 0.9 * old + 0.1 * new, drifted, moments)
accuracy = {}
for name, statistics in (("of the base", running), ("after thirty batches", drifted)):
    accuracy[name] = [
        convnet.evaluate({}, base, test, statistics)["accuracy"] for test in (sans_test, bold_test)
    ]
cells = [[name, *(f"{share:.2f}" for share in shares)] for name, shares in accuracy.items()]
table(["running statistics", "accuracy on Sans", "on bold"], cells)

# %% [markdown]
# **Answer.** Yes. On bold it rises to more than 0.85 (Li et al. 2016 call this adaptive batch
# normalization), and on Sans it falls by more than 0.3 (one seed). "No gradient" does not mean
# "frozen". If you freeze such a network, also decide which statistics it uses. If you save an
# adapter for it, save them, too. A Llama has no such state: RMSNorm normalizes each token's own
# vector.
#
# ## Four ways to train and to validate
#
# LoRA is trained on bold letters.
#
# **Predict.** A step of LoRA may normalize with the base's statistics or with its batch's.
# Validation may use the base's ("old"), or those of the training pictures under the adapted weights
# ("new"). Which of these combinations fails? Does the training loss show it?

# %%
losses = {}
for used, moments in (("base", running), ("batch", None)):
    adapters, base = convnet.low_rank(base, 4, 8, np.random.default_rng(0))
    settings = TrainConfig(short(150, 60), 32, learning_rate=1e-2)
    adapters, steps = convnet.fit(adapters, base, bold, settings, moments)
    new = convnet.statistics(adapters, base, bold[0])
    scores = [convnet.evaluate(adapters, base, bold_test, of)["loss"] for of in (running, new)]
    losses[used] = [np.mean(steps[-20:]), *scores]
cells = [[f"the {used}'s", *(f"{x:.2f}" for x in row)] for used, row in losses.items()]
table(["statistics of a step", "train loss", "bold: old", "new"], cells)

# %% [markdown]
# **Answer.** Trained with the batch's, validated with the base's (second row, "old"). The training
# loss does not show it: the validation loss is more than five times as high, as in overfitting. But
# with new statistics, the same weights have less than a fifth of that loss. Use the base's
# statistics in both places, or new ones in both. (One seed, 32 pictures per step.)
#
# ## What was shown
#
# The running statistics of batch normalization change without a gradient, and so does the accuracy
# of the network. Train and validate with the same kind of statistics.
#
# **What to try.**
#
# 1. `0.9 * old + 0.1 * new`: use 0.99 and 0.01. How many batches must pass now?
# 2. `pictures.draw("bold", ...)`: use "italic". Are new statistics enough?
# 3. `TrainConfig(short(150, 60), 32, ...)`: use 4 pictures per step. Is the training loss with the
#    batch's statistics still the lowest loss of its row?
#
# **Where to stop with a debugger.** `convnet.forward`: `used`, with `running` given and with None.
# `convnet.batch_norm`: `moments`, in training and in validation.
#
# **Exercises.** one-file-rms-norm, test-frozen.
#
# **Further reading.** Ioffe and Szegedy 2015: [arXiv:1502.03167](https://arxiv.org/abs/1502.03167).
# Li et al. 2016: [arXiv:1603.04779](https://arxiv.org/abs/1603.04779). Ioffe 2017, *Batch
# Renormalization*, on small batches: [arXiv:1702.03275](https://arxiv.org/abs/1702.03275). Wu and
# Johnson 2021, *Rethinking "Batch" in BatchNorm*:
# [arXiv:2105.07576](https://arxiv.org/abs/2105.07576).

# %%
# Checks
assert 35_000 < num_parameters(base) < 45_000, "0.04 million parameters"
(sans, of_bold), (sans_after, bold_after) = accuracy.values()
assert sans - sans_after > (0.12 if QUICK else 0.3), "Sans must be read far worse"
assert bold_after - of_bold > 0.12, "bold must become readable"
assert QUICK or bold_after > 0.85, "nearly all of it"
train, old, renewed = losses["batch"]
assert old > (1.6 if QUICK else 5) * renewed, "the trap: a high loss with the base's statistics"
assert old > (2 if QUICK else 5) * train, "which the training loss does not show"
assert QUICK or losses["base"][1] < 0.6 * old, "the base's statistics in both places are sound"

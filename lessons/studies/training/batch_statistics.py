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
from autograd import grad

import minilora
from minilora import TrainConfig
from minilora.lessons.helpers import convnet, pictures
from minilora.lessons.helpers.common import QUICK, short, table
from minilora.optim import global_norm
from minilora.tree import num_parameters, tree_map, unflatten

SEED = 0
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
# network (`convnet.py`) was trained to read DejaVu Sans. It gives the patches of a picture to
# `layers.linear`, so LoRA adapts a convolution as it adapts a linear layer. Thirty batches of bold
# letters pass through the network. Only the running statistics change.
#
# **Predict.** No parameter changes. Does the accuracy?
#
# <details><summary>Answer</summary>
# Yes. On bold it rises to more than 0.85 (Li et al. 2016 call this adaptive batch normalization),
# and on Sans it falls by more than 0.3. (No is tempting, because in a Llama all numbers that the
# forward pass uses are parameters.)
# </details>

# %%
base, running = pictures.reader(SEED, *short((), (200,)))
bold, bold_test = pictures.draw("bold", N, SEED), pictures.draw("bold", N, 99)
sans_test = pictures.draw("sans", N, 99)


def accuracies(statistics):
    """Return the accuracy of the frozen network on letters in Sans, and in bold."""
    tests = sans_test, bold_test
    return [convnet.evaluate({}, base, test, statistics)["accuracy"] for test in tests]


drifted = running
for i in range(30):
    _, moments = convnet.forward({}, base, bold[0][32 * i % (N - 32) :][:32])
    drifted = tree_map(lambda old, new: 0.9 * old + 0.1 * new, drifted, moments)
(sans, of_bold), (sans_after, bold_after) = accuracies(running), accuracies(drifted)

micro, _ = minilora.load("micro")
tokens = np.random.default_rng(SEED).integers(0, micro.config.vocab_size, (2, 40))
apart, together = (minilora.forward({}, micro, t)[0] for t in (tokens[:1], tokens))
one, other = (convnet.forward({}, base, bold_test[0][i : i + 8])[0] for i in (0, 4))
in_two_batches = np.abs(one[4:] - other[:4]).max()
print(f"running statistics: {num_parameters(running)} numbers; accuracy on Sans", end=" ")
print(f"{sans:.2f}, then {sans_after:.2f}; on bold {of_bold:.2f}, then {bold_after:.2f}")
print(f"the same pictures in two batches: logits differ by up to {in_two_batches:.1f}")
print(f"a Llama's row in two batches: logits differ by up to {np.abs(apart - together).max():.0e}")

# %% [markdown]
# (One network of 0.04 million parameters, one seed.) "No gradient" does not mean "frozen". If you
# freeze such a network, also decide which statistics it uses. If you save an adapter for it, save
# them, too. A Llama has no such state: RMSNorm normalizes each token's own vector. Up to rounding,
# the logits of a row of `micro` do not depend on the other row.

# %%
# Checks
assert sans - sans_after > (0.12 if QUICK else 0.3), "Sans must be read far worse"
assert bold_after - of_bold > 0.12, "bold must become readable"
assert QUICK or bold_after > 0.85, "nearly all of it"
assert 35_000 < num_parameters(base) < 45_000, "0.04 million parameters"
assert np.allclose(apart, together, rtol=0, atol=1e-4), "a Llama's row must not see other rows"
assert num_parameters(running) == 224, "a mean and a variance for each of 16 + 32 + 64 channels"
assert in_two_batches > 1, "a picture's logits must depend on its batch"

# %% [markdown]
# ## Four ways to train and to validate
#
# LoRA is trained on bold letters. A step may normalize with the base's statistics or with its
# batch's. Validation may use the base's ("old"), or those of the training pictures under the
# adapted weights ("new").
#
# **Predict.** A step of LoRA may normalize with the base's statistics or with its batch's.
# Validation may use the base's, or those of the training pictures under the adapted weights. Which
# of these combinations fails? Does the training loss show it?
#
# <details><summary>Answer</summary>
# Trained with the batch's, validated with the base's. The training loss does not show it: with 32
# pictures per step, the validation loss is more than five times as high, as in overfitting. (Yes is
# tempting, because the training loss shows most mistakes. But in training, nothing is wrong here.)
# </details>

# %%
results, cells = {}, []
for size in (32, 4):
    for used, moments in (("base", running), ("batch", None)):
        adapters, base = convnet.low_rank(base, 4, 8, np.random.default_rng(SEED))
        settings = TrainConfig(short(150, 60), size, learning_rate=1e-2, seed=SEED)
        adapters, losses = convnet.fit(adapters, base, bold, settings, moments)
        new = convnet.statistics(adapters, base, bold[0])
        tests = (bold_test, running), (bold_test, new), (sans_test, running)
        scores = [convnet.evaluate(adapters, base, *test) for test in tests]
        row = [np.mean(losses[-20:])] + [score["loss"] for score in scores[:2]]
        row += [score["accuracy"] for score in scores]
        results[size, used] = row
        cells.append([f"{size}, the {used}'s", *(f"{x:.2f}" for x in row)])
header = ["pictures per step, statistics", "train loss", "bold: old", "new"]
table([*header, "accuracy: bold, old", "new", "Sans, old"], cells)

# %% [markdown]
# (One network of 0.04 million parameters, one seed.) The second row is the trap. It is not only
# overfitting: with new statistics, the same weights have less than a fifth of the loss. Use the
# base's statistics in both places, or new ones in both.
#
# With the statistics of four pictures per step, the training loss is more than twice the validation
# loss with new statistics. (A possible reason: the mean and variance of four pictures are noisy.)
#
# The last column: weights trained with the statistics of 32 pictures still read more than 0.8 of
# Sans with its old statistics, and more than weights trained with the base's.
#
# **Predict.** What is the gradient of a bias in front of batch normalization?
#
# <details><summary>Answer</summary>
# Zero up to rounding, if the batch's statistics are used: the mean contains the bias, and is
# subtracted. (With running statistics, it is not zero: they do not contain it.)
# </details>

# %%
biases = {f"model.layers.{i}.linear.bias": np.zeros(convnet.LAYERS[i][3], "f4") for i in range(3)}
some = bold[0][:64], bold[1][:64]
with_batch, with_running = (
    global_norm(grad(convnet.loss)(unflatten(biases), base, some, moments))
    for moments in (None, running)
)
print(f"gradient: {with_batch:.0e} with the batch's statistics, {with_running:.0e} with running")

# %%
# Checks
train, old, new, *_, sans = results[32, "batch"]
assert old > 1.6 * new and old > 2 * train, "the trap: a high loss with the base's statistics"
noisy_train, _, noisy_new, *_ = results[4, "batch"]
assert noisy_train > 1.5 * noisy_new, "four per step: the training loss is higher"
if not QUICK:
    _, sound, *_, sans_sound = results[32, "base"]
    assert old > 5 * train, "the trap: the validation loss is many times the training loss"
    assert old > 5 * new, "and many times the loss with new statistics"
    assert noisy_train > 2 * noisy_new, "four per step: far higher"
    assert sans > 0.8, "Sans is still read"
    assert sound < 0.6 * old, "the base's statistics in both places are sound"
    assert sans > sans_sound + 0.07, "Sans is kept by statistics"
assert with_batch < 1e-4 * with_running, "no gradient reaches a bias before batch normalization"

# %% [markdown]
# ## What was shown
#
# The running statistics of batch normalization change without a gradient, and so does the accuracy
# of the network. RMSNorm has no such statistics. Train and validate with the same kind of
# statistics. With the batch's statistics, a bias in front of batch normalization gets no gradient.
#
# **What to try.**
#
# 1. `0.9 * old + 0.1 * new`: use 0.99 and 0.01. How many batches must pass now?
# 2. `pictures.draw("bold", ...)`: use "italic". Are new statistics enough?
# 3. `for size in (32, 4)`: add 2. What does the training loss with the batch's statistics become?
# 4. `np.zeros(convnet.LAYERS[i][3], "f4")`: start the biases at 1. Is their gradient still zero?
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

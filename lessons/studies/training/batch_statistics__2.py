# %% [markdown]
# # MERGE 10c. Batch statistics in training and in validation
#
# **The question.** A network with batch normalization is fine-tuned. Which statistics may be used
# in training, and which in validation?
#
# **Continues:** [lesson 4](../../04_the_gradient.py).
#
# **Time:** a few seconds to run, five minutes to read. **You need:** the study [Batch statistics:
# frozen, and yet it changes](batch_statistics.py).

# %%
import numpy as np
from autograd import grad

from lessons.helpers import convnet, pictures
from lessons.helpers.common import QUICK, short, table
from minilora import TrainConfig
from minilora.optim import global_norm
from minilora.tree import unflatten

SEED, N = 0, short(1040, 260)
base, running = pictures.reader(SEED, *short((), (200,)))  # reads Sans; its running statistics
bold, bold_test = pictures.draw("bold", N, SEED), pictures.draw("bold", N, 99)
sans_test = pictures.draw("sans", N, 99)

# %% [markdown]
# ## Four combinations
#
# LoRA is trained on bold letters. A step may normalize with the base's statistics or with its
# batch's. Validation may use the base's ("old"), or those of the training pictures under the
# adapted weights ("new").
#
# **Predict.** Which of these combinations fails? Does the training loss show it?
#
# <details><summary>Answer</summary>
# Trained with the batch's, validated with the base's. The training loss does not show it: with 32
# pictures per step, the validation loss is more than five times as high, as in overfitting.
# </details>

# %%
results, cells = {}, []
for size in (32, 4):
    for used, moments in (("base", running), ("batch", None)):
        adapters, base = convnet.low_rank(base, 4, 8, np.random.default_rng(SEED))
        settings = TrainConfig(short(150, 60), size, learning_rate=1e-2, seed=SEED)
        adapters, losses = convnet.fit(adapters, base, bold, settings, moments)
        new = convnet.statistics(adapters, base, bold[0])
        of_bold = convnet.evaluate(adapters, base, bold_test, running)
        of_bold_new = convnet.evaluate(adapters, base, bold_test, new)
        of_sans = convnet.evaluate(adapters, base, sans_test, running)
        train = np.mean(losses[-20:])
        accuracy = [score["accuracy"] for score in (of_bold, of_bold_new, of_sans)]
        results[size, used] = train, of_bold["loss"], of_bold_new["loss"], *accuracy
        cells.append([f"{size}, the {used}'s", *(f"{x:.2f}" for x in results[size, used])])
header = ["pictures per step, statistics", "train loss", "bold: old", "new"]
table([*header, "accuracy: bold, old", "new", "Sans, old"], cells)

# %% [markdown]
# (One network of 0.04 million parameters, one seed.) The second row is the trap. It is not only
# overfitting: with new statistics, the same weights have less than two thirds of the loss. Use the
# base's statistics in both places, or new ones in both.
#
# With the statistics of four pictures per step, the training loss is more than twice the validation
# loss with new statistics. (A possible reason: the mean and variance of four pictures are noisy.)
#
# The last column: weights trained with the statistics of 32 pictures still read more than 0.8 of
# Sans with its old statistics, and more than weights trained with the base's.
#
# ## A bias before batch normalization
#
# **Predict.** What is the gradient of a bias in front of batch normalization?
#
# <details><summary>Answer</summary>
# Zero up to rounding, if the batch's statistics are used: the mean contains the bias, and is
# subtracted.
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
train, old, new, *_ = results[32, "batch"]
assert old > 1.6 * new and old > 2 * train, "the trap: a high loss with the base's statistics"
noisy_train, _, noisy_new, *_ = results[4, "batch"]
assert noisy_train > 1.5 * noisy_new, "four per step: the training loss is higher"
if not QUICK:
    assert old > 5 * train, "the trap: the validation loss is many times the training loss"
    assert noisy_train > 2 * noisy_new, "four per step: far higher"
    assert results[32, "batch"][5] > 0.8, "Sans is still read"
    assert results[32, "base"][1] < 0.6 * old, "the base's statistics in both places are sound"
    assert results[32, "batch"][5] > results[32, "base"][5] + 0.07, "Sans is kept by statistics"
assert with_batch < 1e-4 * with_running, "no gradient reaches a bias before batch normalization"

# %% [markdown]
# ## What was shown
#
# Train and validate with the same kind of statistics. With the batch's statistics, a bias in front
# of batch normalization gets no gradient.
#
# **What to try.**
#
# 1. `for size in (32, 4)`: add 2. What does the training loss with the batch's statistics become?
# 2. `convnet.statistics(adapters, base, bold[0])`: use 20 pictures, `bold[0][:20]`.
# 3. `np.zeros(convnet.LAYERS[i][3], "f4")`: start the biases at 1. Is their gradient still zero?
#
# **Where to stop with a debugger.** `convnet.batch_norm`: `moments`, in training and in validation.
#
# **Exercises.** test-frozen.
#
# **Further reading.** Ioffe 2017, *Batch Renormalization*, on small batches:
# [arXiv:1702.03275](https://arxiv.org/abs/1702.03275). Wu and Johnson 2021, *Rethinking "Batch" in
# BatchNorm*: [arXiv:2105.07576](https://arxiv.org/abs/2105.07576).

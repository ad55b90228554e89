# %% [markdown]
# # 9. Is it good?
#
# **The question.** A fine-tuning run has ended and printed a loss. Is this loss good? And if it is
# bad, is the fault in the data?
#
# **Time:** a few seconds to run, twelve minutes to read. **You need:** lesson 1.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.data import tasks
from minilora.lessons.helpers.common import curve_of_seeds, of, questions, read_sweep

# %% [markdown]
# ## What is a good loss?
#
# A loss needs something to compare it with. An answer to our questions is " Ada, pink kite, barn.":
# a name, a colour, a thing and a place. Each is drawn uniformly, from 24 names, 8 colours, 24
# things and 8 places (lesson 0 uses 16 names and 16 things). A model that knows this form, and
# never reads the question, has the loss
#
# $$H = \log 24 + \log 8 + \log 24 + \log 8 = 10.5 \quad \text{nats per answer}$$
#
# An answer has 23 tokens, so this is H/23 per token. A model that reads the question can come near
# 0, because the question contains the answer.
#
# **Predict.** The loss fell from 4.0 to 0.46 nats per token. Has the model learned to answer?

# %%
drawn = (tasks.FIRST_NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)
guess = sum(math.log(len(words)) for words in drawn) / 23
model, _ = minilora.load("micro")
bare = minilora.evaluate({}, model, questions("valid"))["loss"]
print(f"nats per token: {bare:.2f} without adapters, {guess:.3f} without the question")

# %% [markdown]
# **Answer.** This loss does not show it. H/23 is 0.457: a model has this loss if it has learned
# only the form of the answers, although almost nine tenths of the loss are gone.
#
# ## Held out, and how sure
#
# *Held-out* rows are never trained on. The *confidence* of an answer is its probability: the
# product of the probabilities of its tokens. A model is [*calibrated*](guide/glossary.md) if, of
# the answers with confidence p, a share p is right. A sweep trained `micro` (0.1 million
# parameters) with LoRA at r = 8 for 200 steps, on 16 to 4,000 rows, with five seeds.
#
# **Predict.** Compare 16 rows with 4,000: which run has the lower training loss, and which the
# lower held-out loss? If each of 23 tokens has a probability of 0.99, how sure is the answer?

# %%
# Picture
ROWS = (16, 32, 64, 128, 512, 4000)
CURVES = {
    "training loss": "train_loss",
    "held-out loss": "loss",
    "right": "accuracy",
    "mean confidence": "confidence_raw",
}
sweep, seeds = read_sweep("confidence"), {}
_, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for i, (label, column) in enumerate(CURVES.items()):
    axes = panels[i // 2]
    seeds[label] = np.array([of(sweep, column, n=n) for n in ROWS])
    curve_of_seeds(axes, ROWS, seeds[label], label, i % 2)
    axes.set(xscale="log", xlabel="training rows", ylabel="share of held-out answers")
    axes.legend(frameon=False)
panels[0].set(yscale="log", ylabel="nats per token")
plt.show()

# %% [markdown]
# **Answer.** (Lines: the mean of five seeds. Bands: from the least to the most.) 16 rows have the
# lower training loss, less than half of the other, and a held-out loss about ninety times higher.
# This run *overfits*: it has memorized its rows. It is also too sure: its mean confidence is 0.24,
# and less than 2 % of its answers are right. The run on 4,000 rows is not sure enough: nearly all
# its answers are right, and its mean confidence is 0.8. Its tokens are nearly certain, but 0.99 to
# the power of 23 is 0.79.
#
# The study [Underfitting and overfitting](studies/evaluation/underfitting_and_overfitting.py) shows
# both losses over the steps, and [Calibration](studies/evaluation/calibration.py) corrects the
# confidence.
#
# ## Is the fault in the data?
#
# To test the data, train a small adapter in less than one pass over the rows. It sees no row twice,
# so memorizing does not lower its training loss. Here, LoRA with r = 1 (2,736 parameters) is
# trained for 200 steps of 16 of 4,000 rows: the right ones, or one of three faulty copies.
# (Held-out rows are always right.)
#
# - **shuffled labels**: the answers are shuffled among the questions.
# - **answers cut**: `max_seq_length` is 70, but a row has 75 tokens.
# - **mask inverted**: the loss counts the question, and not the answer.
#
# **Predict.** Which training loss, and which held-out loss, has the run on shuffled labels? Two of
# the faults have a held-out loss far above the training loss, as overfitting has. Which?

# %%
# Picture
sweep, losses, right = read_sweep("label_check"), {}, {}
_, axes = plt.subplots(figsize=(5.2, 4), layout="constrained")
for marker, fault in zip("osD^", ("none", "shuffled labels", "answers cut", "mask inverted")):
    of_run = {"trained": "rank 1", "fault": fault}
    losses[fault] = np.array([of(sweep, name, **of_run) for name in ("train_loss", "loss")])
    right[fault] = of(sweep, "exact_match", **of_run)
    label = f"{fault}: {np.mean(right[fault]):.0%} right"
    axes.loglog(*losses[fault], marker, fillstyle="none", label=label)
axes.plot([0.02, 5], [0.02, 5], "--", color="0.7", label="both equal")
axes.plot(guess, guess, "kx", label="H/23")
axes.set(xlabel="training loss", ylabel="held-out loss")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# **Answer.** (One mark per seed.)
# - **None** (right rows): both losses are far below H/23. Rank 1 can learn the task.
# - **Shuffled labels**: both losses are within 5 % of H/23. The run learns the form of the answers,
#   and nothing of the question.
# - **Answers cut**: the training loss is below half of H/23, and the held-out loss is more than
#   three times the training loss. But no row was seen twice, so this is no overfitting: training
#   rows and held-out rows differ.
# - **Mask inverted**: the gap is as wide. The held-out loss stays near the base's, because no
#   answer was trained; the training loss is that of other tokens.
#
# On your own data, train a small adapter for one pass over your rows, and over a copy with shuffled
# labels. Only the first run may succeed. If both do, the answers may be nearly all the same, rows
# may be repeated (and memorized), or the score may be wrong. If both fail, the labels or the
# preprocessing may be wrong, the pass too short, or the adapter too small (as in the study
# Underfitting and overfitting).
#
# ## What was shown
#
# A loss below that of a model that ignores the question needs the question. A held-out loss far
# above the training loss means overfitting, or rows, or counted tokens, that differ from the
# held-out ones. A run that sees no row twice tells which. A model can be too sure of its answers,
# or not sure enough.
#
# **What to try.**
#
# 1. `(16, 32, 64, …)`: add 8 to the sweep (`confidence_sweep.py`). Is it still surer?
# 2. `LoraConfig(r=1, …)` in `label_check_sweep.py`: use r = 8. Which losses change?
# 3. `iters=200` in `label_check_sweep.py`: use 1,000, four passes. Can r = 8 memorize now?
#
# **Where to stop with a debugger.** `examples_of` in `label_check_sweep.py` makes the faults.
#
# **Exercises.** one-file-loss, prompt-mask, calibration, debug-batch-size, measure-seeds,
# debug-held-out.
#
# **Further reading.** Zhang et al. 2017 train on shuffled labels: *Understanding deep learning
# requires rethinking generalization*, [arXiv:1611.03530](https://arxiv.org/abs/1611.03530).

# %%
# Checks
for row in questions("valid"):
    assert (sum(row.mask), len(row.tokens)) == (23, 75), "23 tokens per answer, 75 per row"
assert abs(23 * guess - 2 * math.log(24 * 8)) < 1e-12 and round(guess, 3) == 0.457, "H and H/23"
assert 0.87 < 1 - 0.46 / bare < 0.9, "almost nine tenths of the base's loss are gone"
train, held_out, accuracy, confidence = seeds.values()
assert (train[:2] < held_out[:2] / 10).all(), "16 and 32 rows: memorized"
assert (confidence[:2] > accuracy[:2] + 0.03).all(), "16 and 32 rows: too sure"
assert (confidence[3:] < accuracy[3:] - 0.08).all(), "from 128 rows on, no seed is sure enough"
assert train[0].mean() < train[-1].mean() / 2, "16 rows: less than half in training"
assert 80 < held_out[0].mean() / held_out[-1].mean() < 100, "and ninety times when held out"
assert abs(confidence[-1].mean() - 0.8) < 0.02 and accuracy[-1].mean() > 0.95, "4,000 rows"
assert abs(confidence[0].mean() - 0.24) < 0.01 and accuracy[0].mean() < 0.02, "16 rows: too sure"
assert round(0.99**23, 2) == 0.79, "0.99 to the power of 23"
assert len(questions("train")) > 200 * 16, "less than one pass"
clean, shuffled, cut, inverted = losses.values()
assert clean.max() < guess / 4 and min(right.pop("none")) > 0.5, "rank 1 must learn the task"
assert np.max([*right.values()]) < 0.01, "with a fault, no answer may be right"
assert np.abs(shuffled / guess - 1).max() < 0.05, "shuffled labels: both losses are H/23"
assert cut[0].max() < guess / 2, "answers cut: a low loss in training"
assert (cut[1] > 3 * cut[0]).all(), "and a higher one on held-out rows"
assert (inverted[1] > 3 * inverted[0]).all(), "mask inverted: a gap, too"
assert np.abs(inverted[1] / bare - 0.9).max() < 0.2, "mask inverted: near the base's loss"

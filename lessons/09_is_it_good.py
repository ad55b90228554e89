# %% [markdown]
# # 9. Is it good?
#
# **The question.** A fine-tuning run has ended and printed a loss. Is this loss good? And if it is
# bad, is the fault in the data?
#
# Four questions are asked of a run: what would a guess cost, how does it do on held-out rows, is it
# as often right as it is sure, and are its labels right?
#
# **Time:** a quarter of a minute to run, twelve minutes to read. **You need:** lesson 1.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.data import tasks
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    curve_of_seeds,
    of,
    questions,
    read_sweep,
)
from minilora.lessons.studies.evaluation.label_check_sweep import check

# %% [markdown]
# ## What is a good loss?
#
# A loss needs something to compare it with. An answer to our questions is " Ada, pink kite, barn.":
# a name, a colour, a thing and a place. Each is drawn uniformly, from 24 names, 8 colours, 24
# things and 8 places. (Lesson 0 has shorter lists.) A model that knows this form, and never reads
# the question, has the loss
#
# $$H = \log 24 + \log 8 + \log 24 + \log 8 = 10.5 \quad \text{nats per answer}$$
#
# An answer has 23 tokens, so this is H/23 per token. A model that reads the question can come near
# 0, because the question contains the answer.
#
# **Predict.** The loss fell from 4.0 to 0.46 nats per token. Has the model learned to answer?

# %%
H = math.log(24) + math.log(8) + math.log(24) + math.log(8)
guess = H / 23
model, _ = minilora.load("micro")
bare = minilora.evaluate({}, model, questions("valid"))["loss"]
print(f"the base without adapters: {bare:.2f} nats per token")
print(f"the form of an answer, without the question: {guess:.3f} nats per token")

# %% [markdown]
# **Answer.** This loss does not show it. H/23 is 0.457: a model has this loss if it has learned
# only the form of the answers, although almost nine tenths of the loss are gone.
#
# ## Held out, and how sure
#
# *Held-out* rows are never trained on. The *confidence* of an answer is its probability: the
# product of the probabilities of its tokens. A model is [*calibrated*](guide/glossary.md) if, of
# the answers with confidence p, a share p is right.
#
# A sweep trained `micro` (0.1 million parameters) with LoRA at r = 8 for 200 steps, on 16 to 4,000
# rows, with five seeds.
#
# **Predict.** Compare 16 rows with 4,000: which run has the lower training loss, and which the
# lower held-out loss? If each of 23 tokens has a probability of 0.99, how sure is the answer?

# %%
ROWS = (16, 32, 64, 128, 512, 4000)
sweep = read_sweep("confidence")
scores = {}
for name in ("train_loss", "loss", "accuracy", "confidence_raw"):
    scores[name] = np.array([of(sweep, name, n=n) for n in ROWS])

# %%
# Picture
CURVES = (
    ("nats per token", {"training loss": "train_loss", "held-out loss": "loss"}),
    ("share of held-out answers", {"right": "accuracy", "mean confidence": "confidence_raw"}),
)
_, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for axes, (ylabel, curves) in zip(panels, CURVES):
    for line, (label, name) in enumerate(curves.items()):
        curve_of_seeds(axes, ROWS, scores[name], label, line)
    axes.set(xscale="log", xlabel="training rows", ylabel=ylabel)
    axes.legend(frameon=False)
panels[0].set_yscale("log")
plt.show()

# %% [markdown]
# **Answer.** (Lines: the mean of five seeds. Bands: from the least to the most.) 16 rows have the
# lower training loss, less than half of the other, and a held-out loss about ninety times higher.
# This run *overfits*: it has memorized its rows. It is also too sure.
#
# The run on 4,000 rows is not sure enough: nearly all its answers are right, and its mean
# confidence is 0.8. Its tokens are nearly certain, but 0.99 to the power of 23 is 0.79.
#
# - **Overfitting** is a gap between the two losses: a low training loss and a high held-out loss.
#   **Underfitting** is two high losses, close together
#   ([Underfitting and overfitting](studies/evaluation/underfitting_and_overfitting.py)).
# - Compare the **confidence** with the share of right answers before you rely on it
#   ([Calibration](studies/evaluation/calibration.py) shows how to correct it).
#
# ## Is the fault in the data?
#
# To test the data, train so few parameters that the run cannot memorize its rows: here, LoRA with
# r = 1 (2,736 parameters) on 4,000 rows. It is trained on the right rows, and on three faulty
# copies of them:
#
# - **shuffled labels**: each question has the answer of another row.
# - **answers cut**: `max_seq_length` is 70, but a row has 75 tokens.
# - **mask inverted**: the loss counts the question, and not the answer.
#
# The held-out rows are always right and complete.
#
# **Predict.** Which training loss, and which held-out loss, has the run on shuffled labels? Which
# of the three faults looks like overfitting?

# %%
runs = {}
for fault in ("none", "shuffled labels", "answers cut", "mask inverted"):
    chosen = [row for row in read_sweep("label_check") if row["trained"] == "rank 1"]
    runs[fault] = {
        name: np.array(of(chosen, name, fault=fault))
        for name in ("train_loss", "loss", "exact_match")
    }
    exact = runs[fault]["exact_match"]
    print(f"{fault}: {exact.min():.0%} to {exact.max():.0%} of the answers are right")

# %%
# Picture
_, axes = plt.subplots(figsize=(5.2, 4), layout="constrained")
for marker, (fault, of_run) in zip("osD^", runs.items()):
    axes.loglog(of_run["train_loss"], of_run["loss"], marker, fillstyle="none", label=fault)
axes.axline((1, 1), slope=1, color="0.7", linestyle="--", label="both equal")
axes.axvline(guess, color="0.7", linewidth=0.8)
axes.axhline(guess, color="0.7", linewidth=0.8, label="H/23")
axes.set(xlabel="training loss", ylabel="held-out loss", xlim=(0.02, 6), ylim=(0.02, 6))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# **Answer.** (One mark per seed.)
#
# - **Right rows**: both losses are far below H/23. So the run can learn the task.
# - **Shuffled labels**: both losses are within 5 % of H/23. The run learns the form of the answers,
#   and nothing else can be learned.
# - **Answers cut**: this looks like overfitting. The training loss is below half of H/23, and the
#   held-out loss is more than three times as high. But this run cannot memorize its rows: shuffled
#   labels showed it. So training rows and held-out rows differ.
# - **Mask inverted**: the held-out loss is near the base's, because no answer was trained.
#
# On your own data, train a small adapter on your rows, and on a copy with shuffled labels. Only the
# first run may succeed. If both do, the answer may be in the prompt, or the score is wrong. If both
# fail, the labels or the preprocessing may be wrong, or the adapter is too small for the task.
#
# ## What was shown
#
# Compute the loss of a model that ignores the question: a lower one needs the question. Compare the
# training loss with the held-out loss, and the confidence with the share of right answers. Train
# few parameters on right and on shuffled labels, and read both losses.
#
# **What to try.**
#
# 1. `(16, 32, 64, …)`: add 8 to the sweep (`confidence_sweep.py`). Is it still surer?
# 2. `LoraConfig(r=1, …)` in `label_check_sweep.py`: use r = 8. Can it memorize shuffled labels?
# 3. `check(("rank 1", fault, 0))`: use 1,000 steps. Do the losses on shuffled labels fall?
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
drawn = (tasks.FIRST_NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)
assert [len(words) for words in drawn] == [24, 8, 24, 8], "what an answer is drawn from"
for row in questions("valid"):
    assert (sum(row.mask), len(row.tokens)) == (23, 75), "23 tokens per answer, 75 per row"
assert abs(H - 10.5) < 0.05 and abs(guess - 0.457) < 5e-4, "H and H/23"
assert 0.87 < 1 - 0.46 / bare < 0.9, "almost nine tenths of the base's loss are gone"
train, held_out, right, confidence = scores.values()
for few in range(2):
    assert (train[few] < held_out[few] / 10).all(), f"{ROWS[few]} rows: memorized"
    assert (confidence[few] > right[few] + 0.03).all(), f"{ROWS[few]} rows: too sure"
assert (confidence[3:] < right[3:] - 0.08).all(), "from 128 rows on, no seed is sure enough"
assert train[0].mean() < train[-1].mean() / 2, "16 rows: less than half in training"
assert 80 < held_out[0].mean() / held_out[-1].mean() < 100, "and ninety times when held out"
assert abs(confidence[-1].mean() - 0.8) < 0.02 and right[-1].mean() > 0.95, "4,000 rows"
assert abs(0.99**23 - 0.79) < 0.005, "0.99 to the power of 23"
clean, shuffled, cut, inverted = runs.values()
assert clean["exact_match"].min() > 0.5 and clean["loss"].max() < guess / 4, "it learns the task"
for faulty in (shuffled, cut, inverted):
    assert faulty["exact_match"].max() < 0.01, "with a fault, no answer may be right"
for name in ("train_loss", "loss"):
    assert np.abs(shuffled[name] / guess - 1).max() < 0.05, f"shuffled labels: {name} is H/23"
assert cut["train_loss"].max() < guess / 2, "answers cut: a low loss in training"
assert (cut["loss"] > 3 * cut["train_loss"]).all(), "answers cut: the held-out loss is higher"
near = inverted["loss"] / bare
assert 0.7 < near.min() < near.max() < 1.1, "mask inverted: near the base's loss"
if not QUICK:  # two runs of the sweep again, each told apart from the other labels
    for fault, other in (("none", "shuffled labels"), ("shuffled labels", "none")):
        again, _ = check(("rank 1", fault, 0))
        assert agrees(again["loss"], runs[fault]["loss"], runs[other]["loss"]), fault

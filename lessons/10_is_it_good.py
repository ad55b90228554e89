# %% [markdown]
# # 10. Is it good?
#
# **The question.** A fine-tuning run has ended and printed a loss. Is this loss good? And if it is
# bad, is the fault in the data?
#
# Four questions are asked of a run: what would a guess pay, how does it do on held-out rows, is it
# as often right as it is sure, and are its labels right?
#
# **Time:** a quarter of a minute to run, fifteen minutes to read. **You need:** lesson 3.

# %%
import math

import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, of, read_sweep, spread, table
from lessons.studies.evaluation.label_check_sweep import check
from minilora import TrainConfig, data
from minilora.data import tasks

PER_ANSWER = 23  # target tokens: 22 letters and the end

# %% [markdown]
# ## What is a good loss?
#
# A loss needs something to compare it with. The generator of this task is known, so two losses can
# be computed. An answer is " Ada, pink kite, barn.": a name, a colour, a thing and a place, each
# drawn uniformly. A model that knows the form of an answer, and never reads the question, pays
#
# $$H = \log 24 + \log 8 + \log 24 + \log 8 \quad \text{nats per answer}$$
#
# This is divided by the answer's 23 tokens. A model that reads the question can come near 0,
# because the question contains the answer.
#
# **Predict.** The loss fell from 4.0 to 0.45 nats per token. Has the model learned to answer?
#
# <details><summary>Answer</summary>
# This loss does not show it. H/23 is 0.457, and a model can have this loss if it has learned only
# the form of the answers. ("Yes" is tempting, because nine tenths of the loss are gone.)
# </details>

# %%
draws = tasks.NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES
floor = sum(math.log(len(some)) for some in draws) / PER_ANSWER
config, base, words = minilora.load("micro")
settings = TrainConfig(mask_prompt=True)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), words, settings)
bare = minilora.evaluate({}, base, valid, config)
print(f"the base without adapters: {bare['loss']:.2f} nats per token")
print(f"the form of an answer, without the question: {floor:.4f} nats per token")

# %%
# Checks
assert {sum(row.mask) for row in valid} == {PER_ANSWER}, "an answer must have 23 target tokens"
assert {len(row.tokens) for row in valid} == {75}, "a row must have 75 tokens"
assert 0.45 < floor < 0.46, "H/23"
assert bare["loss"] > 3.5, "the base does not know the form"

# %% [markdown]
# ## Held out, and how sure
#
# A sweep trained `micro` (0.1 million parameters) with LoRA at r = 8 for 200 steps, on 16 to 4,000
# rows, with five seeds. The *held-out* rows are never trained on. The *confidence* of an answer is
# its probability: the product of the probabilities of its tokens. A model is
# [*calibrated*](guide/glossary.md) if, of the answers with confidence p, a share p is right. The
# *ECE* is the mean difference between the two, over 15 bins of confidence.
#
# **Predict.** Compare 16 rows with 4,000: which run has the lower training loss, and which the
# lower held-out loss? Which is too sure of its answers, and which not sure enough?
#
# <details><summary>Answer</summary>
# 16 rows have the lower training loss, less than half of the other, and a held-out loss about
# ninety times higher: this run *overfits*, it has memorized its rows. It is too sure. The run on
# 4,000 rows is not sure enough: nearly all its answers are right, and its mean confidence is below
# 0.9. ("Well calibrated" is tempting, because per token it is. But 23 tokens of 0.993 each have the
# product 0.85.)
# </details>

# %%
sweep = read_sweep("confidence")
NAMES = ("train_loss", "loss", "accuracy", "confidence_raw", "ece_raw", "token_ece")
by_rows, cells = {}, []
for n in (16, 32, 64, 128, 512, 4000):
    by_rows[n] = {name: np.array(of(sweep, name, n=n)) for name in NAMES}
    cells.append([n, *(f"{by_rows[n][name].mean():.3f}" for name in NAMES)])
header = ["rows", "train loss", "held-out loss", "right", "confidence", "ECE", "ECE per token"]
table(header, cells)

# %% [markdown]
# - **Overfitting** is a gap between the two losses. Compare them: the held-out loss need not rise
#   again ([Underfitting and overfitting](studies/evaluation/underfitting_and_overfitting.py)).
#   **Underfitting** is two high losses, close together, as those of "head" below.
# - **Confidence** is not to be believed as it is. One number, fitted on held-out answers, corrects
#   most of it here ([Calibration](studies/evaluation/calibration.py)).

# %%
# Checks
for n, scores in by_rows.items():
    gap = scores["confidence_raw"] - scores["accuracy"]
    if n <= 32:
        assert (scores["train_loss"] < scores["loss"] / 10).all(), f"{n} rows: memorized"
        assert (gap > 0.03).all(), f"{n} rows: every seed must be too sure"
    if n >= 128:
        assert (gap < -0.08).all(), f"{n} rows: no seed may be sure enough"
many, few = by_rows[4000], by_rows[16]
assert few["train_loss"].mean() < many["train_loss"].mean() / 2, "16 rows: less than half"
assert 80 < few["loss"].mean() / many["loss"].mean() < 100, "and ninety times when held out"
assert many["token_ece"].max() < 0.02, "calibrated per token"
assert many["ece_raw"].min() > 0.08 and many["confidence_raw"].max() < 0.9, "and not per answer"
assert abs(0.993**PER_ANSWER - 0.85) < 0.005, "0.993 to the power of 23"

# %% [markdown]
# ## Are the labels right?
#
# A first check trains few parameters: only the **linear head**, the matrix that computes the logits
# (the method `head`), or an adapter of **rank 1**. Train them on the data. Then train them on the
# same data with the answers shuffled among the rows.
#
# - Only the first run may succeed.
# - If the second succeeds, the answer may leak into the prompt, or the score may be wrong.
# - If the first fails, the labels or the preprocessing may be wrong.
#
# The head gets a task made for it: after " In the", it must give one letter, A to H, for the place.
# There, the base's own text names the place, but not by these letters. So a row ends with "… boat
# in the dock. In theC".
#
# **Predict.** Which of these runs fail? And does the head succeed on the full question, with right
# labels?
#
# <details><summary>Answer</summary>
# All runs with shuffled labels fail. The head also fails on the full question with right labels.
# ("It succeeds" is tempting, because it has more parameters than rank 1. But it cannot change what
# the layers compute.)
# </details>

# %%
sweep = read_sweep("label_check")
runs = {}
for row in sweep:
    case = row["trained"], row["task"], row["fault"]
    runs[case] = {
        name: np.array(of(sweep, name, trained=case[0], task=case[1], fault=case[2]))
        for name in ("train_loss", "loss", "exact_match")
    }


def show(faults):
    """Print the losses and the right answers of the cases with these faults, five seeds each."""
    cells = []
    for case, scores in runs.items():
        if case[2] in faults:
            exact = scores["exact_match"]
            losses = [spread(scores[name], 3) for name in ("train_loss", "loss")]
            cells.append([*case, *losses, f"{exact.min():.0%} to {exact.max():.0%}"])
    table(["trained", "task", "fault", "train loss", "held-out loss", "exact match"], cells)


show(("none", "shuffled labels"))

# %% [markdown]
# - **A check that fails on right labels shows nothing.** On the full question, the head fails with
#   right labels, too: its loss is worse than a guess. So here, use rank 1 for the full question.
# - **Look at the loss, not only at the score.** In one seed of shuffled places 36 % are right, at a
#   loss within 2.5 % of a guess.

# %%
# Checks
blind_place = math.log(len(tasks.PLACES)) / 2  # two tokens: a letter and the end
right, wrong = (runs["head", "place", fault] for fault in ("none", "shuffled labels"))
assert right["exact_match"].min() > 0.9, "the head must find the place"
assert right["loss"].max() < blind_place / 4, "and with a low loss"
assert wrong["exact_match"].max() < 0.5, "with shuffled labels it must fail"
assert wrong["loss"].min() > 0.95 * blind_place, "and its loss must be that of a guess"
exact, loss = max(zip(wrong["exact_match"], wrong["loss"]))
assert 0.355 < exact < 0.37, "one seed must be lucky"
assert abs(loss / blind_place - 1) < 0.025, "at the loss of a guess"
learned = runs["rank 1", "questions", "none"]
assert learned["exact_match"].min() > 0.5, "rank 1 must learn the question"
assert learned["loss"].max() < floor / 4, "and its loss must be below the floor"
of_head = [runs["head", "questions", fault] for fault in ("none", "shuffled labels")]
assert of_head[0]["loss"].min() > 1.1 * floor, "right labels: worse than a guess"
for scores in of_head:
    assert scores["exact_match"].max() < 0.01, "the head cannot answer the question"

# %% [markdown]
# ## Which fault is it?
#
# The sweep has two more faults in the training rows: answers that are cut before their end (a
# `max_seq_length` of 70, where a row has 75 tokens), and an inverted prompt mask: the loss counts
# the question and not the answer. The held-out rows are always complete and right.
#
# **Predict.** With three faults, less than 1 % of the answers of rank 1 are right. Can the two
# losses tell them apart?
#
# <details><summary>Answer</summary>
# Yes. Shuffled labels: both losses are within 5 % of H/23. Answers cut: the training loss is below
# half of H/23, and the held-out loss is more than three times the training loss. Mask inverted: the
# held-out loss is near the base's, and the training loss is above half of H/23.
# </details>

# %%
show(("answers cut", "mask inverted"))

# %% [markdown]
# "Answers cut" looks like overfitting. But with shuffled labels, rank 1 does not memorize its rows:
# its training loss stays near H/23. So look for a difference between the training rows and the
# held-out ones.

# %%
# Checks
faulty = {
    f: runs["rank 1", "questions", f] for f in ("shuffled labels", "answers cut", "mask inverted")
}
for fault, scores in faulty.items():
    assert scores["exact_match"].max() < 0.01, f"{fault}: no answer may be right"
shuffled, cut, inverted = faulty.values()
for name in ("train_loss", "loss"):
    off = np.abs(shuffled[name] / floor - 1).max()
    assert off < 0.05, f"shuffled labels: the {name} is the floor"
assert (cut["loss"] > 3 * cut["train_loss"]).all(), "answers cut: the held-out loss is higher"
near = inverted["loss"] / bare["loss"]
assert 0.7 < near.min() < near.max() < 1.1, "mask inverted: near the base's loss"
assert cut["train_loss"].max() < floor / 2 < inverted["train_loss"].min(), "and in training, too"
if not QUICK:  # runs of the sweep again, each told apart from the other labels
    for trained, task in (("head", "place"), ("head", "questions"), ("rank 1", "questions")):
        for fault, other in (("none", "shuffled labels"), ("shuffled labels", "none")):
            again, *_ = check((trained, task, fault, 0), 200)
            own, others = (runs[trained, task, name]["loss"] for name in (fault, other))
            assert agrees(again["loss"], own, others), (
                f"{trained}, {task}, {fault}: {again['loss']}"
            )

# %% [markdown]
# ## What was shown
#
# Compute the loss of a model that ignores the question: a lower one needs the question. Compare the
# training loss with the held-out loss, and the confidence with the share of right answers. Train
# few parameters on right and on shuffled labels, and read both losses.
#
# **What to try.**
#
# 1. `(16, 32, 64, …)`: add 8 to the sweep (`confidence_sweep.py`). Is it still surer?
# 2. `blind_place`: what is the loss of a guess that also knows which letters are frequent?
# 3. `check((trained, task, fault, 0), 200)`: use 1,000 steps. Does the head on the question reach
#    the floor?
#
# **Where to stop with a debugger.** `examples_of` in `label_check_sweep.py` makes the faults.
#
# **Exercises.** cross-entropy, prompt-mask, calibration.
#
# **Further reading.** Zhang et al. 2017 train on shuffled labels: *Understanding deep learning
# requires rethinking generalization*, [arXiv:1611.03530](https://arxiv.org/abs/1611.03530). Alain
# and Bengio 2016, on linear heads as probes: [arXiv:1610.01644](https://arxiv.org/abs/1610.01644).

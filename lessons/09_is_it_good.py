# %% [markdown]
# # 9. Is it good?
#
# **The question.** A fine-tuning run has ended and printed a loss. Is this loss good? And if it is
# bad, is the fault in the data?
#
# Four questions are asked of a run: what would a guess pay, how does it do on held-out rows, is it
# as often right as it is sure, and are its labels right?
#
# **Time:** a quarter of a minute to run, twenty minutes to read. **You need:** lesson 1.

# %%
import math

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig, data
from minilora.data import tasks
from minilora.lessons.helpers.common import QUICK, agrees, of, read_sweep, spread, table
from minilora.lessons.studies.evaluation.label_check_sweep import check
from minilora.tree import num_parameters

PER_ANSWER = 23  # target tokens: 22 letters and the end

# %% [markdown]
# ## What is a good loss?
#
# A loss needs something to compare it with. The generator of this task is known, so two losses can
# be computed. An answer is " Ada, pink kite, barn.": a name, a colour, a thing and a place, each
# drawn uniformly (from the lists of the package; lesson 0 has shorter ones). A model that knows the
# form of an answer, and never reads the question, pays
#
# $$H = \log 24 + \log 8 + \log 24 + \log 8 \quad \text{nats per answer}$$
#
# This is divided by the answer's 23 tokens. A model that reads the question can come near 0,
# because the question contains the answer.
#
# **Predict.** The loss fell from 4.0 to 0.46 nats per token. Has the model learned to answer?
#
# <details><summary>Answer</summary>
# This loss does not show it. H/23 is 0.457: a model can have this loss if it has learned only the
# form of the answers. ("Yes" is tempting, because almost nine tenths of the loss are gone.)
# </details>

# %%
draws = tasks.FIRST_NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES
floor = sum(math.log(len(some)) for some in draws) / PER_ANSWER
model, words = minilora.load("micro")
settings = TrainConfig(mask_prompt=True)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), words, settings)
bare = minilora.evaluate({}, model, valid)
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
# [*calibrated*](guide/glossary.md) if, of the answers with confidence p, a share p is right.
#
# **Predict.** Compare 16 rows with 4,000: which run has the lower training loss, and which the
# lower held-out loss? Which is too sure of its answers, and which not sure enough?
#
# <details><summary>Answer</summary>
# 16 rows have the lower training loss, less than half of the other, and a held-out loss about
# ninety times higher: this run *overfits*, it has memorized its rows. It is too sure. The run on
# 4,000 rows is not sure enough: nearly all its answers are right, and its mean confidence is only
# 0.8. ("Well calibrated" is tempting: each token is nearly certain. But 23 tokens with a
# probability of 0.99 have the product 0.79.)
# </details>

# %%
sweep = read_sweep("confidence")
NAMES = ("train_loss", "loss", "accuracy", "confidence_raw")
by_rows, cells = {}, []
for n in (16, 32, 64, 128, 512, 4000):
    by_rows[n] = {name: np.array(of(sweep, name, n=n)) for name in NAMES}
    cells.append([n, *(f"{by_rows[n][name].mean():.3f}" for name in NAMES)])
table(["rows", "training loss", "held-out loss", "share right", "mean confidence"], cells)

# %% [markdown]
# - **Overfitting** is a gap between the two losses: a low training loss and a high held-out loss.
#   **Underfitting** is two high losses, close together
#   ([Underfitting and overfitting](studies/evaluation/underfitting_and_overfitting.py)).
# - Compare the **confidence** with the share of right answers before you rely on it
#   ([Calibration](studies/evaluation/calibration.py) shows how to correct it).

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
assert abs(many["confidence_raw"].mean() - 0.8) < 0.02, "not sure enough"
assert many["accuracy"].mean() > 0.95, "and nearly always right"
assert abs(0.99**PER_ANSWER - 0.79) < 0.005, "0.99 to the power of 23"

# %% [markdown]
# ## Are the labels right?
#
# A first check trains few parameters, so that the run cannot memorize its rows. Train once on the
# data, and once on the same data with the answers shuffled among the rows.
#
# - Only the first run may succeed.
# - If the second succeeds, the answer may leak into the prompt, or the score may be wrong.
# - If the first fails, the labels or the preprocessing may be wrong.
#
# The check is tried with two kinds of few parameters:
#
# - The **head** (12,288): a copy of the embedding that computes the logits, trained alone.
# - **Rank 1** (2,736): LoRA with r = 1 on all seven projections.
#
# **Predict.** With right labels, which can learn to answer the questions: the head alone (12,288
# numbers), or LoRA with r = 1 on all projections (2,736)?
#
# <details><summary>Answer</summary>
# Only rank 1. ("The head" is tempting, because it has more parameters. But it cannot change what
# the layers compute.) With shuffled labels, both fail.
# </details>

# %%
RANK_1 = LoraConfig(r=1, lora_alpha=2, target_modules=("all-linear",))
sweep = read_sweep("label_check")
runs = {}
for row in sweep:
    case = {name: row[name] for name in ("trained", "fault")}
    runs[tuple(case.values())] = {
        name: np.array(of(sweep, name, **case)) for name in ("train_loss", "loss", "exact_match")
    }
parameters = {}
for trained, method in (("head", MethodConfig("head")), ("rank 1", RANK_1)):
    parameters[trained] = num_parameters(minilora.get_peft_model(model, method, 0).adapters)
    print(f"{trained}: {parameters[trained]:,} parameters")


def show(faults):
    """Print the losses and the right answers of the cases with these faults, five seeds each."""
    cells = []
    for case, scores in runs.items():
        if case[1] in faults:
            exact = scores["exact_match"]
            losses = [spread(scores[name], 3) for name in ("train_loss", "loss")]
            cells.append([*case, *losses, f"{exact.min():.0%} to {exact.max():.0%}"])
    table(["trained", "fault", "training loss", "held-out loss", "exact match"], cells)


show(("none", "shuffled labels"))

# %% [markdown]
# A check that fails on right labels shows nothing about them: with the head, right and shuffled
# labels both have a loss above H/23. So here, use rank 1.

# %%
# Checks
assert parameters == {"head": 12288, "rank 1": 2736}, "the head has more parameters"
learned = runs["rank 1", "none"]
assert learned["exact_match"].min() > 0.5, "rank 1 must learn the question"
assert learned["loss"].max() < floor / 4, "and its loss must be below the floor"
for fault in ("none", "shuffled labels"):
    assert runs["head", fault]["loss"].min() > 1.1 * floor, f"head, {fault}: worse than a guess"
    assert runs["head", fault]["exact_match"].max() < 0.01, "the head cannot answer the question"

# %% [markdown]
# ## Which fault is it?
#
# The sweep has two more faults in the training rows: answers that are cut before their end (a
# `max_seq_length` of 70, where a row has 75 tokens), and an inverted prompt mask: the loss counts
# the question and not the answer. The held-out rows are always complete and right.
#
# **Predict.** The training rows have shuffled labels, answers cut before their end, or an inverted
# prompt mask. With each of these faults, less than 1 % of the answers of rank 1 are right. For
# which fault do the training loss and the held-out loss look like overfitting?
#
# <details><summary>Answer</summary>
# For the cut answers: the training loss is below half of H/23, and the held-out loss is more than
# three times the training loss. ("Shuffled labels" is tempting, because they can only be memorized.
# But rank 1 cannot do that: both losses are within 5 % of H/23.) With the inverted mask, the
# held-out loss is near the base's, and the training loss is above half of H/23.
# </details>

# %%
show(("answers cut", "mask inverted"))

# %% [markdown]
# Rank 1 cannot memorize these rows: shuffled labels show it. So the gap of "answers cut" is not
# overfitting. It means that training rows and held-out rows differ.

# %%
# Checks
faulty = {f: runs["rank 1", f] for f in ("shuffled labels", "answers cut", "mask inverted")}
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
    for trained in ("head", "rank 1"):
        for fault, other in (("none", "shuffled labels"), ("shuffled labels", "none")):
            again, *_ = check((trained, fault, 0), 200)
            own, others = (runs[trained, name]["loss"] for name in (fault, other))
            assert agrees(again["loss"], own, others), f"{trained}, {fault}: {again['loss']}"

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
# 2. `LoraConfig(r=1, …)` in `label_check_sweep.py`: use r = 8. Can it memorize shuffled labels?
# 3. `check((trained, fault, 0), 200)`: use 1,000 steps. Does the head reach H/23?
#
# **Where to stop with a debugger.** `examples_of` in `label_check_sweep.py` makes the faults.
#
# **Exercises.** one-file-loss, prompt-mask, calibration, debug-batch-size, measure-seeds,
# debug-held-out.
#
# **Further reading.** Zhang et al. 2017 train on shuffled labels: *Understanding deep learning
# requires rethinking generalization*, [arXiv:1611.03530](https://arxiv.org/abs/1611.03530).

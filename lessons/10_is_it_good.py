# %% [markdown]
# # 10. Is it good?
#
# **The question.** A fine-tuning run has ended and printed a loss. Is this loss good? And if it is
# bad, is the fault in the data?
#
# The study [Underfitting and overfitting](studies/evaluation/underfitting_and_overfitting.py) reads
# the curves of a run, [Calibration](studies/evaluation/calibration.py) the model's confidence,
# [Calibration](studies/evaluation/calibration.py) uses it for decisions, and [A new head for
# classes](studies/evaluation/a_new_head_for_classes.py) trains a head for classes.
#
# **Time:** a quarter of a minute to run, fifteen minutes to read. **You need:** lesson 0, and what
# a conditional probability is.

# %%
import math

import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, of, read_sweep, short, table
from lessons.studies.evaluation.label_check_sweep import check, examples_of
from minilora import TrainConfig, data
from minilora.data import tasks

ITERS = short(200, 20)
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
# the form of the answers.
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
# ## Are the labels right?
#
# A first check trains few parameters: a **linear head** on the frozen base (the method `head`), or
# an adapter of **rank 1**. Train them on the data. Then train them on the same data with the
# answers shuffled among the rows.
#
# - Only the first run may succeed.
# - If the second succeeds, the answer may leak into the prompt, or the score may be wrong.
# - If the first fails, the labels or the preprocessing may be wrong.
#
# The head gets a task made for it: after " In the", it must give one letter, A to H, for the place.
# There, the base's own text names the place, but not by these letters.
#
# **Predict.** Which of these runs fail? And does the head succeed on the full question, with right
# labels?
#
# <details><summary>Answer</summary>
# All runs with shuffled labels fail. The head also fails on the full question with right labels.
# </details>

# %%
row = examples_of("place", "none", "train", words, n=1)[0]
print("the end of a row of the head's task:", repr(words.decode(row.tokens)[-24:]))

runs = {}
for trained, task in (("head", "place"), ("head", "questions"), ("rank 1", "questions")):
    for fault in ("none", "shuffled labels"):
        iters = 200 if task == "place" else ITERS
        runs[trained, task, fault], *_ = check((trained, task, fault, 0), iters)
cells = []
for (trained, task, fault), row in runs.items():
    labels = fault.replace("none", "right")
    losses = [f"{row[name]:.3f}" for name in ("train_loss", "loss")]
    cells.append([trained, task, labels, *losses, f"{row['exact_match']:.0%}"])
table(["trained", "task", "labels", "train loss", "held-out loss", "exact match"], cells)

# %%
# Checks
blind_place = math.log(len(tasks.PLACES)) / 2  # two tokens: a letter and the end
right, wrong = (runs["head", "place", fault] for fault in ("none", "shuffled labels"))
assert right["exact_match"] > 0.9, "the head must find the place"
assert right["loss"] < blind_place / 4, "and with a low loss"
assert wrong["exact_match"] < 0.5, "with shuffled labels it must fail"
assert wrong["loss"] > 0.95 * blind_place, "and its loss must be that of a guess"

# %% [markdown]
# ## Which fault is it?
#
# The sweep has five seeds and two more faults in the training rows: answers that are cut before
# their end (a `max_seq_length` of 70, where a row has 75 tokens), and an inverted prompt mask. The
# held-out rows are always complete and right.
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
sweep = read_sweep("label_check")


def seeds_of(name, trained, task, fault):
    """Return a column of the sweep for one case, one number per seed."""
    return np.array(of(sweep, name, trained=trained, task=task, fault=fault))


cells = []
for case in dict.fromkeys((row["trained"], row["task"], row["fault"]) for row in sweep):
    losses = [seeds_of(name, *case) for name in ("train_loss", "loss")]
    exact = seeds_of("exact_match", *case)
    text = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in losses]
    cells.append([*case, *text, f"{exact.min():.0%} to {exact.max():.0%}"])
table(["trained", "task", "fault", "train loss", "held-out loss", "exact match"], cells)

# %% [markdown]
# - **A check that fails on right labels shows nothing.** On the full question, the head fails with
#   shuffled labels, but with right labels, too: there, its loss is worse than a guess. So here, use
#   rank 1 for the full question.
# - **The losses tell which fault it is.** "Answers cut" looks like overfitting. But with shuffled
#   labels, rank 1 does not memorize its rows: its training loss stays near H/23. So look for a
#   difference between the training rows and the held-out ones.
# - **Look at the loss, not only at the score.** In one seed of shuffled places 36 % are right, at a
#   loss within 2.5 % of a guess.

# %%
# Checks
place, rank_1, head = ("head", "place"), ("rank 1", "questions"), ("head", "questions")
assert seeds_of("exact_match", *place, "none").min() > 0.9, "right places must be learned"
chance = [seeds_of(name, *place, "shuffled labels") for name in ("exact_match", "loss")]
assert chance[1].min() > 0.95 * blind_place, "shuffled places must not be learned"
lucky = max(zip(*chance))
assert 0.355 < lucky[0] < 0.37, "one seed must be lucky"
assert abs(lucky[1] / blind_place - 1) < 0.025, "at the loss of a guess"
assert seeds_of("exact_match", *rank_1, "none").min() > 0.5, "rank 1 must learn the question"
assert seeds_of("loss", *rank_1, "none").max() < floor / 4, "and its loss must be below the floor"
for fault in ("shuffled labels", "answers cut", "mask inverted"):
    assert seeds_of("exact_match", *rank_1, fault).max() < 0.01, f"{fault}: no answer may be right"
for name in ("train_loss", "loss"):
    shuffled = seeds_of(name, *rank_1, "shuffled labels")
    assert np.abs(shuffled / floor - 1).max() < 0.05, f"shuffled labels: the {name} is the floor"
cut = {name: seeds_of(name, *rank_1, "answers cut") for name in ("train_loss", "loss")}
inverted = {name: seeds_of(name, *rank_1, "mask inverted") for name in ("train_loss", "loss")}
assert (cut["loss"] > 3 * cut["train_loss"]).all(), "answers cut: the held-out loss is higher"
near = inverted["loss"] / bare["loss"]
assert 0.7 < near.min() < near.max() < 1.1, "mask inverted: near the base's loss"
assert cut["train_loss"].max() < floor / 2 < inverted["train_loss"].min(), "and in training, too"
assert seeds_of("loss", *head, "none").min() > 1.1 * floor, "right labels: worse than a guess"
for fault in ("none", "shuffled labels"):
    assert seeds_of("exact_match", *head, fault).max() < 0.01, "the head cannot answer the question"
if not QUICK:
    for (*case, fault), row in runs.items():
        other = "none" if fault == "shuffled labels" else "shuffled labels"
        own, others = (seeds_of("loss", *case, name) for name in (fault, other))
        assert agrees(row["loss"], own, others), f"{case}, {fault}: {row['loss']}, not {own}"

# %% [markdown]
# ## What was shown
#
# Compute the loss of a model that ignores the question: a lower one needs the question. Train few
# parameters on right and on shuffled labels, and read both losses.
#
# **What to try.**
#
# 1. `ITERS = short(200, 20)`: 1,000 steps. Does the head on the question reach the floor?
# 2. `blind_place`: what is the loss of a guess that also knows which letters are frequent?
# 3. `check((trained, task, fault, 0), iters)`: replace the seed 0 by 3. How lucky is it?
#
# **Where to stop with a debugger.** `examples_of` in `label_check_sweep.py` makes the faults.
#
# **Exercises.** cross-entropy, prompt-mask.
#
# **Further reading.** Zhang et al. 2017 train on shuffled labels: *Understanding deep learning
# requires rethinking generalization*, [arXiv:1611.03530](https://arxiv.org/abs/1611.03530). Alain
# and Bengio 2016, on linear heads as probes: [arXiv:1610.01644](https://arxiv.org/abs/1610.01644).
